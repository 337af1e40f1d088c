"""Train contenders on equal tokens or time and compare what they learned: a table and a plot.

python -m benchmarks.quality i3lm gpt-adamw:1e-3 --train FILE --test FILE --minutes 10 --seeds 3
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.quality.one import arguments
from i3lm.errors import UserError

SETTINGS = (
    *("train", "test", "tokens", "minutes", "preset", "vocab_size", "context", "batch_tokens"),
    *("documents", "test_characters", "threads"),
)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every contender with every seed, taking turns, each in a process of its own."""
    given = {name: getattr(options, name) for name in SETTINGS}
    flags = [
        part
        for name, value in given.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    rows = []
    with tempfile.TemporaryDirectory() as corpus:
        for seed in range(options.seeds):
            for contender in options.contenders:
                common.say(f"seed {seed}: {contender}")
                more = ("--seed", str(seed), "--corpus", corpus)
                rows.append(common.in_child("quality.one", contender, *flags, *more))
    common.say("")
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a contender: means over its seeds, and the spread of the bits."""
    result = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        bits = [row["bits_per_character"] for row in mine]
        mean = {
            key: statistics.fmean(row[key] for row in mine)
            for key in ("tokens", "seconds", "tokens_per_second", "peak_bytes")
        }
        result.append(
            {"contender": name, "bits_per_character": common.spread(bits)}
            | {"mean_bits_per_character": statistics.fmean(bits), "seeds": len(mine), **mean}
        )
    return result


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    common.print_table(
        "bits per character",
        ["contender", "mean", "least to most", "tokens", "tokens/s", "peak MB"],
        [
            [
                row["contender"],
                f"{row['mean_bits_per_character']:.3f}",
                "{min:.3f} to {max:.3f}".format(**row["bits_per_character"]),
                f"{row['tokens']:,.0f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['peak_bytes'] / 1e6:,.0f}",
            ]
            for row in rows
        ],
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw bits per character over seconds and over tokens, a line a run."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'i3lm[bench]'") from None
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    units = (("seconds", 60, "minutes of training"), ("tokens", 1e6, "million tokens"))
    for axis, (key, unit, label) in zip(axes, units, strict=True):
        for row in rows:
            curve = row["curve"][:-1]  # the last point is of the whole text, not its first part
            number = names.index(row["contender"])
            text = row["contender"] if row["seed"] == 0 else None
            values = [p[key] / unit for p in curve], [p["bits"] for p in curve]
            axis.plot(*values, color=f"C{number}", label=text, marker=".", linewidth=1.2)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bits per character")
    axes[1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run, save, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contenders", nargs="+")
    arguments(parser)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "quality.json")
    parser.add_argument("--plot", type=Path, help="draw the curves into this .png or .svg")
    options = parser.parse_args()
    if (options.tokens is None) == (options.minutes is None):
        parser.error("give --tokens or --minutes")
    setting = common.setting()
    rows = run(options)
    table = summary(rows)
    common.save({"benchmark": "quality", "summary": table, "runs": rows, **setting}, options.out)
    show(table)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
