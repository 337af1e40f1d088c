"""Signals that ask a run to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from i3lm.training.parallel import Lost

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@contextlib.contextmanager
def caught(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` at the first of SIGNALS; a second one has its old effect.

    Where another process is lost none is heeded from then on: torchrun ends all that are left,
    and they have to say first why they end.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        act()
        signal.signal(number, old[signal.Signals(number)])

    old = {}
    with contextlib.suppress(ValueError):  # not the main thread: signals are the caller's
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup: not to be heard
                old[number] = signal.signal(number, ask)
    try:
        yield
    except Lost:
        ignore()
        raise
    finally:
        for number, handler in old.items():
            if signal.getsignal(number) is ask:
                signal.signal(number, handler)


def ignore() -> None:
    """Heed none of SIGNALS from now on, where this is the main thread."""
    with contextlib.suppress(ValueError):
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
