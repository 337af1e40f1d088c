"""Text that does not fit the disk: speed and memory of reading it, at 1 to 10 GB.

    python -m benchmarks.stream --gigabytes 10 --pack 2

The text is made on the fly by a file system of fsspec's kind and never stored. `stream` is what
`i3lm train --stream` does beside training: tokens in segments, of which three exist. `pack` is what
it does without: a vocabulary, and all tokens in one file (0.9 bytes a byte of text, in a temporary
folder). Each line of the table is memory and speed at that much text, in one process.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from i3lm.data import open_source, prepare
from i3lm.data.streaming import StreamLoader, prepare_stream
from i3lm.training.hardware import resident_bytes

NAME = "stream"
MARKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # GB of text at which figures are taken
LINE, LINES = 128, 1 << 15
SEGMENT = 1 << 27  # bytes
VOCABULARY = 4466


class Text:
    """A file of `size` bytes: random words, in lines that all differ."""

    read_bytes = 0  # by all files

    def __init__(self, size: int) -> None:
        draw = np.random.default_rng(0)
        self._block = draw.integers(97, 123, (LINES, LINE), np.uint8)
        self._block[draw.random((LINES, LINE), np.float32) < 0.18] = ord(" ")
        self._block[:, 10], self._block[:, -1] = ord(" "), ord("\n")
        self._size, self._at, self._numbered = size - size % LINE, 0, -1

    def seekable(self) -> bool:
        return True

    def seek(self, at: int, whence: int = 0) -> int:
        assert whence == 0
        self._at = at
        return at

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes, up to the end of a block."""
        number, begin = divmod(self._at, LINE * LINES)
        end = min(begin + count, LINE * LINES, self._size - self._at + begin)
        if number != self._numbered:
            lines = np.arange(number * LINES, (number + 1) * LINES)
            for digit in range(10):
                self._block[:, 9 - digit] = ord("0") + lines // 10**digit % 10
            self._numbered = number
        data = self._block.reshape(-1)[begin:end].tobytes()
        self._at += len(data)
        Text.read_bytes += len(data)
        return data

    def close(self) -> None:
        """Nothing to close."""


def register() -> None:
    """Let fsspec open `generated://BYTES.txt`."""
    import fsspec

    class Generated(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "generated"

        def info(self, path: str, **options: Any) -> dict[str, Any]:
            return {"name": path, "size": int(Path(path).stem), "type": "file"}

        def open(self, path: str, mode: str = "rb", **options: Any) -> Text:
            return Text(int(Path(self._strip_protocol(path)).stem))

    fsspec.register_implementation("generated", Generated, clobber=True)


def stream(size: int, threads: int, segment: int = SEGMENT) -> list[dict[str, float]]:
    """Read a stream of `size` bytes of text; return a row at each of MARKS and at the end."""
    register()
    rows = []
    marks = [*(mark * 1e9 for mark in MARKS if mark * 1e9 < size), size]
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(f"generated://{size}.txt")
        corpus = prepare_stream(
            segment, source, Path(folder), vocab_size=VOCABULARY, threads=threads
        )
        loader = corpus.loader(256, 4, 0, wait=lambda: None)
        assert isinstance(loader, StreamLoader)
        Text.read_bytes, begin = 0, time.perf_counter()
        for number in itertools.count():
            loader.windows(number * loader.windows_per_segment, 1)
            if marks and Text.read_bytes >= marks[0]:
                on_disk = sum(path.stat().st_size for path in Path(folder).glob("segment-*"))
                rows.append(_row(Text.read_bytes, begin) | {"segments_bytes": on_disk})
                while marks and Text.read_bytes >= marks[0]:
                    marks.pop(0)
            if not marks:
                break
        loader.close()
    return rows


def pack(size: int, threads: int) -> dict[str, float]:
    """Pack `size` bytes of text; return speed (of both passes together) and memory."""
    register()
    with tempfile.TemporaryDirectory() as folder:
        source, begin = open_source(f"generated://{size}.txt"), time.perf_counter()
        prepare(source, folder, vocab_size=VOCABULARY, threads=threads)
        return _row(size, begin) | {"tokens_bytes": (Path(folder) / "train.bin").stat().st_size}


def _row(done: int, begin: float) -> dict[str, float]:
    now, peak = resident_bytes()
    rate = done / (time.perf_counter() - begin)
    return {"bytes": done, "bytes_per_second": rate, "resident": now, "peak": peak}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--pack", type=float, default=2, help="gigabytes; 0: not")
    parser.add_argument("--threads", type=int, default=common.cores())
    parser.add_argument("--one", choices=["stream", "pack"])
    parser.add_argument("--out", type=Path, default=common.RESULTS / "stream.json")
    options = parser.parse_args()
    size, whole = int(options.gigabytes * 1e9), int(options.pack * 1e9)
    if options.one:
        work = {"stream": stream, "pack": pack}[options.one]
        print(json.dumps(work(size, options.threads)))
        return
    setting = common.setting()
    threads = ("--threads", str(options.threads))

    def measured(kind: str, gigabytes: float) -> Any:
        return common.in_child(NAME, "--one", kind, "--gigabytes", str(gigabytes), *threads)

    result = {"benchmark": NAME, "threads": options.threads, "segment_bytes": SEGMENT}
    result["stream"] = measured("stream", size / 1e9)
    result["pack"] = [measured("pack", g / 1e9) for g in (whole // 2, whole)] if whole else []
    common.save({**result, **setting}, options.out)
    for kind in ("stream", "pack"):
        common.print_table(
            f"{kind}, {options.threads} threads",
            ["GB of text", "MB/s", "memory, MB", "peak, MB"],
            [
                [
                    f"{row['bytes'] / 1e9:.2f}",
                    *(f"{row[k] / 1e6:,.0f}" for k in ("bytes_per_second", "resident", "peak")),
                ]
                for row in result[kind]
            ],
        )


if __name__ == "__main__":
    main()
