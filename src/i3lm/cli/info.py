"""`i3lm info`."""

from typing import Any

import click

from i3lm.cli.common import json_option, preset_names, words, write_json
from i3lm.cli.help import Command


@click.command(
    "info",
    cls=Command,
    short_help="What a preset or a model is and costs.",
    example="i3lm info i3-12m",
)
@click.argument("model", required=False, shell_complete=words(preset_names))
@json_option
def command(model: str | None, as_json: bool) -> None:
    """Tell the parameters, the work and the memory of MODEL: a preset or a model folder.

    Without MODEL, list the presets.
    """
    from i3lm.model_info import info
    from i3lm.presets import PRESETS

    if model is not None:
        result = info(model)
        write_json(result) if as_json else _print(result)
        return
    presets = [info(name) for name in PRESETS]
    if as_json:
        write_json(presets)
    else:
        for preset in presets:
            click.echo(f"{preset['model']:9} {preset['parameters']:>11,}  {preset['about']}")


def _print(result: dict[str, Any]) -> None:
    from i3lm.units import format_bytes

    memory = result["memory"]
    states = ", ".join(f"{name} {format_bytes(n)}" for name, n in memory["optimizer"].items())
    lines = [f"{result['model']}: {result['parameters']:,} parameters"]
    lines += [f"  {part:20}{n:>12,}" for part, n in result["parameters_by_part"].items()]
    lines += [
        f"window        {result['window']:,} tokens",
        f"vocabulary    {result['vocabulary']:,} rows"
        + (f", {result['tokens']:,} of them used" if "tokens" in result else ""),
        f"training      {result['flops_per_token'] / 1e6:,.1f} million FLOPs a token",
        f"weights       {format_bytes(memory['weights'])} in float32",
        f"gradients     {format_bytes(memory['gradients'])}",
        f"optimizer     {states}",
    ]
    if "weights_file" in result:
        stored = result["weights_file"]
        lines.append(
            f"stored        {format_bytes(stored['bytes'])} ({', '.join(stored['types'])})"
        )
    for name, value in (result.get("run") or {}).items():
        if isinstance(value, str | int | float):
            lines.append(f"  {name.replace('_', ' '):28}{_figure(value)}")
    click.echo("\n".join(lines))


def _figure(value: str | int | float) -> str:
    return value if isinstance(value, str) else f"{value:,}"
