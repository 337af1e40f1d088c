"""Several processes are one run: the same losses, and checkpoints that any number goes on with."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import parallel_cases
import pytest

from i3lm.data import open_source, prepare
from i3lm.training.parallel import Alone


def torchrun(size: int, *words, **more) -> subprocess.Popen:
    """Begin a launch of `size` processes of one thread each."""
    python = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*python, *map(str, words)], stderr=subprocess.PIPE, text=True, env=environment, **more
    )


@pytest.fixture(scope="module")
def losses(text_file, tmp_path_factory):
    """The losses of all cases by 1, 2 and 4 processes, each going on with the one before's,
    and by one again."""
    folder = tmp_path_factory.mktemp("parallel")
    data = prepare(open_source(text_file), folder / "data", vocab_size=400, threads=1).folder
    parallel_cases.run(data, folder / "1", None, Alone())
    before, found = folder / "1", {}
    for size in (2, 4):
        out = folder / str(size)
        child = torchrun(size, parallel_cases.__file__, data, out, before)
        _, errors = child.communicate(timeout=240)
        assert child.returncode == 0, errors
        before = out
    parallel_cases.run(data, folder / "back", before, Alone(), parallel_cases.RESUMED)
    for path in [*folder.glob("*/losses.json")]:
        found[path.parent.name] = json.loads(path.read_text())
    return found


def names(cases) -> list[str]:
    return ["-".join(map(str, case)) for case in cases]


def tolerance(name: str) -> float:
    """Of a loss: rounding at random takes the other neighbour where a sum's last bit differs."""
    return 1e-4 if name.endswith("-32-32") else 1e-2 if name.endswith("-32") else 5e-2


@pytest.mark.parametrize("name", names(parallel_cases.CASES))
def test_any_number_of_processes_gives_the_same_losses(losses, name):
    one = losses["1"][name]["whole"]
    for size in ("2", "4"):
        assert losses[size][name]["whole"] == pytest.approx(one, rel=tolerance(name))


@pytest.mark.parametrize(
    ("size", "name"),
    [(size, name) for size in ("2", "4", "back") for name in names(parallel_cases.RESUMED)],
)
def test_a_run_goes_on_with_another_number_of_processes(losses, name, size):
    """From 1 to 2, to 4, and from these to 1."""
    second = losses["1"][name]["whole"][parallel_cases.HALF :]
    assert losses[size][name]["resumed"] == pytest.approx(second, rel=tolerance(name))


def test_the_commands_of_the_page_are_commands():
    """torchrun takes its part, and i3lm train the rest."""
    from torch.distributed.run import parse_args

    from i3lm.cli.train import command

    page = Path(__file__).parents[2] / "docs" / "parallel.md"
    lines = re.findall(r"^\$ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line)
        if words[0] == "torchrun":
            launch = parse_args(words[1:])
            assert launch.module
            assert launch.training_script == "i3lm"
            words = ["i3lm", *launch.training_script_args]
        assert words[:2] == ["i3lm", "train"]
        command.make_context("train", words[2:])


def test_a_lone_process_imports_no_more_of_distributed_training_than_torch_does():
    def loaded(code: str) -> set[str]:
        script = f"import sys\n{code}\nprint(*sys.modules)"
        line = [sys.executable, "-c", script]
        return set(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split())

    names = loaded("import torch, i3lm.training.run") - loaded("import torch")
    assert not {n for n in names if n.startswith(("torch.distributed", "torch._dynamo"))}
    assert "i3lm.training.diloco" not in names
