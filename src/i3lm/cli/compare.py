"""`i3lm compare`."""

import os

import click

from i3lm.cli.common import json_option, note, write_json
from i3lm.cli.help import Command


@click.command(
    "compare",
    cls=Command,
    short_help="Overlay the curves of several runs.",
    example="i3lm compare run-a run-b --out compare.html",
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out", metavar="FILE", type=click.Path(dir_okay=False), default="compare.html",
    show_default=True, help="The page to write",
)  # fmt: skip
@json_option
def command(runs: tuple[str, ...], out: str, as_json: bool) -> None:
    """Write a page with the curves of the runs in these folders, and print their figures.

    The run that predicts held-out text best comes first.
    """
    from i3lm.report.compare import HEAD, compare, rows

    figures = compare(runs, out)
    if as_json:
        write_json({"page": os.path.abspath(out), "runs": figures})
        return
    lines = [HEAD, *rows(figures)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    for line in lines:
        cells = [f"{line[0]:{widths[0]}}", f"{line[1]:{widths[1]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(line[2:], widths[2:], strict=True)]
        click.echo("  ".join(cells).rstrip())
    note(f"open {out} in a browser")
