"""`i3lm quantize`."""

import click

from i3lm.cli.common import json_option, write_json
from i3lm.cli.help import Command


@click.command(
    "quantize",
    cls=Command,
    hidden=True,  # `export --to int4` says it now
    short_help="Make a model's folder smaller: 4 or 8 bits a number.",
    example="i3lm quantize my-model --bits 4 --out my-model-4bit",
)
@click.argument("model", type=click.Path())
@click.option("--out", metavar="DIR", type=click.Path(), required=True, help="The new folder")
@click.option(
    "--bits", metavar="BITS", type=int, default=4, show_default=True,
    help="Of a number of the matrices: 4 or 8",
)  # fmt: skip
@json_option
def command(model: str, out: str, bits: int, as_json: bool) -> None:
    """Write the model in folder MODEL to a new folder, its matrices in 4 or 8 bits a number.

    transformers and every i3lm command load it like the original. `i3lm eval` tells what it lost.
    """
    from i3lm.quantizing import quantize
    from i3lm.units import format_bytes

    result = quantize(model, out, bits)
    if as_json:
        write_json(result)
        return
    sizes = (format_bytes(result[f"bytes_{when}"]) for when in ("before", "after"))
    click.echo(f"{result['folder']}: weights {' -> '.join(sizes)}, error {result['error']:.1%}")
