"""Which documents are held out of training, chosen in one pass and constant memory."""

import bisect
import hashlib
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
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
    """Equal documents: how to get one of them, its characters, how many there are, and the places
    of the first of them, as many as may be held out.
    """

    get: Callable[[], Document]
    each: int
    places: list[int]
    copies: int = 1

    def add(self, place: int) -> None:
        self.copies += 1
        bisect.insort(self.places, place)
        del self.places[MOST_DOCUMENTS:]

    @property
    def document(self) -> Document:
        return self.get()

    @property
    def characters(self) -> int:
        return self.copies * self.each


class Plan:
    """What `Holdout` chose: `divide` says where each document of the second pass goes.

    `documents` is how many `divide` gives, of both splits. The documents that are trained on
    are all but those of `held_out` (once for each copy), and those of `heads`: the beginning of one
    that is cut in two.
    """

    def __init__(
        self, documents: int, description: str, seed: int, chosen: Sequence["Chosen"]
    ) -> None:
        self.documents = documents
        self._description = description
        self._seed = seed
        self._chosen = chosen
        self._at = {place: group for group in chosen for place in group.places}
        self._places = np.array(sorted(self._at), np.int64)

    @property
    def held_out(self) -> Iterator[Document]:
        """The documents that `divide` gives as held out, or cuts."""
        return (group.get() for group in self._chosen for _ in group.places)

    @property
    def prefixes(self) -> list[int]:
        """What `prefix_of` gives for the documents that are held out, or cut."""
        return sorted(int.from_bytes(group.key[:8]) for group in self._chosen)

    @property
    def heads(self) -> Iterator[Document]:
        """The beginnings, trained on, of documents that are cut."""
        for group in self._chosen:
            if group.start:
                document = group.get()
                yield Document((document.text or "")[: group.start], None, document.where)

    def divide(self, document: Document, place: int) -> Iterator[tuple[Document, str]]:
        """Yield (document, "train" or "held_out"), twice for the one that is cut in two.

        `place` counts the documents of the source from 0. UserError where another document stood
        there in the first pass.
        """
        group = self._at.get(place)
        if group is None:
            yield document, "train"
            return
        self.check(_bytes(document), place)
        if group.start and document.text is not None:
            yield Document(document.text[: group.start], None, document.where), "train"
            document = Document(document.text[group.start :], None, document.where)
        yield document, "held_out"

    def among(self, begin: int, end: int) -> np.ndarray:
        """Return which documents at places [begin, end) `divide` must see, int64, ascending and
        counted from `begin`; all others are trained on."""
        first, last = np.searchsorted(self._places, (begin, end))
        return self._places[first:last] - begin

    def cuts(self, place: int) -> bool:
        """Return whether the document there is cut in two."""
        return self._at[place].start > 0

    def check(self, plain: bytes, place: int) -> None:
        """Raise UserError unless a document that is held out reads as it did in the first pass."""
        if _digest(plain, self._seed) != self._at[place].key:
            raise UserError(f"{self._description}: changed while it was read; run it again")


@dataclass(frozen=True)
class Chosen:
    """Equal documents that are held out: their digest, their places, how to get one of them, and
    where the held-out part begins."""

    key: bytes
    places: list[int]
    get: Callable[[], Document]
    start: int


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
        self._add(_digest(_bytes(document), self._seed), document, self._documents)
        self._documents += 1

    def add_lines(self, scanned: ScannedLines) -> None:
        """Take the next lines, taken apart with the salt of this seed."""
        full = np.flatnonzero(scanned.full)
        here = np.flatnonzero(scanned.here)
        places = self._documents + np.searchsorted(full, here)
        # In hash order: soon all others are beyond the last that is kept.
        near = np.flatnonzero(scanned.prefixes[here] <= np.uint64(self._bound()))
        near = near[np.argsort(scanned.prefixes[here[near]], kind="stable")]
        indices = here[near]
        rows = zip(
            indices.tolist(),
            places[near].tolist(),
            scanned.prefixes[indices].tolist(),
            (scanned.table.characters[indices] + 1).tolist(),
            strict=True,
        )
        for index, place, prefix, characters in rows:
            if prefix > self._bound():
                break
            self._keep(scanned.digest(index), characters, place, scanned.later(index))
        self._characters += int((scanned.table.characters[here] + 1).sum())
        for index, document in scanned.others:
            place = self._documents + int(np.searchsorted(full, index))
            self._add(_digest(_bytes(document), self._seed), document, place)
        self._documents += len(full)

    def _add(self, key: bytes, document: Document, place: int) -> None:
        self._characters += document.characters
        self._keep(key, document.characters, place, lambda: document)

    def _keep(self, key: bytes, characters: int, place: int, get: Callable[[], Document]) -> None:
        if key in self._groups:
            self._groups[key].add(place)
            return
        self._groups[key] = _Group(get, characters, [place])
        heapq.heappush(self._heap, (-int.from_bytes(key), key))
        self._kept += characters
        # Keep the first in hash order that, copies aside, reach the largest budget, and no more.
        while (
            len(self._heap) > MOST_DOCUMENTS
            or self._kept - self._groups[self._heap[0][1]].each >= MOST_CHARACTERS
        ):
            self._kept -= self._groups.pop(heapq.heappop(self._heap)[1]).each

    def _bound(self) -> int:
        """Return the start of the digests beyond which a document would be given up at once."""
        full = len(self._heap) >= MOST_DOCUMENTS or self._kept >= MOST_CHARACTERS
        return -self._heap[0][0] >> 64 if full else 2**64 - 1

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
        chosen = [
            Chosen(key, group.places[:count], group.get, cut.get(key, 0))
            for key, count in take.items()
            for group in (self._groups[key],)
        ]
        return Plan(self._documents + len(cut), description, self._seed, chosen)

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


def _bytes(document: Document) -> bytes:
    return document.plain.encode("utf-8", "surrogatepass")


def _digest(plain: bytes, seed: int) -> bytes:
    return hashlib.blake2b(plain, digest_size=16, salt=salt_of(seed)).digest()


def prefix_of(document: Document, seed: int) -> int:
    """Return 64 bits of a document's digest: as `ScannedLines.prefixes`."""
    return int.from_bytes(_digest(_bytes(document), seed)[:8])


def salt_of(seed: int) -> bytes:
    """Return the salt of the digests of a seed."""
    return (seed % 2**64).to_bytes(8)


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
