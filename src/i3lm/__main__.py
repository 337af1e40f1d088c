"""The command `i3lm`, also as `python -m i3lm`."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 2 for a user's mistake, said in one line.

    Where the reader of a pipe leaves early, click exits with code 1 and without a word.
    """
    import click

    from i3lm.cli import group
    from i3lm.cli.help import colour
    from i3lm.errors import UserError

    try:
        code = group.main(arguments, prog_name="i3lm", standalone_mode=False, color=colour())
    except UserError as error:
        return _fail(str(error))
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "i3lm"
        return _fail(f"{error.format_message().rstrip('.')}; see {path} --help")
    except click.ClickException as error:
        return _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
