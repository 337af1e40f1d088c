"""`i3lm eval`."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from i3lm.cli.common import device_option, json_option, words, write_json
from i3lm.cli.help import Command


@click.command(
    "eval",
    cls=Command,
    short_help="Measure a model on text.",
    groups={"Text": "documents text_column split", "Windows": "context stride batch"},
    example="i3lm eval my-model --data other_text.txt",
)
@click.argument("model", type=click.Path())
@click.option(
    "--data", "data", metavar="TEXT", type=click.Path(), multiple=True, required=True,
    help="File, folder, pattern, dataset; - is stdin; repeatable",
)  # fmt: skip
@click.option("--context", metavar="TOKENS", type=int, help="A window  [default: the model's]")
@click.option(
    "--stride", metavar="TOKENS", type=int,
    help="Between windows; as many as --context sets them side by side"
    "  [default: half the context]",
)  # fmt: skip
@click.option(
    "--batch", metavar="N", type=click.IntRange(1), default=8, show_default=True,
    help="Windows at once",
)  # fmt: skip
@click.option(
    "--documents", metavar="RULE", default="auto", shell_complete=words("auto line paragraph file"),
    help="auto, line, paragraph or file  [default: auto]",
)  # fmt: skip
@click.option("--text-column", metavar="NAME", help="Of .jsonl and .parquet files")
@click.option(
    "--split", metavar="NAME", default="train", show_default=True, help="Of a Hub dataset"
)
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
