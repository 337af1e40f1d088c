"""What several commands share: options, standard input, output for people and for scripts."""

import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from i3lm.errors import UserError
from i3lm.presets import TEMPERATURE, TOP_P

Command = TypeVar("Command", bound=Callable)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script")
device_option = click.option(
    "--device", metavar="NAME", default="cpu", help="cpu, cuda, mps, ...  [default: cpu]"
)
GENERATION = "max_new_tokens temperature top_k top_p seed"  # for `cli.help.Command`


def words(known: str | Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """Return what completes an option's value in the shell: these words."""

    def complete(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
        names = known.split() if isinstance(known, str) else known()
        return [name for name in names if name.startswith(begun)]

    return complete


def preset_names() -> list[str]:
    """Return the names of all presets."""
    from i3lm.presets import PRESETS

    return list(PRESETS)


def sampling_options(command: Command) -> Command:
    """Add --temperature, --top-k, --top-p, --seed."""
    for option in (
        click.option("--seed", metavar="N", type=int, help="The same seed gives the same text"),
        click.option(
            "--top-p", metavar="SHARE", type=float, default=TOP_P, show_default=True,
            help="Draw among the likeliest that together reach SHARE",
        ),
        click.option("--top-k", metavar="N", type=int, help="Draw among the N likeliest tokens"),
        click.option(
            "--temperature", metavar="NUMBER", type=float, default=TEMPERATURE, show_default=True,
            help="0 takes the likeliest token; more is more varied",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def text_or_stdin(text: str) -> str:
    """Return `text`, or what stands on standard input when it is `-`, without the last line end."""
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError("standard input is not UTF-8; convert it (iconv -t UTF-8)") from error


def write(text: str) -> None:
    """Print a piece of a model's text at once; control characters cannot reach a terminal."""
    if sys.stdout.isatty():
        text = _CONTROL.sub("�", text)
    click.echo(text, nl=False)


def write_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """Tell the user something on standard error."""
    click.echo(f"note: {text}", err=True)
