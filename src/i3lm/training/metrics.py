"""metrics.jsonl: a row of JSON for each step and each evaluation."""

import json
import os
from pathlib import Path


class MetricsFile:
    """Appends rows; a resumed run cuts off what came after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115 (open as long as the run)

    def write(self, row: dict) -> None:
        """Append one row; floats keep six significant digits."""
        rounded = {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in row.items()
        }
        self._file.write(json.dumps(rounded).encode() + b"\n")

    def flush(self) -> int:
        """Bring all rows to the device; return the file's length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def truncate(self, length: int) -> None:
        """Drop everything after `length` bytes."""
        self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """Return all whole rows of a metrics file."""
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            rows.append(json.loads(line))
    return rows
