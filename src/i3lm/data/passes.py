"""The two passes over a source: choose and count, then encode. Several threads, one result.

What Python must see in order stays in the calling thread: which documents are held out, and what is
written. The work between, in compiled code, goes to a pool a few pieces ahead. How many
threads there are changes nothing in the result.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from i3lm.data.documents import Document, Lines
from i3lm.data.holdout import Holdout, Plan, salt_of
from i3lm.data.lines import ScannedLines
from i3lm.data.sources import Source
from i3lm.tokenizer import BOS, END_INST, EOS, INST, ChunkTokenizer, VocabularyCounter
from i3lm.tokenizer.conversation import turns
from i3lm.tokenizer.kernel import library

SPLITS = ("train", "held_out")
_COUNTS = ("documents", "characters", "bytes")
_NONE = np.zeros(0, np.uint16)
BATCH = 1 << 16  # characters of documents that make a piece; as objects they are ten times larger
_SYNCED = 8 << 20  # bytes of a token file that wait for the device at once
_AHEAD = 6  # pieces in work at once where there are threads, however many

Progress = Callable[[str, float], None]
Item = TypeVar("Item")
Result = TypeVar("Result")
Piece = list[Document] | ScannedLines


def survey(
    source: Source,
    holdout: Holdout,
    counter: VocabularyCounter | None,
    *,
    seed: int,
    threads: int,
    report: Progress,
) -> Plan:
    """Show all documents to `holdout`, return what it chose; count the others' text."""
    whole_lines = counter.takes_lines if counter else library() is not None
    salt = salt_of(seed)
    with pool_of(threads) as pool:
        for piece, rare in _pieces(source, "reading", report, pool, whole_lines, salt, counter):
            if isinstance(piece, ScannedLines):
                holdout.add_lines(piece)
                if counter:
                    counter.add_rare(rare)
                rest = [document for _, document in piece.others]
            else:
                for document in piece:
                    holdout.add(document)
                rest = piece
            if counter:
                for document in rest:
                    _count(counter, document)
    plan = holdout.finish(source.description)
    if counter:
        held_out = VocabularyCounter(counter.lowercase)
        for document in plan.held_out:
            _count(held_out, document)
        counter.remove(held_out)
        for document in plan.heads:
            _count(counter, document)
    return plan


def _count(counter: VocabularyCounter, document: Document) -> None:
    if document.messages is None:
        assert document.text is not None
        counter.update(document.text)
    else:
        for message in document.messages:
            counter.update(message["content"].strip())


def encode(
    source: Source,
    plan: Plan,
    tokenizer: ChunkTokenizer,
    files: dict[str, "TokenFile"],
    *,
    threads: int,
    report: Progress,
) -> None:
    """Write the tokens of every document to the file of its split."""

    def write(parts: dict[str, Tokens]) -> None:
        for split, tokens in parts.items():
            files[split].add(tokens)

    with pool_of(threads) as pool, _writer_of(threads) as writer:
        pieces = _pieces(source, "tokenizing", report, pool, tokenizer.takes_lines)
        works = _works((piece for piece, _ in pieces), plan)
        for _ in ahead(writer, write, ahead(pool, lambda work: work(tokenizer), works)):
            pass


@dataclass
class Tokens:
    """Some encoded documents: ids, uint16, and what the manifest counts of them."""

    ids: np.ndarray
    documents: int = 0
    characters: int = 0
    bytes: int = 0

    @classmethod
    def join(cls, parts: "Sequence[Tokens]") -> "Tokens":
        """Return all parts as one."""
        counts = (sum(getattr(part, name) for part in parts) for name in _COUNTS)
        return cls(np.concatenate([part.ids for part in parts]), *counts)


class TokenFile:
    """One file of raw little-endian uint16, and the counts of what is in it.

    `beside`: other threads go on while this one waits for the device, so it need not do so at the
    end for all of the file.
    """

    def __init__(self, path: Path, *, beside: bool = False) -> None:
        self.path = path
        self._beside, self._unsynced = beside, 0
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close or discard)
        self._hash = hashlib.sha256()
        self._counts = {"documents": 0, "tokens": 0, "characters": 0, "bytes": 0}

    def add(self, tokens: Tokens) -> None:
        """Write some documents."""
        ids = tokens.ids.astype("<u2", copy=False)
        self._file.write(ids.data)
        self._hash.update(ids.data)
        self._unsynced += ids.nbytes
        if self._beside and self._unsynced >= _SYNCED:
            self._sync()
        self._counts["tokens"] += len(ids)
        for name in _COUNTS:
            self._counts[name] += getattr(tokens, name)

    def close(self) -> dict[str, Any]:
        """Flush the file to the device; return its entry of the manifest."""
        self._sync()
        self._file.close()
        return {**self._counts, "sha256": self._hash.hexdigest()}

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def discard(self) -> None:
        """Remove the file, unless it has been moved to its place."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def encode_documents(tokenizer: ChunkTokenizer, documents: Sequence[Document]) -> np.ndarray:
    """Return uint16 (N,): the documents one after the other, `<bos>` ids `<eos>` each.

    The same ids as `encode_document` and `encode_conversation` give, at a fraction of the cost
    for many short documents.
    """
    texts: list[str] = []
    tags: list[int] = []  # special tokens, and
    before: list[int] = []  # the number of the text that each one stands before
    for document in documents:
        tags.append(BOS)
        before.append(len(texts))
        if document.messages is None:
            texts.append(document.plain)
        else:
            contents = turns(document.messages, add_generation_prompt=False)
            tags += [INST, END_INST] * (len(contents) // 2)
            before += range(len(texts), len(texts) + len(contents))
            texts += contents
        tags.append(EOS)
        before.append(len(texts))
    ids, ends = tokenizer.encode_batch(texts)
    starts = np.concatenate([[0], ends])
    return np.insert(ids, starts[before], np.array(tags, np.uint16)) if tags else ids


# Encodes a piece, in any thread: the tokens of each split, in order within it.
Encode = Callable[[ChunkTokenizer], dict[str, Tokens]]


def _works(pieces: Iterable[Piece], plan: Plan) -> Iterator[Encode]:
    """Ask `plan` about the documents of each piece; yield the work that is left to do."""
    place = 0
    for piece in pieces:
        if isinstance(piece, ScannedLines):
            full = np.flatnonzero(piece.full)
            if 2 * len(piece.others) <= len(full):
                yield _divide_lines(piece, full, place, plan)
                place += len(full)
                continue
            piece = [piece.document(index) for index in full.tolist()]
        yield _divide(piece, place, plan)
        place += len(piece)


def _divide(documents: list[Document], place: int, plan: Plan) -> Encode:
    sides: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for number, document in enumerate(documents, place):
        for part, split in plan.divide(document, number):
            sides[split].append(part)
    return lambda tokenizer: {split: _tokens(tokenizer, sides[split]) for split in SPLITS}


def _divide_lines(scanned: ScannedLines, full: np.ndarray, place: int, plan: Plan) -> Encode:
    """All lines are encoded together, but for those that are cut or that only Python reads."""
    numbers = plan.among(place, place + len(full))
    places = dict(zip(full[numbers].tolist(), (place + numbers).tolist(), strict=True))
    alone = dict(scanned.others)
    alone |= {index: scanned.document(index) for index, at in places.items() if plan.cuts(at)}
    parts = {index: list(plan.divide(alone[index], places.get(index, -1))) for index in alone}
    for index in places.keys() - alone.keys():
        plan.check(scanned.raw(index), places[index])
    together = scanned.here
    together[list(alone)] = False
    held_out = np.zeros_like(together)
    held_out[list(places)] = True

    def work(tokenizer: ChunkTokenizer) -> dict[str, Tokens]:
        ids, ends = tokenizer.encode_lines(scanned.table, together)
        sides = {
            split: [_counted(scanned, together & side)]
            for split, side in zip(SPLITS, (~held_out, held_out), strict=True)
        }
        at = 0
        for index in sorted({*places, *alone}):
            begin, end = (int(ends[index - 1]) if index else 0), int(ends[index])
            sides["train"].append(Tokens(ids[at:begin]))
            if index not in alone:
                sides["held_out"].append(Tokens(ids[begin:end]))
            for part, split in parts.get(index, ()):
                sides[split].append(_tokens(tokenizer, [part]))
            at = end
        sides["train"].append(Tokens(ids[at:]))
        return {split: Tokens.join(some) for split, some in sides.items()}

    return work


def _counted(scanned: ScannedLines, lines: np.ndarray) -> "Tokens":
    """What the manifest counts of some lines, without their ids."""
    table, documents = scanned.table, int(lines.sum())
    size = int((table.ends[lines] - table.begins[lines]).sum()) + documents
    return Tokens(_NONE, documents, int(table.characters[lines].sum()) + documents, size)


def _tokens(tokenizer: ChunkTokenizer, documents: Sequence[Document]) -> Tokens:
    return Tokens(
        encode_documents(tokenizer, documents),
        len(documents),
        sum(document.characters for document in documents),
        sum(len(document.plain.encode()) + 1 for document in documents),
    )


def _pieces(
    source: Source,
    stage: str,
    report: Progress,
    pool: Executor,
    whole_lines: bool,
    salt: bytes | None = None,
    counter: VocabularyCounter | None = None,
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yield all documents: lines of files taken apart (if `whole_lines`), others in lists.

    Lines get digests with a `salt`. With a `counter` they are counted; beside each piece comes
    what is due to `add_rare`.
    """
    said, none = -1, np.zeros(0, np.uint64)

    def scan(batch: list[Document] | Lines) -> tuple[Piece, np.ndarray]:
        if not isinstance(batch, Lines):
            return batch, none
        scanned = ScannedLines.scan(batch, salt)
        return scanned, counter.count_lines(scanned.table, scanned.here) if counter else none

    for piece, rare in ahead(pool, scan, _batches(source, whole_lines)):
        if isinstance(piece, ScannedLines):
            source.skipped["empty"] += int((~piece.full).sum())
        yield piece, rare
        if (percent := int(100 * source.progress)) > said:
            said = percent
            report(stage, percent / 100)
    report(stage, 1.0)


def _batches(source: Source, whole_lines: bool) -> Iterator[list[Document] | Lines]:
    batch: list[Document] = []
    size = 0
    for piece in source.pieces() if whole_lines else source:
        if isinstance(piece, Document):
            batch.append(piece)
            size += piece.characters
        if batch and (size >= BATCH or isinstance(piece, Lines)):
            yield batch
            batch, size = [], 0
        if isinstance(piece, Lines):
            yield piece
    if batch:
        yield batch


class _Here(Executor):
    """Does the work at once, in the thread that asks for it."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future:
        done: Future = Future()
        try:
            done.set_result(work(*arguments, **options))
        except Exception as error:
            done.set_exception(error)
        return done


def pool_of(threads: int) -> Executor:
    """Return an executor of so many threads; of one, the one that asks for the work."""
    return ThreadPoolExecutor(threads, "i3lm-data") if threads > 1 else _Here()


def _writer_of(threads: int) -> Executor:
    """Return an executor that does one thing after another, beside others where there are."""
    return ThreadPoolExecutor(1, "i3lm-writer") if threads > 1 else _Here()


def ahead(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield what `map` does, the pool being a few items ahead."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) == (1 if isinstance(pool, _Here) else _AHEAD):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
