"""Which documents are held out of training, chosen in one pass and constant memory."""

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from i3lm.data.documents import Document
from i3lm.data.lines import ScannedLines
from i3lm.errors import UserError

MOST_CHARACTERS = 1_000_000
MOST_DOCUMENTS = 1_000
_WHOLE = 0.1  # a document of up to this share of the corpus is held out whole when none fits


@dataclass
class _Group:
    """Equal documents: the first of them, and how many there are."""

    document: Document
    copies: int = 1

    @property
    def characters(self) -> int:
        return self.copies * self.document.characters


@dataclass(frozen=True)
class Plan:
    """What `Holdout` chose: `divide` says where each document of the second pass goes."""

    documents: int  # how many `divide` will give, of both splits
    _seed: int
    _take: dict[bytes, int]  # digest -> copies still to be held out
    _cut: dict[bytes, int]  # digest -> where its held-out part begins

    def divide(self, document: Document) -> Iterator[tuple[Document, str]]:
        """Yield (document, "train" or "held_out"), twice for the one that is cut in two."""
        key = _digest(document, self._seed)
        left = self._take.get(key, 0)
        if not left:
            yield document, "train"
            return
        self._take[key] = left - 1
        if (start := self._cut.get(key, 0)) and document.text is not None:
            yield Document(document.text[:start], None, document.where), "train"
            document = Document(document.text[start:], None, document.where)
        yield document, "held_out"

    def concerns(self, scanned: ScannedLines) -> np.ndarray:
        """Return which lines, boolean (N,), `divide` must see; all others are trained on."""
        taken = np.array([_prefix(key) for key in self._take], np.uint64)
        return scanned.full & (~scanned.here | np.isin(scanned.prefixes, taken))


class Holdout:
    """Chooses the held-out documents while all documents go by once.

    Documents are taken in the order of a hash of (seed, content) while they fit into a budget: the
    `share` of all characters, at most 1,000,000 characters and 1,000 documents. So the
    choice is a fair sample, the same in any order of the documents, and copies of a document
    are all on one side. One that does not fit ends it if half of the budget is filled, and else
    is passed over. If less than half is filled in the end (a corpus of few documents, or one), the
    first that was passed over is held out after all: whole if it is at most a tenth of the
    corpus, otherwise its end, its beginning being trained on. Of a conversation, which cannot
    be cut, and of one that has copies, one copy is taken, unless nothing else would be left.

    `train` is called once per document for every document (or part) that is not held out,
    in no particular order. At most 1,000,000 characters and one document are kept in memory.
    """

    def __init__(
        self, share: float, seed: int, train: Callable[[Document], None] | None = None
    ) -> None:
        self._share = share
        self._seed = seed
        self._train = train or (lambda document: None)
        self._groups: dict[bytes, _Group] = {}
        self._heap: list[tuple[int, bytes]] = []  # (minus the digest's value, digest)
        self._kept = self._documents = self._characters = 0

    def add(self, document: Document) -> None:
        """Take the next document."""
        key = _digest(document, self._seed)
        self._documents += 1
        self._characters += document.characters
        if key in self._groups:
            self._groups[key].copies += 1
            return
        self._groups[key] = _Group(document)
        heapq.heappush(self._heap, (-int.from_bytes(key), key))
        self._kept += document.characters
        # Keep the first in hash order that, copies aside, reach the largest budget, and no more.
        while (
            len(self._heap) > MOST_DOCUMENTS
            or self._kept - self._groups[self._heap[0][1]].document.characters >= MOST_CHARACTERS
        ):
            group = self._groups.pop(heapq.heappop(self._heap)[1])
            self._kept -= group.document.characters
            self._release(group, group.copies)

    def add_lines(self, scanned: ScannedLines) -> np.ndarray:
        """Take the documents of many lines; return which of them `train` is not called for.

        These, boolean (N,), are not held out, and the caller sees to them.
        """
        settled = scanned.here & (scanned.prefixes > self._bound())
        self._documents += int(settled.sum())
        self._characters += int((scanned.table.characters[settled] + 1).sum())
        for index in np.flatnonzero(scanned.full & ~settled).tolist():
            self.add(scanned.document(index))
        return settled

    def _bound(self) -> np.uint64:
        """Return the start of the digests beyond which a document would be given up at once."""
        full = len(self._heap) >= MOST_DOCUMENTS or self._kept >= MOST_CHARACTERS
        return _prefix(self._heap[0][1]) if full else np.uint64(2**64 - 1)

    def finish(self, description: str) -> Plan:
        """Return the choice after the last document; `description` names the corpus in errors."""
        if not self._documents:
            raise UserError(f"{description}: no text in it; give a source with documents")
        share = min(math.ceil(self._share * self._characters), self._characters - 1)
        budget = min(MOST_CHARACTERS, share)
        take: dict[bytes, int] = {}
        cut: dict[bytes, int] = {}
        taken = copies = 0
        misfit: bytes | None = None
        for key in sorted(self._groups):
            group = self._groups[key]
            if taken + group.characters <= budget and copies + group.copies <= MOST_DOCUMENTS:
                take[key] = group.copies
                taken += group.characters
                copies += group.copies
            elif taken >= budget / 2:
                break
            else:
                misfit = misfit or key
        if misfit and taken < budget / 2 and copies < MOST_DOCUMENTS:
            self._take_part(misfit, budget - taken, take, cut)
        if not take or (sum(take.values()) == self._documents and not cut):
            raise UserError(
                f"{description}: one document that cannot be divided into training and held-out "
                "text; give more"
            )
        for key, group in self._groups.items():
            self._release(group, group.copies - take.get(key, 0))
            if key in cut and group.document.text is not None:
                self._train(Document(group.document.text[: cut[key]], None, group.document.where))
        return Plan(self._documents + len(cut), self._seed, take, cut)

    def _take_part(
        self, key: bytes, room: int, take: dict[bytes, int], cut: dict[bytes, int]
    ) -> None:
        """Take from a group that does not fit what the class says."""
        group = self._groups[key]
        text = group.document.text
        if group.copies > 1 or group.characters <= min(MOST_CHARACTERS, _WHOLE * self._characters):
            take[key] = 1
        elif text is not None and (start := _end_part(text, room)):
            take[key], cut[key] = 1, start
        elif sum(take.values()) + 1 < self._documents:
            take[key] = 1

    def _release(self, group: _Group, copies: int) -> None:
        for _ in range(copies):
            self._train(group.document)


def _digest(document: Document, seed: int) -> bytes:
    data = document.plain.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, salt=salt_of(seed)).digest()


def salt_of(seed: int) -> bytes:
    """Return the salt of the digests of a seed."""
    return (seed % 2**64).to_bytes(8)


def _prefix(digest: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(digest[:8]))


def _end_part(text: str, room: int) -> int:
    """Return where the last `room` characters begin, moved on to a line start or else a word's;
    0 if `text` cannot be divided into two parts that both hold more than white space."""
    first, end = len(text) - len(text.lstrip()), len(text.rstrip())
    start = max(first + 1, min(len(text) - room, end - 1))
    if start >= end:
        return 0
    for mark in "\n ":
        at = text.find(mark, start, min(start + room // 2, end))
        if at >= 0:
            return at + 1
    return start
