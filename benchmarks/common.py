"""What every benchmark shares: interleaved rounds, the machine, tables, result files."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import WITHOUT_TORCH
from i3lm import bare
from i3lm.errors import UserError
from i3lm.files import write_atomic
from i3lm.native import multiplies_bfloat16

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("i3lm", "torch", "transformers", "tokenizers", "tiktoken", "numpy")
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")

Contender = Callable[[], float]


def interleave(contenders: dict[str, Contender], rounds: int) -> dict[str, dict[str, float]]:
    """Let all contenders take turns, `rounds` times after a round that does not count.

    A contender does its work and returns its rate, or its time. The result has, for each, the
    `median`, `min` and `max` over the rounds. Taking turns makes figures comparable on a machine
    that is busier at one moment than at another.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            say(f"round {number} of {rounds}: {name}")
            figures[name].append(measure())
    say("")
    return {name: spread(values[1:]) for name, values in figures.items()}


def rate_of(work: Callable[[], float]) -> float:
    """Do some work and return how much of it (as it says itself) was done a second."""
    begin = time.perf_counter()
    amount = work()
    return amount / (time.perf_counter() - begin)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return the median, the least and the greatest of some figures."""
    values = sorted(values)
    return {"median": statistics.median(values), "min": values[0], "max": values[-1]}


def say(text: str) -> None:
    """Tell on standard error what is being done, on one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def in_child(
    module: str, *arguments: str, threads: int | None = None, without_torch: bool = False
) -> dict[str, Any]:
    """Run `python -m benchmarks.MODULE ARGUMENTS` and return the JSON that it prints last."""
    environment = dict(os.environ)
    if without_torch and multiplies_bfloat16() and not bare.wanted():  # as `i3lm train` does
        environment |= {WITHOUT_TORCH: "1", "OPENBLAS_NUM_THREADS": "1"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{module} {' '.join(arguments)} failed: {last}; run it to see more")
    return json.loads(done.stdout.splitlines()[-1])


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Describe the processor and how busy it is."""
    name, flags = platform.processor(), set[str]()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "cores_allowed": cores(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def setting() -> dict[str, Any]:
    """Return what a figure depends on besides the code measured: machine, versions, commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions,
    }


def commit() -> str | None:
    """Return the commit of the checkout, with `+` where tracked files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def save(result: dict[str, Any], path: Path) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; the first column is text, the others figures."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def cells(figures: dict[str, float], unit: float = 1.0, digits: int = 0) -> list[str]:
    """Return the cells `median` and `min to max` of figures, divided by `unit`."""
    low, middle, high = (figures[key] / unit for key in ("min", "median", "max"))
    return [f"{middle:,.{digits}f}", f"{low:,.{digits}f} to {high:,.{digits}f}"]
