"""Several runs on one page, and side by side in a table."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from i3lm import __version__
from i3lm.errors import UserError
from i3lm.files import read_small, write_atomic
from i3lm.report import page as html
from i3lm.report.history import read_history
from i3lm.report.page import Run
from i3lm.units import format_bytes, format_duration

MOST_RUNS = 8  # as many colours as one can tell apart
HEAD = ("run", "preset", "steps", "tokens", "time", "tokens/s", "memory", "loss", "bits/char")


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read runs; UserError where a folder holds none."""
    paths = [Path(folder) for folder in dict.fromkeys(map(str, folders))]
    if len(paths) > MOST_RUNS:
        raise UserError(f"{len(paths)} runs are too many to tell apart; name at most {MOST_RUNS}")
    runs = []
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            history = read_history(path / "metrics.jsonl")
        except OSError as error:
            raise UserError(
                f"{path} holds no run ({error.strerror}); name folders that i3lm train wrote"
            ) from None
        if not history.points:
            raise UserError(f"{path}: its metrics.jsonl holds no step yet; train it first")
        runs.append(Run(name, history, _config(path)))
    return runs


def compare(folders: Sequence[str | Path], out: str | Path) -> list[dict[str, Any]]:
    """Write a page that overlays runs to `out`; return their figures, the best held-out first."""
    runs = open_runs(folders)
    figures = [_figures(run) for run in runs]
    best = sorted(figures, key=lambda row: row["held_out_bits_per_character"] or float("inf"))
    keys = "".join(
        f'<span><span class="key f{i}"></span>{html.escape(run.name)}</span>'
        for i, run in enumerate(runs)
    )
    names = sorted({name for run in runs for name in run.config})
    differing = [
        (name, *(html.words(run.config.get(name)) for run in runs))
        for name in names
        if len({json.dumps(run.config.get(name)) for run in runs}) > 1 and name != "out"
    ]
    talks = [
        (f"{run.name}, step {sample.step:,}", sample.prompt, sample.reply)
        for run in runs
        for sample in run.history.samples()[:2]
    ]
    text = html.page(
        f"{len(runs)} run" + "s" * (len(runs) > 1),
        f"i3lm {__version__}",
        runs,
        [
            f'<div class="axis">{keys}</div>{html.table(map(_row, best), HEAD)}',
            html.section("What differs", html.table(differing, ("", *(r.name for r in runs)))),
            html.section("What they said last", html.talks(talks)),
        ],
    )
    try:
        write_atomic(out, text)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}); choose another --out") from None
    return best


def rows(figures: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the figures in words, under HEAD."""
    return [_row(row) for row in figures]


def _figures(run: Run) -> dict[str, Any]:
    history = run.history
    last = history.last
    assert last is not None
    bits = history.evaluations[-1].bits if history.evaluations else None
    return {
        "run": run.name,
        "preset": run.config.get("preset"),
        "steps": last.step,
        "tokens": last.tokens,
        "seconds": history.seconds,
        "tokens_per_second": last.tokens / max(history.seconds, 1e-9),
        "peak_memory_bytes": int(history.peak),
        "loss": last.sums[0] / last.steps,
        "held_out_bits_per_character": bits,
    }


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    bits = row["held_out_bits_per_character"]
    return (
        row["run"],
        str(row["preset"] or "?"),
        f"{row['steps']:,}",
        f"{row['tokens']:,}",
        format_duration(row["seconds"]),
        f"{row['tokens_per_second']:,.0f}",
        format_bytes(row["peak_memory_bytes"]),
        f"{row['loss']:.3f}",
        "-" if bits is None else f"{bits:.3f}",
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest names that tell the folders apart."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        whole = [str(path.resolve()) for path in paths]
        common = os.path.commonpath(whole)
        names = [os.path.relpath(path, common) for path in whole]
    return names


def _config(run: Path) -> dict[str, Any]:
    """Return what run.json says, or nothing where it cannot be read."""
    try:
        config = json.loads(read_small(run / "run.json"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    config.pop("check", None)  # the file's own checksum
    return config
