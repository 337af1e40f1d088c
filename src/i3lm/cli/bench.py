"""`i3lm bench`: the measurements of the folder `benchmarks` of a clone."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from i3lm.cli.common import write_json
from i3lm.errors import UserError


@click.group("bench", short_help="Measure speed and memory beside other tools.")
def command() -> None:
    """Measure this machine: i3lm and what people use today, in turns. Needs a clone of i3lm."""


def _options(function: Callable) -> Callable:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the JSON alone."),
        click.option(
            "--out", type=click.Path(dir_okay=False), help="[default: benchmarks/results/NAME.json]"
        ),
        click.option("--threads", type=click.IntRange(1), help="[default: all cores]"),
        click.option("--rounds", type=click.IntRange(1), default=5, show_default=True),
    ):
        function = option(function)
    return function


def _preset(function: Callable) -> Callable:
    return click.option("--preset", default="i3-12m", show_default=True)(function)


@command.command("train")
@_preset
@click.option("--tokens", type=click.IntRange(1), default=1024, help="Tokens a step of ours.")
@_options
def train(**options: Any) -> None:
    """Training: tokens a second and peak memory beside a GPT and i3 as published."""
    _run("train", **options)


@command.command("decode")
@_preset
@click.option("--tokens", type=click.IntRange(1), default=200, help="New tokens of a stream.")
@_options
def decode(**options: Any) -> None:
    """Generation: tokens a second beside GPT-2 in transformers."""
    _run("decode", **options)


@command.command("tokenizer")
@click.option(
    "--data", type=click.Path(exists=True, dir_okay=False), help="[default: built-in conversations]"
)
@click.option(
    "--megabytes",
    type=click.FloatRange(0.1),
    default=128.0,
    help="Of built-in text.",
    show_default=True,
)
@_options
def tokenizer(**options: Any) -> None:
    """Preparing a corpus: megabytes a second beside tiktoken."""
    _run("tokenizer", **options)


@command.command("startup")
@_preset
@_options
def startup(**options: Any) -> None:
    """Seconds from the Enter key to the answer."""
    _run("startup", **options)


def _run(name: str, *, out: str | None, as_json: bool, threads: int | None, **options: Any) -> None:
    """Run one benchmark, write its JSON, print its tables or the JSON."""
    benchmark, common = _load(name), _load("common")
    path = Path(out) if out else common.RESULTS / f"{name}.json"
    if not os.access(path.parent if out else common.ROOT, os.W_OK):
        raise UserError(f"cannot write {path}; choose another --out")
    setting = common.setting()
    result = {"benchmark": name, **benchmark.run(threads=threads or common.cores(), **options)}
    result |= setting
    common.save(result, path)
    if as_json:
        write_json(result)
    else:
        benchmark.show(result)


def _load(name: str) -> Any:
    """Import a module of the folder `benchmarks`, which stands beside the source in a clone."""
    root = Path(__file__).parents[3]
    if not (root / "benchmarks" / "common.py").exists():
        raise UserError("benchmarks need a clone of i3lm, installed from there with pip install -e")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"benchmarks.{name}")
