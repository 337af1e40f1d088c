"""`i3lm plan`."""

from typing import Any

import click

from i3lm.cli.common import json_option, preset_names, words, write_json
from i3lm.cli.help import Command


@click.command(
    "plan",
    cls=Command,
    short_help="What a run would need, and how it would fit.",
    groups={
        "Model": "context vocab_size",
        "Optimisation": "optimizer batch_tokens",
        "Memory": "microbatch gradient_checkpointing state_bits weight_bits qat_bits precision",
    },
    example="i3lm plan --preset i3-12m --memory 450MB",
)
@click.option(
    "--preset", metavar="NAME", default="i3-12m", show_default=True,
    shell_complete=words(preset_names), help="The model's size",
)  # fmt: skip
@click.option("--memory", metavar="SIZE", help="The most it may take: 400MB, 1.5GB")
@click.option("--context", metavar="TOKENS", type=int, help="Window  [default: the preset's]")
@click.option(
    "--vocab-size", metavar="TOKENS", type=int, help="Vocabulary  [default: the preset's]"
)
@click.option("--batch-tokens", metavar="TOKENS", type=int, help="Of a step  [default: 1024]")
@click.option("--microbatch", metavar="N", type=int, help="Sequences at once  [default: chosen]")
@click.option(
    "--gradient-checkpointing", metavar="MODE", shell_complete=words("none selective full"),
    help="none, selective or full  [default: chosen]",
)  # fmt: skip
@click.option(
    "--optimizer", metavar="NAME", shell_complete=words("muon adamw lion"),
    help="muon, adamw or lion  [default: muon]",
)  # fmt: skip
@click.option("--state-bits", metavar="BITS", type=int, help="32, 8 or 4  [default: chosen]")
@click.option("--weight-bits", metavar="BITS", type=int, help="32, 8 or 4  [default: 32]")
@click.option("--qat-bits", metavar="BITS", type=int, help="8 or 4: train for i3lm export")
@click.option(
    "--precision", metavar="NAME", shell_complete=words("auto fp32 bf16"),
    help="auto, fp32 or bf16  [default: auto]",
)  # fmt: skip
@json_option
def command(as_json: bool, memory: str | None, **flags: Any) -> None:
    """Choose as `i3lm train` with the same flags would, and tell what memory goes where."""
    from i3lm.units import parse_size

    settings = {name: value for name, value in flags.items() if value is not None}
    if memory is not None:
        settings["memory"] = parse_size(memory)
    from i3lm.bare import without_torch
    from i3lm.training.config import TrainConfig

    # So that what the process takes, and multiplies, is what a run's does.
    precision = without_torch(TrainConfig(**settings)).precision
    from i3lm.training.planning import preview

    result = preview({**settings, "precision": precision})
    write_json(result) if as_json else _print(result)


def _print(result: dict[str, Any]) -> None:
    from i3lm.units import format_bytes

    for name, value in result["choice"].items():
        click.echo(f"{name.replace('_', ' '):24}{value}")
    click.echo()
    for name, size in result["memory"].items():
        click.echo(f"{name:24}{format_bytes(size):>9}")
