"""How long commands take, and chat to its first token: each time in a process of its own."""

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
from i3lm.folder import save_folder
from i3lm.tokenizer.rule import FIRST_CHUNK

NAME = "startup"
FIRST_TOKEN = "chat_first_token_seconds"
TARGETS = {"help_seconds": 0.25, "info_seconds": 0.5, FIRST_TOKEN: 3.0}


def run(*, preset: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure; return what the JSON holds: seconds, the median of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = random_model(preset)
        with torch.no_grad():  # the first token of an untrained model must be a piece of text
            loaded.network.lm_head.bias[:FIRST_CHUNK] = -100.0
        save_folder(folder, loaded.network, loaded.tokenizer)
        commands = {
            "help_seconds": ["--help"],
            "info_seconds": ["info", preset],
            FIRST_TOKEN: ["chat", folder, "-p", "Who are you?"],
        }
        figures = common.interleave(
            {
                name: lambda a=arguments, whole=name != FIRST_TOKEN: start(a, threads, whole=whole)
                for name, arguments in commands.items()
            },
            rounds,
        )
    return {
        **{name: spread["median"] for name, spread in figures.items()},
        "targets": TARGETS,
        "preset": preset,
        "threads": threads,
        "rounds": rounds,
        "seconds": figures,
    }


def start(arguments: Sequence[str], threads: int, *, whole: bool) -> float:
    """Return the seconds of `i3lm ARGUMENTS` to its end or else to its first byte of output."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "i3lm", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
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
            [name.removesuffix("_seconds"), *common.cells(figures, 1, 3), f"{TARGETS[name]:.2f}"]
            for name, figures in result["seconds"].items()
        ],
    )
