"""`i3lm eval`."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from i3lm.cli.common import device_option, json_option, write_json
from i3lm.errors import UserError


@click.command("eval", short_help="Measure a model on text.")
@click.argument("model")
@click.option(
    "--data", "data", multiple=True,
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
@click.option(
    "--tasks",
    help="Tasks of lm-evaluation-harness in place of --data, commas between. i3lm: all of ours.",
)
@click.option("--task-folder", help="A folder with task files of your own.")
@click.option("--limit", type=click.IntRange(1), help="Documents of a task.  [default: all]")
@click.option("--num-fewshot", type=click.IntRange(0), help="Examples in front of a document.")
@click.option("--chat", is_flag=True, help="Ask each document as a conversation.")
@device_option
@json_option
def command(
    model: str,
    data: tuple[str, ...],
    tasks: str | None,
    task_folder: str | None,
    limit: int | None,
    num_fewshot: int | None,
    chat: bool,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure how well the model in folder MODEL predicts text, in bits per character.

    With --tasks: how well it does the tasks. Of ours, i3lm holds i3lm_questions,
    i3lm_questions_choice, i3lm_bits_per_byte and i3lm_pairs (grammar).
    """
    if (tasks is None) != bool(data):
        raise UserError("give either --data TEXT or --tasks NAMES (i3lm: all of ours)")
    if tasks is not None:
        more = {"task_folder": task_folder, "limit": limit, "num_fewshot": num_fewshot}
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        _tasks(model, names, device, as_json, chat=chat, batch=settings["batch"], **more)
        return
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


def _tasks(model: str, names: list[str], device: str, as_json: bool, **settings: Any) -> None:
    from i3lm.folder import load_folder

    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: no bar for each step
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("lm-eval is not installed: pip install 'i3lm[tasks]'") from None
    from i3lm.tasks.harness import evaluate_tasks

    result = {"model": model, **evaluate_tasks(load_folder(model, device), names, **settings)}
    if as_json:
        write_json(result)
        return
    rows = result["results"] | {f"{name} (all)": row for name, row in result["groups"].items()}
    width = max(map(len, rows), default=4)
    click.echo(f"{'task':<{width}}  {'metric':<16} {'value':>8} {'± stderr':>9} {'documents':>10}")
    for name, row in rows.items():
        count = f"{row['samples']:>10,}" if "samples" in row else ""
        for metric, value in row.items():
            if metric == "samples" or metric.endswith("_stderr"):
                continue
            error = row.get(f"{metric}_stderr")
            shown = "" if error is None else f"{error:.4f}"
            click.echo(f"{name:<{width}}  {metric:<16} {value:>8.4g} {shown:>9} {count}")
    for line in (*result["counted"], result["rule"]):
        click.echo(line)


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
