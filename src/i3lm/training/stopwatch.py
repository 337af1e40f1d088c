"""The time that training had, without the stretches in which its process stood still."""

import threading
import time
from collections.abc import Callable

from i3lm.training.config import Every

BEAT_SECONDS = 0.5
STILL_SECONDS = 3.0  # between two beats: the process was stopped, or the machine slept


class Stopwatch:
    """Counts seconds while the process runs.

    A thread beats twice a second. Where two beats are more than three seconds apart, the process
    was suspended (SIGSTOP, a closed laptop, a frozen virtual machine): the gap counts as one beat.
    The system's date plays no part.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock, self._stopped = clock, threading.Lock(), threading.Event()
        self._total, self._last = 0.0, clock()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float = 0.0) -> None:
        """Begin to count, from `seconds` on."""
        self._total, self._last = seconds, self._clock()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stopwatch", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; the time stays readable and goes on only when it is read."""
        self._stopped.set()

    @property
    def seconds(self) -> float:
        """The time counted so far."""
        self._beat()
        return self._total

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        with self._lock:
            now = self._clock()
            gap = now - self._last
            self._total += gap if gap < STILL_SECONDS else BEAT_SECONDS
            self._last = now


class Clock:
    """Tells when something is due, every so many steps or seconds."""

    def __init__(self, every: Every | None, default: Every) -> None:
        self.every = every or default
        self._next = 0.0

    def start(self, step: int, seconds: float) -> None:
        """Begin to count at this step and these seconds of training."""
        interval = self.every.steps or self.every.seconds
        assert interval is not None
        now = step if self.every.steps else seconds
        self._interval, self._next = interval, (now // interval + 1) * interval

    def due(self, step: int, seconds: float) -> bool:
        """Say whether it is due, once for each time."""
        now = step if self.every.steps else seconds
        if now < self._next:
            return False
        self._next = (now // self._interval + 1) * self._interval
        return True
