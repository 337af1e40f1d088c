"""How long commands take, and chat to its first token, and its peak memory: each time in a process
of its own, chat also with torch."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import common
from benchmarks.decode import random_model
from i3lm.bare import WITH_TORCH
from i3lm.folder import save_folder
from i3lm.tokenizer.rule import FIRST_CHUNK

NAME = "startup"
FIRST_TOKEN, WITH_ALL = "chat_first_token_seconds", "chat_first_token_with_torch_seconds"
TARGETS = {"help_seconds": 0.25, "info_seconds": 0.5, FIRST_TOKEN: 3.0}
TELLING = """import sys
from i3lm.__main__ import main
code = main(sys.argv[1:])
from i3lm.training.hardware import resident_bytes
print(resident_bytes()[1], file=sys.stderr)
sys.exit(code)"""


def run(*, preset: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure; return what the JSON holds: seconds, the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = random_model(preset)
        with torch.no_grad():  # the first token of an untrained model must be a piece of text
            loaded.network.lm_head.bias[:FIRST_CHUNK] = -100.0
        save_folder(folder, loaded.network, loaded.tokenizer)
        chat = ["chat", folder, "-p", "Who are you?"]
        figures = common.interleave(
            {
                "help_seconds": lambda: start(["--help"], threads, whole=True),
                "info_seconds": lambda: start(["info", preset], threads, whole=True),
                FIRST_TOKEN: lambda: start(chat, threads, whole=False),
                WITH_ALL: lambda: start(chat, threads, whole=False, with_torch=True),
            },
            rounds,
        )
        peaks = {
            "chat": peak(chat, threads, with_torch=False),
            "chat with torch": peak(chat, threads, with_torch=True),
        }
    return {
        **{name: spread["median"] for name, spread in figures.items()},
        "targets": TARGETS,
        "peak_bytes": peaks,
        "preset": preset,
        "threads": threads,
        "rounds": rounds,
        "seconds": figures,
    }


def surroundings(threads: int, with_torch: bool) -> dict[str, str]:
    """Return the environment of a command."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), WITH_TORCH: str(int(with_torch))}


def peak(arguments: Sequence[str], threads: int, *, with_torch: bool) -> int:
    """Return the peak memory of `i3lm ARGUMENTS` in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", TELLING, *arguments],
        capture_output=True,
        text=True,
        env=surroundings(threads, with_torch),
    )
    if done.returncode:
        raise RuntimeError(f"i3lm {' '.join(arguments)} failed: {done.stderr}")
    return int(done.stderr.split()[-1])


def start(
    arguments: Sequence[str], threads: int, *, whole: bool, with_torch: bool = False
) -> float:
    """Return the seconds of `i3lm ARGUMENTS` to its end or else to its first byte of output."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "i3lm", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=surroundings(threads, with_torch),
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        _, error = process.communicate()
    if not first or process.returncode:
        raise RuntimeError(f"i3lm {' '.join(arguments)} failed: {error.decode()}")
    return time.perf_counter() - begin if whole else seconds


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    common.print_table(
        "seconds",
        ["command", "median", "spread", "target"],
        [
            [
                name.removesuffix("_seconds"),
                *common.cells(figures, 1, 3),
                f"{TARGETS[name]:.2f}" if name in TARGETS else "",
            ]
            for name, figures in result["seconds"].items()
        ],
    )
    for name, size in result["peak_bytes"].items():
        print(f"{name}: {size / 1e6:.0f} MB at its peak")
