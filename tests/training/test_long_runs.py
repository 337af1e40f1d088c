"""Memory over many steps, and in a group whose memory the system limits."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import growth

from i3lm import bare
from i3lm.native import multiplies_bfloat16

LIMIT = 400_000_000
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@linux
@pytest.mark.parametrize("preset", ["i3-tiny", "i3-mini"])  # the second one without torch
def test_memory_does_not_grow_with_the_steps(preset):
    """Evaluations and checkpoints included; 10,000 steps: python -m benchmarks.growth."""
    found = growth.run(preset, 201)
    assert found["steps"] == 201
    bare_carries = multiplies_bfloat16() and not bare.wanted()
    assert found["torch"] == (preset == "i3-tiny" or not bare_carries)
    assert found["late_bytes"] <= 1.02 * found["early_bytes"]


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A cgroup of our own with LIMIT bytes, version 2 or 1."""
    name = f"i3lm-test-{os.getpid()}"
    group, limit = Path("/sys/fs/cgroup") / name, "memory.max"
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        group, limit = Path("/sys/fs/cgroup/memory") / name, "memory.limit_in_bytes"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here ({error.strerror})")
    try:
        try:
            (group / limit).write_text(str(LIMIT))
        except OSError as error:
            pytest.skip(f"a cgroup's memory cannot be limited here ({error.strerror})")
        yield group
    finally:
        group.rmdir()


def test_a_run_finishes_in_a_group_of_little_memory(tmp_path, limited_group):
    """The system would kill what takes more."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {n % 97} birds saw {n * 31 % 1009} houses\n" for n in range(900)))
    join = f'echo $$ > "{limited_group}/cgroup.procs" && exec "$@"'
    command = [
        *(sys.executable, "-m", "i3lm", "train", "--preset", "i3-small", "--data", str(text)),
        *("--out", str(tmp_path / "run"), "--steps", "2", "--context", "64", "--threads", "1"),
        *("--batch-tokens", "256", "--optimizer", "adamw", "--quiet"),
        *("--memory", f"{LIMIT // 10**6 - 1}MB"),  # the system rounds its own down to pages
    ]
    done = subprocess.run(["sh", "-c", join, "sh", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
