"""`i3lm plan`."""

from typing import Any

import click

from i3lm.cli.common import json_option, write_json


@click.command("plan", short_help="What a run would need, and how it would fit.")
@click.option("--preset", default="i3-12m", show_default=True, help="The model's size.")
@click.option("--memory", metavar="SIZE", help="The most it may take: 400MB, 1.5GB.")
@click.option("--context", type=int, help="Tokens of the window.  [default: the preset's]")
@click.option("--vocab-size", type=int, help="Tokens of the vocabulary.")
@click.option("--batch-tokens", type=int, help="Tokens of a step.  [default: 1024]")
@click.option("--microbatch", type=int, help="Sequences at once.  [default: chosen]")
@click.option("--gradient-checkpointing", help="none, selective or full.  [default: chosen]")
@click.option("--optimizer", help="muon, adamw or lion.  [default: muon]")
@click.option("--state-bits", type=int, help="32, 8 or 4.  [default: chosen]")
@click.option("--weight-bits", type=int, help="32, 8 or 4.  [default: 32]")
@click.option("--qat-bits", type=int, help="8 or 4: float32 matrices that are seen rounded.")
@click.option("--precision", help="auto, fp32 or bf16.  [default: auto]")
@json_option
def command(as_json: bool, memory: str | None, **flags: Any) -> None:
    """Choose as `i3lm train` with the same flags would, and tell what memory goes where.

    Example: i3lm plan --preset i3-12m --memory 450MB
    """
    from i3lm.units import parse_size

    settings = {name: value for name, value in flags.items() if value is not None}
    if memory is not None:
        settings["memory"] = parse_size(memory)
    from i3lm.training.planning import preview

    result = preview(settings)
    write_json(result) if as_json else _print(result)


def _print(result: dict[str, Any]) -> None:
    from i3lm.units import format_bytes

    for name, value in result["choice"].items():
        click.echo(f"{name.replace('_', ' '):24}{value}")
    click.echo()
    for name, size in result["memory"].items():
        click.echo(f"{name:24}{format_bytes(size):>9}")
