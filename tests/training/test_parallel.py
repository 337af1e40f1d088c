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


def launch_cases(mode: str, sizes: tuple[int, ...], text: Path, folder: Path) -> dict[str, dict]:
    """Return the figures of all cases of `mode` by one process and each of `sizes`, each going on
    with the one before's, and by one again: by process, as "2-0"."""
    data = prepare(open_source(text), folder / "data", vocab_size=400, threads=1).folder
    parallel_cases.run(mode, data, folder / "1", None, Alone())
    before = folder / "1"
    for size in sizes:
        out = folder / str(size)
        child = torchrun(size, parallel_cases.__file__, mode, data, out, before)
        _, errors = child.communicate(timeout=240)
        assert child.returncode == 0, errors
        before = out
    resumed = parallel_cases.PLANS[mode].resumed
    parallel_cases.run(mode, data, folder / "back", before, Alone(), resumed)
    paths = folder.glob("*/losses-*.json")
    return {f"{p.parent.name}-{p.stem[-1]}": json.loads(p.read_text()) for p in paths}


@pytest.fixture(scope="module")
def losses(text_file, tmp_path_factory):
    return launch_cases("ddp", (2, 4), text_file, tmp_path_factory.mktemp("parallel"))


PLAN = parallel_cases.PLANS["ddp"]


def names(cases) -> list[str]:
    return ["-".join(map(str, case)) for case in cases]


def tolerance(name: str) -> float:
    """Of a loss: rounding at random takes the other neighbour where a sum's last bit differs."""
    _, states, weights, *_ = name.split("-")
    if weights != "32":
        return 5e-2
    return {"32": 1e-4, "8": 1e-2, "4": 3e-2}[states]


@pytest.mark.parametrize("name", names(PLAN.cases))
def test_any_number_of_processes_gives_the_same_losses(losses, name):
    one = losses["1-0"][name]["whole"]
    for size in ("2", "4"):
        assert losses[f"{size}-0"][name]["whole"] == pytest.approx(one, rel=tolerance(name))


@pytest.mark.parametrize(
    ("size", "name"),
    [(size, name) for size in ("2", "4", "back") for name in names(PLAN.resumed)],
)
def test_a_run_goes_on_with_another_number_of_processes(losses, name, size):
    """From 1 to 2, to 4, and from these to 1."""
    second = losses["1-0"][name]["whole"][PLAN.half :]
    assert losses[f"{size}-0"][name]["resumed"] == pytest.approx(second, rel=tolerance(name))


def test_the_commands_of_the_page_are_commands():
    """torchrun takes its part, and i3lm train the rest."""
    from torch.distributed.run import parse_args

    from i3lm.cli.train import command

    page = Path(__file__).parents[2] / "docs" / "parallel.md"
    lines = re.findall(r"^\$ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 7
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
    assert not names & {"i3lm.training.diloco", "i3lm.training.sharded"}
