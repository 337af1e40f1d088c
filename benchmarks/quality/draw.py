"""Draw the learning curves of runs that were made before, as a .png or .svg.

python -m benchmarks.quality.draw benchmarks/results/quality_half_hour.json --plot curves.svg

A file is what `benchmarks.quality` saves, or lines that `benchmarks.quality.one` prints.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from i3lm.errors import UserError

# What a curve can be drawn over: how much of it is one, and its name.
UNITS = {
    "seconds": (60, "minutes of training"),
    "tokens": (1e6, "million tokens"),
    "share": (0.01, "% of the run"),
}


def draw(rows: list[dict[str, Any]], path: Path, over: tuple[str, ...]) -> None:
    """Draw bits per character over what UNITS has, a line a run, a colour a contender.

    The end of a curve is left out: it is of the whole text, what comes before of its first part.
    Runs without a curve, as nanogpt's, are left out. Raises UserError where matplotlib is missing,
    or a curve does not have what it is to be drawn over.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'i3lm[bench]'") from None
    rows = [row for row in rows if row["curve"]]
    names = [row.get("label", row["contender"]) for row in rows]
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(names))}
    figure = Figure(figsize=(5 * len(over), 4), layout="constrained")
    axes = figure.subplots(1, len(over), sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, over, strict=True):
        unit, label = UNITS[key]
        told = set[str]()
        for row, name in zip(rows, names, strict=True):
            *curve, end = row["curve"]
            if not all(key == "share" or key in p for p in curve):
                raise UserError(f"the curve of {name} has no {key}; draw it --over tokens")
            x = [p["tokens"] / end["tokens"] if key == "share" else p[key] for p in curve]
            y = [p["bits"] for p in curve]
            style = {"marker": ".", "linewidth": 1.2, "color": colours[name]}
            axis.plot([v / unit for v in x], y, label=None if name in told else name, **style)
            told.add(name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bits per character")
    if rows:
        axes[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def picture(name: str) -> Path:
    """Return the path of a picture; argparse's error where it is neither .png nor .svg."""
    if not name.endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"{name} must end in .png or .svg")
    return Path(name)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the runs in a file; UserError where it has none."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = [json.loads(text)] if "\n{" not in text else map(json.loads, text.splitlines())
        rows = [row for part in whole for row in part.get("runs", [part])]
        if rows and all(row["contender"] and isinstance(row["curve"], list) for row in rows):
            return rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path} has no runs; save them by python -m benchmarks.quality --out FILE")


def main() -> None:
    """Draw what the files have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--plot", type=picture, required=True, help="a .png or .svg")
    parser.add_argument("--over", nargs="+", choices=UNITS, default=["tokens", "share"])
    options = parser.parse_args()
    try:
        rows = [row for path in options.files for row in read(path)]
        draw(rows, options.plot, tuple(options.over))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
