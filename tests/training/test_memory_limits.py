"""Memory that the system refuses, in processes of their own with real limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from i3lm.native import multiplies_bfloat16
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.metrics import read_metrics

# Trains with RLIMIT_AS at the process's own size and some MB more, set after a step.
LIMITED = """
import resource, sys, json
from i3lm.training.config import Every, TrainConfig
from i3lm.training.run import train
import i3lm.training.loop as loop

out, text, spare, when, large = sys.argv[1:]
def limit(*_):
    pages = int(open("/proc/self/statm").read().split()[0])
    bound = pages * resource.getpagesize() + (int(spare) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
def listener(event, row):
    if event == "note":
        print(row["text"], flush=True)
    if event == "step" and row["step"] == int(when):
        limit()
if when == "0":
    limit()
sequences = 32 if large == "large" else 4
config = TrainConfig(data=(text,), out=out, preset="i3-mini", vocab_size=400, context=256,
    batch_tokens=256 * sequences, microbatch=2, steps=4, threads=1, precision="fp32",
    gradient_checkpointing="none", eval_every=Every(steps=100), checkpoint_every=Every(steps=1))
if when != "0":
    # The run begins with two sequences at once and takes all from step 2 on, as a leak would.
    step = loop.Trainer.step
    def more(trainer, progress):
        if trainer.counters.step == int(when) and not getattr(trainer, "done", False):
            trainer.microbatch, trainer.done = sequences, True
        return step(trainer, progress)
    loop.Trainer.step = more
from i3lm.errors import UserError
try:
    train(config, listener=listener)
except UserError as error:
    print("error:", error)
    sys.exit(2)
"""


def limited(out: Path, text: Path, spare: int, when: int, size: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-c", LIMITED, str(out), str(text), str(spare), str(when), size]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(line, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS acts on Linux")
def test_memory_that_runs_out_makes_the_microbatch_smaller(tmp_path, text_file):
    """The address space is limited after step 2: the step is taken in smaller pieces."""
    run = tmp_path / "run"
    done = limited(run, text_file, 90, 2, "large")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "gives no more memory; it goes on with a microbatch of" in done.stdout
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert list_checkpoints(run)[0].name == "step-00000004"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS acts on Linux")
def test_a_run_beyond_the_address_space_is_refused_before_it_starts(tmp_path, text_file):
    done = limited(tmp_path / "run", text_file, 20, 0, "small")
    assert done.returncode == 2, done.stdout + done.stderr[-2000:]
    assert "error:" in done.stdout
    assert done.stdout.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def memory_group(tmp_path):
    """A cgroup with a memory limit, `group(bytes)`; where we may make none, the test is skipped."""
    made: list[Path] = []

    def group(size: int) -> Path:
        one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        top, name = (one, "memory.limit_in_bytes") if one.is_dir() else (two, "memory.max")
        folder = top / f"i3lm-test-{os.getpid()}"
        try:
            folder.mkdir()
            made.append(folder)
            (folder / name).write_text(str(size))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here ({error.strerror})")
        return folder

    yield group
    for folder in made:
        folder.rmdir()


def in_group(folder: Path, *arguments) -> subprocess.CompletedProcess:
    enter = "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid())); "
    enter += "os.execv(sys.executable, [sys.executable, '-m', 'i3lm', *sys.argv[2:]])"
    line = [sys.executable, "-c", enter, str(folder), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


def test_the_limit_of_a_cgroup_is_kept(memory_group, tmp_path, text_file):
    """A run that would be killed in it is refused; one that fits with less is planned for less."""
    folder = memory_group(440 << 20)
    out = ("--data", text_file, "--out", tmp_path / "run", "--steps", 2, "--threads", 1)
    done = in_group(folder, "train", *out, "--preset", "i3-22m", "--precision", "fp32")
    assert done.returncode == 2, done.stderr
    assert "this model takes at least" in done.stderr
    assert done.stderr.count("\n") == 1
    done = in_group(folder, "train", *out, "--preset", "i3-tiny")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not multiplies_bfloat16(), reason="no processor with AVX512-BF16: torch stays")
def test_the_default_model_trains_within_320_mb(memory_group, tmp_path, text_file):
    folder = memory_group(320 * 10**6)
    out = ("--data", text_file, "--out", tmp_path / "run", "--steps", 2, "--threads", 1)
    done = in_group(folder, "train", *out, "--preset", "i3-12m")
    assert done.returncode == 0, done.stderr
