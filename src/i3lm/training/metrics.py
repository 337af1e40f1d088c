"""metrics.jsonl: a row of JSON for each step and each evaluation."""

import contextlib
import json
import os
from pathlib import Path

PENDING_BYTES = 8192


class MetricsFile:
    """Appends rows; a resumed run cuts off what came after its checkpoint.

    Rows wait in memory until the file takes them, so that a full disk loses none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        self._pending = bytearray()

    def write(self, row: dict) -> None:
        """Append one row; floats keep six significant digits."""
        rounded = {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in row.items()
        }
        self._pending += json.dumps(rounded).encode() + b"\n"
        if len(self._pending) > PENDING_BYTES:
            with contextlib.suppress(OSError):  # said by the next checkpoint, which needs it
                self._write_out()

    def flush(self) -> int:
        """Bring all rows to the device; return the file's length in bytes."""
        self._write_out()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, length: int) -> None:
        """Drop everything after `length` bytes."""
        self._pending.clear()
        if self._file.seek(0, os.SEEK_END) > length:
            self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Write what waits, where the disk takes it, and close."""
        with contextlib.suppress(OSError):  # rows after the last checkpoint: a resume cuts them off
            self._write_out()
        self._file.close()

    def _write_out(self) -> None:
        while self._pending:
            del self._pending[: self._file.write(self._pending)]


def read_metrics(path: Path) -> list[dict]:
    """Return all whole rows of a metrics file."""
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            rows.append(json.loads(line))
    return rows
