"""`i3lm eval`."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from i3lm.cli.common import device_option, json_option, write_json


@click.command("eval", short_help="Measure a model on text.")
@click.argument("model")
@click.option(
    "--data", "data", multiple=True, required=True,
    help="A file, folder, pattern or dataset name; - is standard input. May be repeated.",
)  # fmt: skip
@click.option("--context", type=int, help="Tokens of a window.  [default: the model's]")
@click.option(
    "--stride", type=int,
    help="Tokens between windows; as many as --context sets them side by side."
    "  [default: half the context]",
)  # fmt: skip
@click.option(
    "--batch", type=click.IntRange(1), default=8, show_default=True, help="Windows at once."
)
@click.option(
    "--documents", default="auto", help="How text is divided: auto, line, paragraph, file."
)
@click.option("--text-column", help="The column of .jsonl and .parquet files.")
@click.option("--split", default="train", show_default=True, help="The split of a Hub dataset.")
@device_option
@json_option
def command(model: str, data: tuple[str, ...], device: str, as_json: bool, **settings: Any) -> None:
    """Measure how well the model in folder MODEL predicts text, in bits per character."""
    from i3lm.evaluation import evaluate
    from i3lm.folder import load_folder

    loaded = load_folder(model, device)
    with _files(data) as files:
        result = {"model": model, **evaluate(loaded, files, progress=_progress, **settings)}
    if as_json:
        write_json(result)
        return
    word = result["perplexity_per_word"]
    click.echo(
        f"bits per character    {result['bits_per_character']:.4f}\n"
        f"perplexity per token  {result['perplexity_per_token']:.4g}\n"
        f"perplexity per word   {'too large' if word is None else format(word, '.4g')}\n"
        f"{result['characters']:,} characters, {result['words']:,} words, "
        f"{result['tokens']:,} tokens of {result['data']}\n"
        f"{result['rule']}"
    )


@contextlib.contextmanager
def _files(data: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield `data`, with standard input as a file."""
    if "-" not in data:
        yield list(data)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input.txt"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield [str(path) if spec == "-" else spec for spec in data]


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\r" if done < total else "\r\x1b[K"
        click.echo(f"{done / total:4.0%} of {total:,} tokens", nl=False, err=True)
        click.echo(end, nl=False, err=True)
