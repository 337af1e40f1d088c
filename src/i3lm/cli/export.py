"""`i3lm export`."""

from typing import Any

import click

from i3lm.cli.common import json_option, note, write_json
from i3lm.cli.help import Command


@click.command(
    "export",
    cls=Command,
    short_help="Write a model in another form: ONNX, ExecuTorch, few bits, dense.",
    example="i3lm export my-model --to int4 --out my-model-4bit",
)
@click.argument("model", type=click.Path())
@click.option(
    "--to", required=True, type=click.Choice(["onnx", "executorch", "int8", "int4", "dense"]),
    help="onnx: graphs for onnxruntime; executorch: a program for phones; int8, int4: matrices of"
    " few bits; dense: LoRPt pairs merged to plain layers",
)  # fmt: skip
@click.option("--out", metavar="DIR", type=click.Path(), required=True, help="The new folder")
@click.option(
    "--data", metavar="TEXT", type=click.Path(), multiple=True,
    help="To compare on; repeatable  [default: the run's held-out text]",
)  # fmt: skip
@click.option("--measure/--no-measure", default=True, help="Compare size, speed and bits")
@json_option
def command(model: str, out: str, as_json: bool, **settings: Any) -> None:
    """Write the model in folder MODEL to a new folder in another form, and compare the two.

    onnx and executorch run by `i3lm chat` and `i3lm generate`, onnx without torch; the other forms
    load like the original, in transformers and in every i3lm command.
    """
    from i3lm.exporting import export

    result = export(model, out, notify=(lambda text: None) if as_json else note, **settings)
    if as_json:
        write_json(result)
        return
    for line in _table(result):
        click.echo(line)


def _table(result: dict[str, Any]) -> list[str]:
    lines = [result["folder"]]
    check = result.get("check", {})
    if check:
        ties = f", {check['ties']} ties" if check.get("ties") else ""
        lines.append(
            f"checked against the original: {check['tokens']:,} tokens{ties}, "
            f"largest difference of a logit {check['largest_difference']:.1g}"
        )
    if "rows" not in result:
        return lines
    lines += ["", f"{'form':<10} {'bytes':>13} {'tokens/s':>9} {'bits per character':>19}"]
    lines += [
        f"{row['form']:<10} {row['bytes']:>13,} {row['tokens_per_second']:>9,.0f} "
        f"{row['bits_per_character']:>19.4f}"
        for row in result["rows"]
    ]
    lines += ["", f"speed: {result['speed']}"]
    lines += [f"text: {result['text']}, {result['characters']:,} characters; {result['rule']}"]
    return lines
