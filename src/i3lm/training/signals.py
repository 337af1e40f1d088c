"""Signals that ask a run to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@contextlib.contextmanager
def caught(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` at the first of SIGNALS; a second one has its old effect."""

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
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
