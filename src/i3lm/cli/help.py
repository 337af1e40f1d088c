"""Help that fits a screen: options in groups, one line each, and an example.

    @click.command("train", cls=Command, example="i3lm train --time 10m", groups={
        "Model": "preset context", ...
    })

`groups` names parameters; those that it leaves out come first, under "Options". A default stands
in brackets at the end of an option's help: `[10m]`.
"""

import os
from collections.abc import Mapping
from typing import Any

import click

COLUMN = 28  # of an option's names; longer ones take a line of their own


class Command(click.Command):
    """A command with groups of options and an example."""

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, str] | None = None,
        example: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.groups = {title: names.split() for title, names in (groups or {}).items()}
        self.example = example
        known = {parameter.name for parameter in self.params}
        unknown = {name for names in self.groups.values() for name in names} - known
        assert not unknown, f"{self.name} groups what it has not: {unknown}"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, then each group of options."""
        if self.example:
            formatter.write_paragraph()
            formatter.write_text(f"Example: {self.example}")
        records = {
            str(parameter.name): record
            for parameter in self.get_params(ctx)
            if (record := parameter.get_help_record(ctx)) is not None and record[1]
        }
        grouped = {name for names in self.groups.values() for name in names}
        own = {parameter.name for parameter in self.params}
        first = [name for name in records if name not in grouped]
        groups = {"Options": first, **{title: [*names] for title, names in self.groups.items()}}
        if self.groups and not own.intersection(first):  # no group for --help alone
            groups["Options"] = []
            groups[next(reversed(groups))] += first
        column = min(COLUMN, max(len(names) for names, _ in records.values()))
        formatter.write_paragraph()
        for title, members in groups.items():
            rows = [records[name] for name in members if name in records]
            if rows:
                formatter.write(f"{click.style(title, bold=True)}:\n")
            for names, text in rows:
                _write_option(formatter, names, _brief(text), column)


def _write_option(formatter: click.HelpFormatter, names: str, text: str, column: int) -> None:
    """Write an option and its help on a line, or on as many as the width asks for."""
    whole = f"  {names:{column}}  {text}"
    if len(whole) <= formatter.width:
        formatter.write(f"{whole.rstrip()}\n")
        return
    if len(names) > column:
        formatter.write(f"  {names}\n")
        names = ""
    indent = column + 4
    if formatter.width - indent < 20:  # a narrow terminal: the help stands below
        formatter.write(f"  {names}\n" if names else "")
        names, indent = "", 6
    lines = click.wrap_text(text, max(10, formatter.width - indent)).splitlines()
    for i, line in enumerate(lines):
        start = f"  {names}" if i == 0 else ""
        formatter.write(f"{start:{indent}}{line}\n")


def _brief(text: str) -> str:
    """Return an option's help with its default as `[10m]`."""
    return text.replace("  [default: ", " [").replace("[default: ", "[")


def colour() -> bool | None:
    """Return whether to colour: False where the user or the terminal forbids it, else click's."""
    forbidden = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return False if forbidden else None
