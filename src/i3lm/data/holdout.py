"""Which documents are held out of training, chosen in one pass and constant memory."""

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from i3lm.data.documents import Document
from i3lm.errors import UserError

MOST_CHARACTERS = 1_000_000
MOST_DOCUMENTS = 1_000
_WHOLE = 0.1  # a document of up to this share of the corpus is held out whole when none fits


@dataclass
class _Group:
    """Equal documents: the first of them, and how many there are."""

    document: Document
    copies: int = 0

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


class Holdout:
    """Chooses the held-out documents while all documents go by once.

    Documents are taken in the order of a hash of (seed, content) while they fit into a budget: the
    `share` of all characters, at most 1,000,000 characters and 1,000 documents. So the
    choice is a fair sample, the same in any order of the documents, and copies of a document
    are all on one side. If less than half of the budget is filled when a document does not fit
    (a corpus of few documents, or one), that document is taken whole where it is at most a tenth of
    the corpus; else the end of it is held out and its beginning trained on, or, for a
    conversation, which cannot be cut, one copy of it is taken.

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
        self._kept = self._copies = 0
        self._documents = self._characters = 0

    def add(self, document: Document) -> None:
        """Take the next document."""
        key = _digest(document, self._seed)
        self._documents += 1
        self._characters += document.characters
        if key not in self._groups:
            if self._full(0, 0) and -int.from_bytes(key) < self._heap[0][0]:
                self._train(document)
                return
            self._groups[key] = _Group(document)
            heapq.heappush(self._heap, (-int.from_bytes(key), key))
        self._groups[key].copies += 1
        self._kept += document.characters
        self._copies += 1
        # Keep the first documents in hash order that reach the largest budget, and no more.
        while self._full(*self._weight(self._heap[0][1])):
            group = self._groups.pop(heapq.heappop(self._heap)[1])
            self._kept -= group.characters
            self._copies -= group.copies
            self._release(group, group.copies)

    def finish(self, description: str) -> Plan:
        """Return the choice after the last document; `description` names the corpus in errors."""
        if not self._documents:
            raise UserError(f"{description}: no text in it; give a source with documents")
        budget = min(MOST_CHARACTERS, math.ceil(self._share * self._characters))
        take: dict[bytes, int] = {}
        cut: dict[bytes, int] = {}
        taken = copies = 0
        for key in sorted(self._groups):
            group = self._groups[key]
            if taken + group.characters > budget or copies + group.copies > MOST_DOCUMENTS:
                if taken < budget / 2 and copies < MOST_DOCUMENTS / 2:
                    self._take_part(key, group, budget - taken, take, cut)
                break
            take[key] = group.copies
            taken += group.characters
            copies += group.copies
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
        self, key: bytes, group: _Group, room: int, take: dict[bytes, int], cut: dict[bytes, int]
    ) -> None:
        if group.characters <= min(MOST_CHARACTERS, _WHOLE * self._characters):
            take[key] = group.copies
            return
        text = group.document.text
        if text is None or group.copies > 1:
            take[key] = 1
        elif (start := _end_part(text, room)) > 0:
            take[key], cut[key] = 1, start
        elif len(self._groups) > 1:
            take[key] = 1

    def _full(self, characters: int, copies: int) -> bool:
        """Whether the largest budget is reached without a group of that weight."""
        return self._kept - characters >= MOST_CHARACTERS or self._copies - copies >= MOST_DOCUMENTS

    def _weight(self, key: bytes) -> tuple[int, int]:
        group = self._groups[key]
        return group.characters, group.copies

    def _release(self, group: _Group, copies: int) -> None:
        for _ in range(copies):
            self._train(group.document)


def _digest(document: Document, seed: int) -> bytes:
    data = document.plain.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, salt=(seed % 2**64).to_bytes(8)).digest()


def _end_part(text: str, room: int) -> int:
    """Return where the last `room` characters begin, moved on to a line start or else a word's;
    0 if `text` cannot be divided into two parts that both hold more than white space."""
    start = max(1, len(text) - room)
    for mark in "\n ":
        at = text.find(mark, start, start + room // 2)
        if at >= 0 and text[at:].strip():
            start = at + 1
            break
    return start if text[:start].strip() and text[start:].strip() else 0
