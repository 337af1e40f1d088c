"""`i3lm generate`."""

from typing import Any

import click

from i3lm.cli.common import (
    GENERATION,
    device_option,
    json_option,
    note,
    sampling_options,
    text_or_stdin,
    write,
    write_json,
)
from i3lm.cli.help import Command


@click.command(
    "generate",
    cls=Command,
    short_help="Continue a text.",
    groups={"Generation": f"{GENERATION} stop"},
    example='i3lm generate my-model "Once upon a time" --max-new-tokens 60',
)
@click.argument("model", type=click.Path())
@click.argument("prompt", default="")
@click.option(
    "--max-new-tokens", metavar="N", type=int, default=128, show_default=True, help="At most N"
)
@sampling_options
@click.option("--stop", metavar="TEXT", multiple=True, help="End before TEXT; repeatable")
@device_option
@json_option
def command(
    model: str, prompt: str, device: str, as_json: bool, stop: tuple[str, ...], **settings: Any
) -> None:
    """Print the text with which the model in folder MODEL continues PROMPT.

    PROMPT - reads standard input; without one the model starts a text of its own.
    """
    prompt = text_or_stdin(prompt)
    notes: list[str] = []
    settings |= {"stop": stop, "notify": notes.append if as_json else note}
    text = _stream(model, prompt, device, settings)
    if as_json:
        result = {"prompt": prompt, "text": "".join(text), "tokens": text.tokens}
        write_json(result | {"finish_reason": text.finish_reason, "notes": notes})
        return
    for piece in text:
        write(piece)
    write("\n")


def _stream(model: str, prompt: str, device: str, settings: dict[str, Any]) -> Any:
    from i3lm import exported

    if exported.is_exported(model):
        return exported.stream(model, prompt, **settings)
    from i3lm.bare import answer_without_torch

    answer_without_torch(model, device)
    from i3lm.folder import load_folder
    from i3lm.generation import stream

    return stream(load_folder(model, device), prompt, **settings)
