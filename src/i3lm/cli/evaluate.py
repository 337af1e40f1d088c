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

from i3lm.cli.common import device_option, json_option, words, write_json
from i3lm.cli.help import Command
from i3lm.errors import UserError

TEXT_OPTIONS = ("context", "stride", "documents", "text_column", "split")
TASK_OPTIONS = ("task_folder", "limit", "num_fewshot", "chat")


@click.command(
    "eval",
    cls=Command,
    short_help="Measure a model on text.",
    groups={
        "Text": "documents text_column split",
        "Windows": "context stride batch",
        "Tasks": "tasks task_folder limit num_fewshot chat",
    },
    example="i3lm eval my-model --data other_text.txt",
)
@click.argument("model", type=click.Path())
@click.option(
    "--data", "data", metavar="TEXT", type=click.Path(), multiple=True,
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
@click.option(
    "--tasks", metavar="NAMES",
    help="Tasks of lm-evaluation-harness, commas between; i3lm: all of ours",
)  # fmt: skip
@click.option("--task-folder", metavar="DIR", type=click.Path(), help="Task files of your own")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Documents  [default: all]")
@click.option("--num-fewshot", metavar="N", type=click.IntRange(0), help="Examples in front")
@click.option("--chat", is_flag=True, help="Ask each document as a conversation")
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
    own = TASK_OPTIONS if tasks is None else TEXT_OPTIONS
    context = click.get_current_context()
    for name in own:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            kind = "--tasks" if tasks is None else "--data"
            raise UserError(f"--{name.replace('_', '-')} goes with {kind}; leave it away")
    if tasks is not None:
        more = {"task_folder": task_folder, "limit": limit, "num_fewshot": num_fewshot}
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        _tasks(model, names, device, as_json, chat=chat, batch=settings["batch"], **more)
        return
    from i3lm.bare import answer_without_torch

    answer_without_torch(model, device, data)
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
