"""Which documents are held out of training, chosen in one pass and constant memory."""

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from i3lm.data.documents import Document
from i3lm.data.lines import ScannedLines
from i3lm.errors import UserError

MOST_CHARACTERS = 1_000_000
MOST_DOCUMENTS = 1_000
_WHOLE = 0.1  # a document of up to this share of the corpus is held out whole when none fits


@dataclass
class _Group:
    """Equal documents: how to get one of them, its characters, and how many there are."""

    get: Callable[[], Document]
    each: int
    copies: int = 1

    @property
    def document(self) -> Document:
        return self.get()

    @property
    def characters(self) -> int:
        return self.copies * self.each


@dataclass(frozen=True)
class Plan:
    """What `Holdout` chose: `divide` says where each document of the second pass goes.

    The documents that are trained on are all but those in `held_out` (once for each copy), and
    those in `heads`: the beginning of one that is cut in two.
    """

    documents: int  # how many `divide` will give, of both splits
    held_out: list[Document]
    heads: list[Document]
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
        return scanned.full & (~scanned.here | np.isin(scanned.prefixes, self._prefixes))

    @cached_property
    def _prefixes(self) -> np.ndarray:
        return np.array([_prefix(key) for key in self._take], np.uint64)


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

    At most 1,000,000 characters and one document are kept in memory.
    """

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._seed = seed
        self._groups: dict[bytes, _Group] = {}
        self._heap: list[tuple[int, bytes]] = []  # (minus the digest's value, digest)
        self._kept = self._documents = self._characters = 0

    def add(self, document: Document) -> None:
        """Take the next document."""
        self._add(_digest(document, self._seed), document.characters, lambda: document)

    def add_lines(self, scanned: ScannedLines) -> None:
        """Take lines, taken apart with the salt of this seed, but for those left to Python."""
        table = scanned.table
        # In hash order: soon all others are beyond the last that is kept.
        here = np.flatnonzero(scanned.here)
        here = here[np.argsort(scanned.prefixes[here])]
        for number, index in enumerate(here.tolist()):
            if number % 64 == 0 and scanned.prefixes[index] > self._bound():
                rest = here[number:]
                self._documents += len(rest)
                self._characters += int((table.characters[rest] + 1).sum())
                return
            key, characters = table.digests[index].tobytes(), int(table.characters[index]) + 1
            self._add(key, characters, scanned.later(index))

    def _add(self, key: bytes, characters: int, get: Callable[[], Document]) -> None:
        self._documents += 1
        self._characters += characters
        if key in self._groups:
            self._groups[key].copies += 1
            return
        self._groups[key] = _Group(get, characters)
        heapq.heappush(self._heap, (-int.from_bytes(key), key))
        self._kept += characters
        # Keep the first in hash order that, copies aside, reach the largest budget, and no more.
        while (
            len(self._heap) > MOST_DOCUMENTS
            or self._kept - self._groups[self._heap[0][1]].each >= MOST_CHARACTERS
        ):
            self._kept -= self._groups.pop(heapq.heappop(self._heap)[1]).each

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
        held_out = [self._groups[key].document for key in take for _ in range(take[key])]
        texts = [(self._groups[key].document, start) for key, start in cut.items()]
        heads = [Document((d.text or "")[:start], None, d.where) for d, start in texts]
        documents = self._documents + len(cut)
        return Plan(documents, held_out, heads, self._seed, take, cut)

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
