"""Everything that changes a disk, counted, so that a fault can be put at any instant."""

import os
import signal
from collections.abc import Callable

CALLS = ("open", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "chmod")


def die() -> None:
    """The process ends here, as by a power cut: nothing is flushed, nothing cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


class DiskSteps:
    """Counts calls that change a disk; calls `fault` at the one of number `at`, 1 the first.

    A write is two instants: half of the bytes are on the disk, all are. Every other call is one,
    before it is done. With `lasting`, writes fail from there on, as they do on a full disk.
    """

    def __init__(self, monkeypatch, at: int, fault: Callable[[], None], lasting=False) -> None:
        self.count, self.at, self.fault, self.lasting = 0, at, fault, lasting
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        monkeypatch.setattr(os, "fdopen", self._opened(os.fdopen))

    def _step(self, writes: bool = False) -> None:
        self.count += 1
        if self.count == self.at or (self.lasting and writes and self.count > self.at):
            self.fault()

    def _counted(self, call: Callable) -> Callable:
        def counted(*args, **kwargs):
            self._step()
            return call(*args, **kwargs)

        return counted

    def _opened(self, fdopen: Callable) -> Callable:
        def opened(*args, **kwargs):
            file = fdopen(*args, **kwargs)
            return _File(file, self._step) if "wb" in args else file

        return opened


class _File:
    def __init__(self, file, step) -> None:
        self.file, self.step = file, step

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data) -> None:
        data = memoryview(data)
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.step(writes=True)
        self.file.write(data[half:])
        self.file.flush()
        self.step(writes=True)
