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
_BATCH = 1 << 20  # characters of documents that make a piece
_AHEAD = 3  # pieces in work at once, whatever the number of threads

Progress = Callable[[str, float], None]
Item, Result = TypeVar("Item"), TypeVar("Result")
Piece = list[Document] | ScannedLines


def count(counter: VocabularyCounter, document: Document) -> None:
    """Count a document's text, each message of a conversation as a text."""
    if document.messages is None:
        assert document.text is not None
        counter.update(document.text)
    else:
        for message in document.messages:
            counter.update(message["content"].strip())


def survey(
    source: Source,
    holdout: Holdout,
    counter: VocabularyCounter | None,
    *,
    seed: int,
    threads: int,
    report: Progress,
) -> None:
    """Show all documents to `holdout`, and count those lines that it leaves to the caller."""
    with _pool(threads) as pool:

        def settled() -> Iterator[tuple[ScannedLines, np.ndarray]]:
            whole_lines = counter.takes_lines if counter else library() is not None
            for piece in _pieces(source, "reading", report, pool, seed, whole_lines):
                if isinstance(piece, ScannedLines):
                    yield piece, holdout.add_lines(piece)
                else:
                    for document in piece:
                        holdout.add(document)

        if counter is None:
            deque(settled(), maxlen=0)
            return
        found = _ahead(pool, lambda both: counter.count_lines(both[0].table, both[1]), settled())
        for rare in found:
            counter.add_rare(rare)


def encode(
    source: Source,
    plan: Plan,
    tokenizer: ChunkTokenizer,
    files: dict[str, "TokenFile"],
    *,
    seed: int,
    threads: int,
    report: Progress,
) -> None:
    """Write the tokens of every document to the file of its split."""
    with _pool(threads) as pool:
        pieces = _pieces(source, "tokenizing", report, pool, seed, tokenizer.takes_lines)
        parts = (part for piece in pieces for part in _divide(piece, plan))
        for split, tokens in _ahead(pool, lambda part: (part[0], part[1](tokenizer)), parts):
            files[split].add(tokens)


@dataclass
class Tokens:
    """Some encoded documents: ids, uint16, and what the manifest counts of them."""

    ids: np.ndarray
    documents: int
    characters: int
    bytes: int


class TokenFile:
    """One file of raw little-endian uint16, and the counts of what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close or discard)
        self._hash = hashlib.sha256()
        self._counts = {"documents": 0, "tokens": 0, "characters": 0, "bytes": 0}

    def add(self, tokens: Tokens) -> None:
        """Write some documents."""
        ids = tokens.ids.astype("<u2", copy=False)
        self._file.write(ids.data)
        self._hash.update(ids.data)
        self._counts["tokens"] += len(ids)
        for name in ("documents", "characters", "bytes"):
            self._counts[name] += getattr(tokens, name)

    def close(self) -> dict[str, Any]:
        """Flush the file to the device; return its entry of the manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {**self._counts, "sha256": self._hash.hexdigest()}

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


# What a part of a piece becomes, in any thread.
Encode = Callable[[ChunkTokenizer], Tokens]


def _documents(documents: Sequence[Document]) -> Encode:
    def run(tokenizer: ChunkTokenizer) -> Tokens:
        return Tokens(
            encode_documents(tokenizer, documents),
            len(documents),
            sum(document.characters for document in documents),
            sum(len(document.plain.encode()) + 1 for document in documents),
        )

    return run


def _lines(scanned: ScannedLines, selected: np.ndarray) -> Encode:
    def run(tokenizer: ChunkTokenizer) -> Tokens:
        table = scanned.table
        return Tokens(
            tokenizer.encode_lines(table, selected)[0],
            int(selected.sum()),
            int((table.characters[selected] + 1).sum()),
            int((table.ends[selected] - table.begins[selected] + 1).sum()),
        )

    return run


def _divide(piece: Piece, plan: Plan) -> Iterator[tuple[str, Encode]]:
    """Yield the parts of a piece and the split of each, in order within a split."""
    if isinstance(piece, ScannedLines):
        yield from _divide_lines(piece, plan)
        return
    sides: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in piece:
        for part, split in plan.divide(document):
            sides[split].append(part)
    for split, documents in sides.items():
        if documents:
            yield split, _documents(documents)


def _divide_lines(scanned: ScannedLines, plan: Plan) -> Iterator[tuple[str, Encode]]:
    """The lines that `plan` must see go by as documents, the runs between them as they are."""
    special = plan.concerns(scanned)
    if 2 * special.sum() > scanned.full.sum():
        everything = np.flatnonzero(scanned.full).tolist()
        yield from _divide([scanned.document(index) for index in everything], plan)
        return
    plain, begin = scanned.here & ~special, 0
    for index in [*np.flatnonzero(special).tolist(), len(plain)]:
        run = np.zeros_like(plain)
        run[begin:index] = plain[begin:index]
        if run.any():
            yield "train", _lines(scanned, run)
        if index < len(plain):
            yield from _divide([scanned.document(index)], plan)
        begin = index + 1


def _pieces(
    source: Source,
    stage: str,
    report: Progress,
    pool: Executor,
    seed: int,
    whole_lines: bool,
) -> Iterator[Piece]:
    """Yield all documents: lines of files taken apart (if `whole_lines`), others in lists."""
    salt, said = salt_of(seed), -1

    def scan(batch: list[Document] | Lines) -> Piece:
        return ScannedLines.scan(batch, salt) if isinstance(batch, Lines) else batch

    for piece in _ahead(pool, scan, _batches(source, whole_lines)):
        if isinstance(piece, ScannedLines):
            source.skipped["empty"] += int((~piece.full).sum())
        yield piece
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
        if batch and (size >= _BATCH or isinstance(piece, Lines)):
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
        done.set_result(work(*arguments, **options))
        return done


def _pool(threads: int) -> Executor:
    return ThreadPoolExecutor(threads, "i3lm-data") if threads > 1 else _Here()


def _ahead(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield what `map` does, the pool being a few items ahead."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) == _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
