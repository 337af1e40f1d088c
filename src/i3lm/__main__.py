"""The command `i3lm`, also as `python -m i3lm`."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

NO_THREAD = "can't start new thread"  # as Python says it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    2 for a user's mistake or a disk that refuses, said in one line; 130 for SIGINT, SIGTERM or
    SIGHUP. Where the reader of a pipe leaves early, click exits with code 1 and without a word.
    """
    try:
        with _ending_on_signals():
            return _run(arguments)
    except KeyboardInterrupt:  # while modules were loaded
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # bare/products.py says why
    import click

    from i3lm.cli import group
    from i3lm.cli.help import colour
    from i3lm.errors import UserError
    from i3lm.files import writing_to
    from i3lm.lean_torch import put_off_unused

    put_off_unused()
    try:
        with writing_to("the output"):
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
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and str(error) != NO_THREAD:
            raise
        return _fail(
            "the system gives no more memory or threads; end other programs, or raise the "
            "limits of this shell (ulimit -v, ulimit -u)"
        )
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that nothing is left behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        if _swallows(frame):
            again = threading.Timer(0.01, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        else:
            raise SystemExit(130)

    old = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                old[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _swallows(frame: FrameType | None) -> bool:
    """Say whether an exception of this moment would be lost: Python only prints what is raised
    in `__del__` and in callbacks of weak references, as the import system has them."""
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name == "__del__" or (name == "cb" and file.startswith("<frozen importlib")):
            return True
        frame = frame.f_back
    return False


def _fail(message: str) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # else torchrun has started others that say it
        print("error:", " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
