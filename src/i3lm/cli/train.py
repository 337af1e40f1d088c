"""`i3lm train`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from i3lm.cli.common import json_option, note, write_json
from i3lm.errors import UserError

if TYPE_CHECKING:
    from i3lm.training.config import Every, TrainConfig


@click.command("train", short_help="Pretrain a model on your text.")
@click.option(
    "--data", multiple=True, metavar="TEXT",
    help="A .txt, .jsonl or .parquet file, a folder or pattern of them, or a dataset name such as "
    "starhopp3r/TinyChat. May be repeated.  [default: built-in conversations]",
)  # fmt: skip
@click.option("--out", metavar="DIR", help="Where the model goes.  [default: run]")
@click.option("--resume", metavar="DIR", help="Go on with the run in this folder.")
@click.option("--preset", help="The model's size; i3lm info lists them.  [default: i3-12m]")
@click.option("--time", metavar="TIME", help="Train for 90s, 10m, 1h30m, ...  [default: 10m]")
@click.option("--steps", type=int, help="Train for this many optimizer steps.")
@click.option("--vocab-size", type=int, help="Tokens of the vocabulary.  [default: the preset's]")
@click.option("--context", type=int, help="Tokens of the window.  [default: the preset's]")
@click.option("--lowercase", is_flag=True, default=None, help="Train on lower-case text.")
@click.option("--documents", help="How text is divided: auto, line, paragraph, file.")
@click.option("--text-column", help="The column of .jsonl and .parquet files.")
@click.option("--split", help="The split of a Hub dataset.  [default: train]")
@click.option("--optimizer", help="muon, adamw or lion.  [default: muon]")
@click.option("--state-bits", type=int, help="Of the optimizer's states: 32, 8 or 4.")
@click.option("--weight-bits", type=int, help="Of the layers' matrices: 32, 8 or 4.")
@click.option(
    "--qat-bits", type=int,
    help="8 or 4: keep float32 matrices and run with them rounded, for i3lm quantize later.",
)  # fmt: skip
@click.option("--lr", type=float, help="Peak learning rate.  [default: the optimizer's]")
@click.option("--batch-tokens", type=int, help="Tokens of a step.  [default: 1024]")
@click.option("--microbatch", type=int, help="Sequences at once: fewer need less memory.")
@click.option(
    "--gradient-checkpointing", metavar="MODE",
    help="none, selective or full: compute activations twice.  [default: as memory allows]",
)  # fmt: skip
@click.option("--memory", metavar="SIZE", help="The most the process may take: 400MB, 1.5GB.")
@click.option(
    "--return-memory/--keep-memory", default=None,
    help="Give freed memory back at once: it takes less, half as fast.  [default: for --memory]",
)  # fmt: skip
@click.option("--precision", help="auto, fp32 or bf16.  [default: auto]")
@click.option("--checkpoint-every", metavar="EVERY", help="Steps, or a time.  [default: 1m]")
@click.option("--eval-every", metavar="EVERY", help="Steps, or a time.  [default: ten times a run]")
@click.option("--seed", type=int, help="The same seed gives the same run.  [default: 0]")
@click.option("--device", help="cpu, cuda, mps, ...  [default: cpu]")
@click.option("--threads", type=int, help="CPU threads.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@json_option
def command(resume: str | None, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Pretrain a model from raw text to a folder that `i3lm chat` and transformers load.

    Ctrl-C saves; --resume goes on from there.
    """
    config = _config(
        resume, {name: value for name, value in flags.items() if value not in (None, ())}
    )
    from i3lm.training.run import train

    if quiet:
        result = train(config, resume=resume is not None)
    else:
        from i3lm.training.terminal import TerminalListener

        listener = TerminalListener()
        try:
            result = train(config, resume=resume is not None, listener=listener)
        finally:
            listener.close()
    if as_json:
        write_json(
            {**result.figures, "folder": str(result.folder), "interrupted": result.interrupted}
        )
    if result.interrupted:
        note(f"go on with: i3lm train --resume {result.folder}")
        raise click.exceptions.Exit(130)
    if not (quiet or as_json):
        click.echo(f"talk with it: i3lm chat {result.folder}", err=True)


def _config(resume: str | None, flags: dict[str, Any]) -> "TrainConfig":
    """Return what the flags ask for; a resumed run keeps what they leave open."""
    from i3lm.training.config import TrainConfig
    from i3lm.units import parse_duration, parse_size

    if "memory" in flags:
        flags["memory"] = parse_size(flags["memory"])
    if "time" in flags:
        flags["time"] = parse_duration(flags["time"])
    for name in ("checkpoint_every", "eval_every"):
        if name in flags:
            flags[name] = _every(flags[name])
    if resume is None:
        return TrainConfig(**flags)
    if "out" in flags:
        raise UserError("--resume goes on in its own folder; leave --out away")
    config = TrainConfig.load(Path(resume))
    if "memory" in flags:  # what costs only time is planned anew
        config = dataclasses.replace(
            config, microbatch=None, gradient_checkpointing=None, return_memory=None
        )
    return dataclasses.replace(config, **flags, out=resume)


def _every(text: str) -> "Every":
    """Return `500` as steps, `2m` as a time."""
    from i3lm.training.config import Every
    from i3lm.units import parse_duration

    return (
        Every(steps=int(text))
        if text.isascii() and text.isdigit()
        else Every(seconds=parse_duration(text))
    )
