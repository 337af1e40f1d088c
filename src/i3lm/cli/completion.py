"""`i3lm completion`: what makes the Tab key know i3lm."""

import click

from i3lm.cli.help import Command
from i3lm.errors import UserError

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    cls=Command,
    short_help="Let the Tab key complete i3lm's commands.",
    example="i3lm completion bash >> ~/.bashrc",
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the lines that teach SHELL to complete commands, options, presets and folders.

    bash, zsh: append them to ~/.bashrc or ~/.zshrc.
    fish: i3lm completion fish > ~/.config/fish/completions/i3lm.fish
    """
    from click.shell_completion import get_completion_class

    root = ctx.find_root()
    found = get_completion_class(shell)
    assert found is not None
    try:
        click.echo(found(root.command, {}, "i3lm", "_I3LM_COMPLETE").source())
    except RuntimeError as error:  # a bash that is too old
        raise UserError(f"{error}; use zsh or fish") from None
