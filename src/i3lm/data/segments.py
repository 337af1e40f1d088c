"""Segments: token files that follow one another through a source, each made one ahead."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from i3lm.data.documents import Document, Lines
from i3lm.data.holdout import prefix_of, salt_of
from i3lm.data.lines import ScannedLines
from i3lm.data.packing import default_threads
from i3lm.data.passes import ahead, encode_documents, pool_of
from i3lm.data.sources import Piece, Source
from i3lm.errors import UserError
from i3lm.files import read_small, sha256_file, write_atomic
from i3lm.tokenizer import ChunkTokenizer

FORMAT = 1
INDEX = "segments.json"
# Characters of documents that are read at once. What a run of several processes reads depends on
# it, and places in older segments.json are counted in it.
BATCH = 1 << 20
_POLL = 0.2  # seconds between two looks at whether a segment is there

Place = dict[str, Any]  # where a segment begins: a batch, and how many of its tokens are over
Batch = list[Document] | Lines


class SourceLost(UserError):
    """The source gives no more text, or other text than before; what was trained is sound."""


class TokenStream:
    """The tokens of a source without end, but for its held-out documents.

    The parts of a source (its files) come in a new order each time it is read; documents within a
    part stand as they are. `share` is (rank, ranks): the ranks' streams have no document in common
    and together all of them. Parts are dealt out where there are enough, else batches of documents.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: ChunkTokenizer,
        held_out: list[int],
        *,
        held_out_seed: int = 0,
        order_seed: int = 0,
        threads: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.source, self.tokenizer, self.share = source, tokenizer, share
        self.seed, self._held_out_seed = order_seed, held_out_seed
        self._held_out = np.array(sorted(held_out), np.uint64)
        self._held_out_set = set(held_out)
        self._threads = threads or default_threads()

    @property
    def identity(self) -> dict[str, Any]:
        """What, with the contents of the source, decides the tokens."""
        return {
            "source": self.source.identity,
            "tokenizer": self.tokenizer.fingerprint,
            "seed": self.seed,
            "share": list(self.share),
        }

    def read(self, place: Place) -> Iterator[tuple[np.ndarray, Place]]:
        """Yield the tokens of each batch, uint16, and where the batch begins, from `place` on."""

        def work(item: tuple[Batch, Place]) -> tuple[np.ndarray, Place]:
            return self._encode(item[0]), item[1]

        with pool_of(self._threads) as pool:
            fruitless = 0  # epochs
            for tokens, begin in ahead(pool, work, self._batches(place)):
                if len(tokens):
                    yield tokens, begin
                    fruitless = begin["epoch"]
                elif begin["epoch"] > fruitless + 1:
                    raise SourceLost(f"{self.source.description}: no text to train on; give more")

    def _batches(self, place: Place) -> Iterator[tuple[Batch, Place]]:
        rank, ranks = self.share
        epoch, at, number = place["epoch"], place["at"], place["batch"]
        first = place["part"]
        while True:
            parts = self.source.parts()
            order = np.random.default_rng([self.seed % 2**63, epoch]).permutation(len(parts))
            dealt = 1 < ranks <= len(parts)
            mine = order[rank::ranks] if dealt else order
            alone = ranks == 1 or dealt or self.source.divides  # no batch is another rank's
            share = (0, 1) if dealt else self.share
            idle = at is None and first == 0  # nothing of this epoch was given
            for index in range(first, len(mine)):
                begin = {"epoch": epoch, "part": index, "at": at, "batch": number}
                for batch, after in _batched(parts[mine[index]](at, share), self.source):
                    if alone or number % ranks == rank:
                        yield batch, begin
                        idle = False
                    number += 1
                    begin = {"epoch": epoch, "part": index, "at": after, "batch": number}
                at = None
            if idle:
                raise SourceLost(f"{self.source.description}: too little text; give more")
            epoch, first, number = epoch + 1, 0, 0

    def _encode(self, batch: Batch) -> np.ndarray:
        if isinstance(batch, Lines) and self.tokenizer.takes_lines:
            scanned = ScannedLines.scan(batch, salt_of(self._held_out_seed))
            chosen = scanned.here & ~np.isin(scanned.prefixes, self._held_out)
            ids, _ = self.tokenizer.encode_lines(scanned.table, chosen)
            documents = [document for _, document in scanned.others]
            return np.concatenate([ids, self._encode(documents)]) if documents else ids
        if isinstance(batch, Lines):
            batch = list(filter(self.source.fits, batch.documents()))
        seed, held_out = self._held_out_seed, self._held_out_set
        return encode_documents(
            self.tokenizer, [d for d in batch if prefix_of(d, seed) not in held_out]
        )


def _batched(pieces: Iterator[tuple[Piece, Any]], source: Source) -> Iterator[tuple[Batch, Any]]:
    """Join documents to batches that end where reading can go on; yield each with that place.

    That of the last batch is of no use: the next part begins.
    """
    batch: list[Document] = []
    size, at = 0, None
    for piece, after in pieces:
        if isinstance(piece, Lines) and batch:
            yield batch, at
            batch, size = [], 0
        at = after
        if not source.fits(piece):
            continue
        if isinstance(piece, Lines):
            yield piece, at
            continue
        batch.append(piece)
        size += piece.characters
        if size >= BATCH and at is not None:
            yield batch, at
            batch, size = [], 0
    if batch:
        yield batch, None


class Segments:
    """The token files of a stream in `folder`, and where each of them begins.

    UserError where the folder holds segments of something else.
    """

    def __init__(
        self, folder: Path, stream: TokenStream, tokens: int, wait: Callable[[], None]
    ) -> None:
        self.folder, self.tokens, self._wait = folder, tokens, wait
        self._stream = stream
        self._reader: tuple[int, _Reader] | None = None  # and the segment that it stands before
        self._making: dict[int, Future[None]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._identity = {**stream.identity, "tokens": tokens}
        index = read_index(folder)
        self._entries: list[dict[str, Any]] = index["entries"]
        if not self._entries:
            start = {"epoch": 0, "part": 0, "at": None, "batch": 0}
            self._entries = [{"place": start, "skip": 0, "sha256": None}]
        elif index["identity"] != json.loads(json.dumps(self._identity)):
            raise UserError(
                f"{folder} holds a stream of another text, seed or size; resume with the run's own "
                "--data, --seed and --stream, or start anew"
            )

    def get(self, number: int) -> np.ndarray:
        """Return the tokens of a segment, a uint16 memory map, and begin to make the next one.

        Waits for it, calling `wait` meanwhile. SourceLost where it cannot be made, or not again.
        """
        for earlier in range(min(number, len(self._entries) - 1), number + 1):
            self._begin(earlier)
            self._await(earlier)
        self._begin(number + 1)
        for path in self.folder.glob("segment-*.bin"):
            old = int(path.stem.removeprefix("segment-"))
            if not number - 1 <= old <= number + 1:
                self._making.pop(old, None)
                with contextlib.suppress(OSError):  # mapped, where a system minds that
                    path.unlink()
        return np.memmap(self._path(number), dtype="<u2", mode="r")

    def close(self) -> None:
        """End what is being made; it is made anew when it is wanted."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)  # a connection that hangs ends with the process

    def _path(self, number: int) -> Path:
        return self.folder / f"segment-{number}.bin"

    def _await(self, number: int) -> None:
        future = self._making[number]
        while not future.done():
            self._wait()
            concurrent.futures.wait([future], _POLL)
        error = future.exception()
        if error is not None:
            del self._making[number]  # the next to ask tries again
            raise error

    def _begin(self, number: int) -> None:
        """Make a segment in a thread, after the one that is being made."""
        if number in self._making:
            return
        before, future = self._thread, Future[None]()
        self._making[number] = future

        def work() -> None:
            if before is not None:
                before.join()
            try:
                if not self._is_whole(number):
                    self._make(number)
                future.set_result(None)
            except BaseException as error:  # told to the thread that asks for it
                self._reader = None
                future.set_exception(error)

        self._thread = threading.Thread(target=work, name="i3lm-stream", daemon=True)
        self._thread.start()

    def _is_whole(self, number: int) -> bool:
        try:
            digest = self._entries[number]["sha256"]
            path = self._path(number)
            return path.stat().st_size == 2 * self.tokens and sha256_file(path) == digest
        except (OSError, IndexError):
            return False

    def _make(self, number: int) -> None:
        source = self._stream.source.description
        if number >= len(self._entries):
            raise SourceLost(f"{source}: the text before this was not read")
        entry = self._entries[number]
        part = self.folder / f".segment-{number}.bin.part"
        digest = hashlib.sha256()
        try:
            if self._reader is None or self._reader[0] != number:
                self._reader = number, _Reader(self._stream, entry["place"], entry["skip"])
            reader = self._reader[1]
            with open(part, "wb") as file:
                for ids in reader.take(self.tokens):
                    if self._stop.is_set():
                        raise SourceLost("the run has ended")
                    file.write(ids.data)
                    digest.update(ids.data)
                file.flush()
                os.fsync(file.fileno())
            if entry["sha256"] not in (None, digest.hexdigest()):
                raise SourceLost(f"{source}: changed since the run began; start anew")
            os.replace(part, self._path(number))
        except OSError as error:
            raise SourceLost(f"{part}: cannot be written ({error}); free some room") from error
        except UserError as error:
            raise SourceLost(str(error)) from error
        finally:
            part.unlink(missing_ok=True)
        entry["sha256"] = digest.hexdigest()
        self._reader = number + 1, reader
        if number + 1 == len(self._entries):
            after = {"place": reader.place, "skip": reader.used, "sha256": None}
            self._entries.append(after)
        _write_index(self.folder, {"identity": self._identity, "entries": self._entries})


class _Reader:
    """Takes tokens off a stream; `place` and `used` say where it stands."""

    def __init__(self, stream: TokenStream, place: Place, skip: int) -> None:
        self._batches = stream.read(place)
        self._ids, self.place = next(self._batches)
        self.used = skip

    def take(self, count: int) -> Iterator[np.ndarray]:
        """Yield the next `count` tokens, little-endian uint16."""
        while count:
            if self.used >= len(self._ids):
                self._ids, self.place = next(self._batches)
                self.used = 0
            ids = self._ids[self.used : self.used + count]
            self.used += len(ids)
            count -= len(ids)
            yield ids.astype("<u2", copy=False)


def read_index(folder: Path) -> dict[str, Any]:
    """Return what segments.json holds, no entries where there is none; UserError if damaged."""
    path = folder / INDEX
    try:
        index = json.loads(read_small(path))
        if index.pop("check") != _digest(index) or index["format"] != FORMAT:
            raise ValueError("its checksum or format is another")
        return index
    except FileNotFoundError:
        return {"entries": []}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or start anew") from error


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    index = {"format": FORMAT, **index}
    write_atomic(folder / INDEX, json.dumps({**index, "check": _digest(index)}).encode())


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def of_stream(name: str) -> bool:
    """Say whether a stream leaves a file or folder of this name in a run's `data`."""
    return name == INDEX or bool(re.fullmatch(r"segment-\d+\.bin|rank-\d+", name))


def drop_segments(folder: Path) -> None:
    """Remove what a stream has left in a run's `data`."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if of_stream(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
