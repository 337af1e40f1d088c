"""`i3lm train`."""

from typing import TYPE_CHECKING, Any

import click

from i3lm.cli.common import json_option, note, preset_names, words, write_json
from i3lm.cli.help import Command
from i3lm.errors import UserError
from i3lm.launch import launch

if TYPE_CHECKING:
    from i3lm.training.events import Callback

BUILT_IN = (
    "no --data, so it trains on the built-in conversations (made-up small talk in English); "
    "for your own text: --data FILE"
)
GROUPS = {
    "Basic": "data out resume preset time steps memory report_to quiet as_json",
    "Text": "documents text_column split lowercase skip_bad_lines stream",
    "Model": "vocab_size context",
    "Optimisation": "optimizer lr batch_tokens dropout seed",
    "Memory": "microbatch gradient_checkpointing state_bits weight_bits qat_bits return_memory",
    "Expert": "precision device compile threads checkpoint_every eval_every parallel sync_every "
    "sync_bits ddp_timeout",
}


@click.command(
    "train",
    cls=Command,
    short_help="Pretrain a model on your text.",
    groups=GROUPS,
    example="i3lm train --data my_text.txt --time 30m --out my-model",
)
@click.option(
    "--data", multiple=True, metavar="TEXT", type=click.Path(),
    help="File, folder, URL, dataset; repeatable  [default: none]",
)  # fmt: skip
@click.option("--out", metavar="DIR", type=click.Path(), help="Model folder  [default: run]")
@click.option("--resume", metavar="DIR", type=click.Path(), help="Go on with the run in DIR")
@click.option(
    "--preset", metavar="NAME", shell_complete=words(preset_names),
    help="Size: i3lm info lists them  [default: by the time]",
)  # fmt: skip
@click.option("--time", metavar="TIME", help="Train for 90s, 10m, 1h30m  [default: 10m]")
@click.option("--steps", metavar="N", type=int, help="Train for N optimizer steps")
@click.option(
    "--vocab-size", metavar="TOKENS", type=int, help="Vocabulary  [default: the preset's]"
)
@click.option("--context", metavar="TOKENS", type=int, help="Window  [default: the preset's]")
@click.option("--lowercase", is_flag=True, default=None, help="Train on lower-case text")
@click.option(
    "--documents", metavar="RULE", shell_complete=words("auto line paragraph file"),
    help="auto, line, paragraph or file  [default: auto]",
)  # fmt: skip
@click.option("--skip-bad-lines", is_flag=True, default=None, help="Leave out what is no row")
@click.option("--text-column", metavar="NAME", help="Of .jsonl and .parquet files")
@click.option(
    "--stream", metavar="SIZE", is_flag=False, flag_value="128MB",
    help="Keep so many bytes of tokens  [default: all]",
)  # fmt: skip
@click.option("--split", metavar="NAME", help="Of a Hub dataset  [default: train]")
@click.option(
    "--optimizer", metavar="NAME", shell_complete=words("muon adamw lion"),
    help="muon, adamw or lion  [default: muon]",
)  # fmt: skip
@click.option("--state-bits", metavar="BITS", type=int, help="Optimizer states: 32, 8 or 4")
@click.option("--weight-bits", metavar="BITS", type=int, help="Matrices: 32, 8, 4  [default: 32]")
@click.option("--qat-bits", metavar="BITS", type=int, help="8 or 4: train for i3lm export")
@click.option("--lr", metavar="RATE", type=float, help="Peak rate  [default: the optimizer's]")
@click.option("--batch-tokens", metavar="TOKENS", type=int, help="Of a step  [default: 1024]")
@click.option("--microbatch", metavar="N", type=int, help="Sequences at once; fewer take less")
@click.option(
    "--gradient-checkpointing", metavar="MODE", shell_complete=words("none selective full"),
    help="none, selective or full: recompute",
)  # fmt: skip
@click.option("--memory", metavar="SIZE", help="Most the process may take: 400MB, 1.5GB")
@click.option(
    "--return-memory/--keep-memory", default=None,
    help="Return what is freed; half as fast",
)  # fmt: skip
@click.option(
    "--precision", metavar="NAME", shell_complete=words("auto fp32 bf16"),
    help="auto, fp32 or bf16  [default: auto]",
)  # fmt: skip
@click.option("--checkpoint-every", metavar="EVERY", help="Steps, or a time  [default: 1m]")
@click.option("--eval-every", metavar="EVERY", help="Steps, or a time  [default: 10 a run]")
@click.option("--seed", metavar="N", type=int, help="The same seed, the same run  [default: 0]")
@click.option(
    "--dropout", metavar="SHARE", type=float,
    help="What layers and text lack  [default: by passes]",
)  # fmt: skip
@click.option("--device", metavar="NAME", help="cpu, cuda, mps, ...  [default: cpu]")
@click.option("--compile/--no-compile", default=None, help="torch.compile  [default: on CUDA]")
@click.option("--threads", metavar="N", type=int, help="CPU threads  [default: all cores]")
@click.option(
    "--parallel", metavar="NAME", shell_complete=words("ddp fsdp diloco"),
    help="ddp, fsdp (model divided), diloco (slow link)",
)  # fmt: skip
@click.option("--sync-every", metavar="N", type=int, help="Steps of diloco alone  [default: 50]")
@click.option("--sync-bits", metavar="BITS", type=int, help="diloco's: 32, 8, 4  [default: 8]")
@click.option("--ddp-timeout", metavar="TIME", help="Silence that ends the run  [default: 5m]")
@click.option(
    "--report-to", multiple=True, metavar="NAME", shell_complete=words("tensorboard trackio wandb"),
    help="tensorboard, trackio or wandb; repeatable",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="Say nothing but errors")
@json_option
def command(
    resume: str | None, quiet: bool, as_json: bool, report_to: tuple[str, ...], **flags: Any
) -> None:
    """Pretrain a model from raw text to a folder that chat and transformers load.
    Without --data it learns from built-in conversations. Ctrl-C saves, --resume
    goes on. Defaults stand in [brackets]; else they are planned or off.
    """
    settings = {name: value for name, value in flags.items() if value not in (None, ())}
    from i3lm.training.settings import configure, reconfigure

    if resume is not None and "out" in settings:
        raise UserError("--resume goes on in its own folder; leave --out away")
    follows = launch().rank > 0  # takes its settings from the first process, and is silent
    if resume is None or follows:
        config = configure(**{**settings, "out": settings.get("out", resume)})
    else:
        config = reconfigure(resume, **settings)
    if not report_to:
        from i3lm.bare import without_torch

        config = without_torch(config)
    from i3lm.training.run import train

    quiet, as_json = quiet or follows, as_json and not follows
    listener, close = _listener(config.out, quiet, () if follows else report_to)
    if not (quiet or config.data):
        note(BUILT_IN)
    try:
        result = train(config, resume=resume is not None, listener=listener)
    finally:
        close()
    if as_json:
        write_json(
            {**result.figures, "folder": str(result.folder), "interrupted": result.interrupted}
        )
    if result.interrupted and not follows:
        note(f"go on with: i3lm train --resume {result.folder}")
    if result.interrupted:
        raise click.exceptions.Exit(130)
    if not (quiet or as_json):
        click.echo(f"talk with it: i3lm chat {result.folder}", err=True)


def _listener(run: str, quiet: bool, report_to: tuple[str, ...]) -> tuple["Callback | None", Any]:
    """Return who listens to the run, and what to call when it is over."""
    from i3lm.training.events import Callback, Several

    listeners: list[Callback] = []
    close = lambda: None  # noqa: E731
    say = (lambda text: None) if quiet else note
    if not quiet:
        from i3lm.training.terminal import TerminalListener

        terminal = TerminalListener()
        close, say = terminal.close, terminal.note
        listeners.append(terminal)
    if report_to:
        from i3lm.training.trackers import open_tracker

        listeners += [open_tracker(name, run, say) for name in dict.fromkeys(report_to)]
    return (Several(*listeners) if listeners else None), close
