"""The command line. A file a command; each imports what it runs when it runs, so help is fast."""

import click

from i3lm import __version__
from i3lm.cli import (
    bench,
    chat,
    compare,
    completion,
    evaluate,
    export,
    generate,
    info,
    plan,
    serve,
    train,
)
from i3lm.errors import did_you_mean

GREETING = f"""\
i3lm {__version__}: from your own text to a chatting model of your own, on your computer.

  i3lm train --data TEXT --out DIR   pretrain a model on your text
  i3lm chat DIR                      talk with it
  i3lm serve DIR                     the same in a browser, and OpenAI's API
  i3lm eval DIR --data TEXT          measure it

First time? `i3lm train --preset i3-mini --time 3m` needs no text: it learns from
built-in conversations. `i3lm --help` lists all commands; each has --help."""


class Commands(click.Group):
    """A group that knows what a mistyped command was meant to be."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a UsageError with the nearest name where there is none."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            hint = did_you_mean(name, self.commands)
            known = ", ".join(self.commands)
            raise click.UsageError(f"no command is named {name!r}; {hint}known: {known}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="i3lm")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Pretrain i3, a small conversational language model, on the computer that you have."""
    if ctx.invoked_subcommand is None:
        click.echo(GREETING)


for _module in (
    train, chat, generate, serve, evaluate, compare, info, plan, export, bench,
    completion,
):  # fmt: skip
    group.add_command(_module.command)
