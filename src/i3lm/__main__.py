"""The command `i3lm`, also as `python -m i3lm`."""

import contextlib
import os
import signal
import sys
import weakref
from collections.abc import Iterator, Sequence
from types import FrameType

SOON, LONG = 0.01, 3.0  # seconds; the terminal of `i3lm chat` is given up to two to answer
NO_THREAD = "can't start new thread"  # as Python says it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    A program that hands over `arguments` keeps its torch: nothing stands in for it.

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

    from i3lm import lean_torch
    from i3lm.cli import group
    from i3lm.cli.help import colour
    from i3lm.errors import UserError
    from i3lm.files import writing_to

    lean_torch.put_off_unused()
    lean_torch.shared = arguments is not None
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


class _Leave(SystemExit):
    """What a signal raises."""


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that nothing is left behind.

    What a handler raises can get lost: Python only prints what comes in `__del__` or in the
    callback of a weak reference, and event loops hand it from task to task. So the signal is sent
    again, as SIGALRM, where the exception is freed before the program has left, or not left after
    long.
    """
    old = {}
    left = False

    def leave(number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "setitimer"):  # Windows has none; a timer's thread could wait for us
            if signal.SIGALRM not in old:
                old[signal.SIGALRM] = signal.signal(signal.SIGALRM, leave)
            signal.setitimer(signal.ITIMER_REAL, LONG)
        error = _Leave(130)
        raised.append(weakref.ref(error, lost))
        raise error

    def lost(error: weakref.ref[_Leave]) -> None:
        if not left and getattr(signal, "SIGALRM", None) in old:
            signal.setitimer(signal.ITIMER_REAL, SOON)

    def untold(what: "sys.UnraisableHookArgs") -> None:
        if what.exc_type is not _Leave:
            told(what)

    raised: list[weakref.ref[_Leave]] = []  # a reference that is gone itself calls nobody
    told, sys.unraisablehook = sys.unraisablehook, untold
    with contextlib.suppress(ValueError):  # not the main thread
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                old[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        left = True
        sys.unraisablehook = told
        if getattr(signal, "SIGALRM", None) in old:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in old.items():
            signal.signal(number, handler)


def _fail(message: str) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # else torchrun has started others that say it
        print("error:", " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
