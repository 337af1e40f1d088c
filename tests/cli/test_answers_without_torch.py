"""`i3lm chat`, `generate` and `eval` say without torch what they say with it."""

import json
import os
import subprocess
import sys

import pytest
from cli_models import WINDOW

from i3lm.native import tensor_library
from i3lm.quantizing import quantize

pytestmark = [
    pytest.mark.skipif(tensor_library() is None, reason="the kernels are not built"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere torch is used"),
]
LOADED = """
import sys
from i3lm.__main__ import main
code = main()
print(code, "libtorch" in open("/proc/self/maps").read(), file=sys.stderr)
"""


def said(*arguments, with_torch=False):
    """Run a command in a process of its own; return its output and whether it loaded torch."""
    environment = {**os.environ, "I3LM_TORCH": "1" if with_torch else "0"}
    line = [sys.executable, "-c", LOADED, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    *notes, last = done.stderr.splitlines()
    code, loaded = last.split()
    assert code == "0", notes
    return done.stdout, notes, loaded == "True"


@pytest.fixture(scope="module", params=[32, 8, 4])
def model(request, folder, tmp_path_factory):
    if request.param == 32:
        return folder
    path = tmp_path_factory.mktemp("few") / "model"
    quantize(folder, path, request.param)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        ["--temperature", "0"],
        ["--seed", "4"],
        ["--seed", "5", "--temperature", "1.5", "--top-k", "30", "--top-p", "1"],
    ],
)
@pytest.mark.parametrize("command", [["generate"], ["chat", "-p"]])
def test_the_same_text(model, command, settings):
    """Past the window where it does not end before; last places hardly ever decide a draw."""
    name, *flag = command
    line = [name, model, *flag, "the cat sat", "--max-new-tokens", 3 * WINDOW, *settings]
    bare, torch = said(*line), said(*line, with_torch=True)
    assert bare[:2] == torch[:2]
    assert bare[0].strip()
    assert bare[2:] + torch[2:] == (False, True)


def test_a_long_prompt(folder):
    line = ["generate", folder, "the cat and the hat " * 20, "--temperature", "0"]
    assert said(*line)[:2] == said(*line, with_torch=True)[:2]


def test_a_conversation(folder):
    """Turn by turn through standard input."""
    line = [sys.executable, "-m", "i3lm", "chat", folder, "--temperature", "0"]
    turns = "the cat\nthe hat\n/stats\n/retry\n"
    found = [
        subprocess.run(
            line, input=turns, capture_output=True, text=True, env={**os.environ, "I3LM_TORCH": i}
        )
        for i in "01"
    ]
    assert found[0].returncode == 0, found[0].stderr
    assert found[0].stdout == found[1].stdout


def test_the_same_score(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat with the other hat, was it not?\n" * 12)
    line = ["eval", model, "--data", text, "--json"]
    bare, torch = said(*line), said(*line, with_torch=True)
    found, wanted = (json.loads(out) for out, *_ in (bare, torch))
    for figures in found, wanted:
        del figures["seconds"]
    bits = [figures.pop("bits_per_character") for figures in (found, wanted)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)
    assert found.keys() == wanted.keys()
    assert found["tokens"] == wanted["tokens"] > 100
    assert bare[2:] + torch[2:] == (False, True)


def test_what_needs_torch_loads_it(folder, tmp_path):
    dense = tmp_path / "dense"
    arguments = ["export", folder, "--to", "dense", "--out", dense, "--no-measure"]
    assert said(*arguments)[2]
    assert said("generate", dense, "the", "--temperature", "0")[2]


def test_a_mistake_needs_none(tmp_path):
    line = [sys.executable, "-c", LOADED, "generate", str(tmp_path), "the"]
    done = subprocess.run(line, capture_output=True, text=True)
    error, last = done.stderr.splitlines()
    assert "it has no config.json" in error
    assert last == "2 False"
