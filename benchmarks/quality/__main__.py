"""Train contenders on equal tokens or time and compare what they learned: a table and a plot.

python -m benchmarks.quality i3lm gpt-adamw:1e-3 --train FILE --test FILE --minutes 10 --seeds 3
python -m benchmarks.quality i3lm nanogpt --train FILE --test-share 0.1 --minutes 3 --seeds 3

nanogpt is trained for the time that is given, nanogpt:2000 for so many iterations.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.quality import nanogpt
from benchmarks.quality.draw import draw, picture
from benchmarks.quality.one import arguments
from i3lm.errors import UserError

SETTINGS = (
    *("tokens", "minutes", "preset", "vocab_size", "context", "batch_tokens"),
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
    with tempfile.TemporaryDirectory() as folder:
        train, test = texts(options, Path(folder))
        text = ("--train", str(train), "--test", str(test))
        for seed in range(options.seeds):
            for contender in options.contenders:
                common.say(f"seed {seed}: {contender}")
                more = (*text, "--seed", str(seed))
                name, _, iterations = contender.partition(":")
                if name == nanogpt.NAME:
                    budget = ("--iterations", iterations) if iterations else ()
                    minutes = () if iterations else ("--minutes", str(options.minutes))
                    threads = ("--threads", str(options.threads)) if options.threads else ()
                    job = ("quality.nanogpt", *more, *budget, *minutes, *threads)
                else:
                    job = ("quality.one", contender, *flags, *more, "--corpus", f"{folder}/tokens")
                rows.append(common.in_child(*job))
    common.say("")
    return rows


def texts(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Return the files to train on and to test with; the second may be the end of the first."""
    if options.test:
        return Path(options.train), Path(options.test)
    text = Path(options.train).read_text(encoding="utf-8")
    cut = int(len(text) * (1 - options.test_share))
    paths = folder / "train.txt", folder / "test.txt"
    for path, part in zip(paths, (text[:cut], text[cut:]), strict=True):
        path.write_text(part, encoding="utf-8")
    return paths


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


def main() -> None:
    """Run, save, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contenders", nargs="+")
    arguments(parser)
    parser.add_argument("--train", required=True, help="text to train on")
    test = parser.add_mutually_exclusive_group(required=True)
    test.add_argument("--test", help="text to score ...")
    test.add_argument("--test-share", type=float, help="... or this share of --train, its end")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "quality.json")
    parser.add_argument("--plot", type=picture, help="draw the curves into this .png or .svg")
    options = parser.parse_args()
    if (options.tokens is None) == (options.minutes is None):
        parser.error("give --tokens or --minutes")
    setting = common.setting()
    rows = run(options)
    table = summary(rows)
    common.save({"benchmark": "quality", "summary": table, "runs": rows, **setting}, options.out)
    show(table)
    if options.plot:
        try:
            draw(rows, options.plot, ("seconds", "tokens"))
        except UserError as error:
            sys.exit(f"error: {error}; the runs are in {options.out}")


if __name__ == "__main__":
    main()
