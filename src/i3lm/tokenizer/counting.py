"""Counting a vocabulary over a stream of texts, in memory that does not grow with the stream."""

from collections import Counter

import numpy as np

from i3lm.errors import UserError
from i3lm.tokenizer import rule
from i3lm.tokenizer.kernel import ends_of, library, utf8

_BLOCK = 1 << 18  # bytes of UTF-8 counted at a time
_PENDING = 1 << 19  # occurrences of rare chunks kept before they are summed up
RARE_LIMIT = 1 << 20  # different rare chunks kept


class VocabularyCounter:
    """Counts single characters, and the chunks that the rule takes if every chunk is known.

    Characters and chunks of ASCII are counted exactly, in tables of fixed size (26 MB, of which
    only the parts in use are touched). Chunks with other characters are called rare. They are
    summed up after every 524,288th occurrence; then at most `rare_limit` different ones stay, the
    most frequent ones, ties by code point. Up to that many the counts are exact and the order
    of texts is of no importance. Beyond, a rare chunk seen less than once in 524,288 may be
    undercounted, and the result depends on the sequence of texts (and of `merge` and `build`).

    Every text is counted by itself, as the tokenizer encodes it. With `lowercase`, texts are
    lower-cased first: give the same setting to `ChunkTokenizer`.
    """

    def __init__(self, lowercase: bool = False, *, rare_limit: int = RARE_LIMIT) -> None:
        self.lowercase = lowercase
        self._rare_limit = rare_limit
        self._characters = np.zeros(0x110000, np.int64)
        self._pairs = np.zeros(1 << 14, np.int64)
        self._triples = np.zeros(1 << 21, np.int64)
        self._rare = np.zeros(0, np.uint64)  # sorted
        self._rare_counts = np.zeros(0, np.int64)
        self._pending: list[np.ndarray] = []  # uint64, chunk numbers in the order of occurrence
        self._pending_size = 0
        self._block: list[bytes] = []
        self._block_size = 0
        self._common = rule.common_table()

    def update(self, text: str) -> None:
        """Count one text; UserError where it holds a lone surrogate."""
        data = utf8(rule.lower(text) if self.lowercase else text)
        self._block.append(data)
        self._block_size += len(data)
        if self._block_size >= _BLOCK:
            self._count_block()

    def merge(self, other: "VocabularyCounter") -> None:
        """Add what `other` has counted, as if its texts had followed; `other` stays usable.

        ValueError unless both lower-case or neither.
        """
        if self.lowercase != other.lowercase:
            raise ValueError("one counter lower-cases, the other does not")
        for counter in (self, other):
            counter._count_block()
            counter._sum_pending()
        self._characters += other._characters
        self._pairs += other._pairs
        self._triples += other._triples
        self._add_rare(other._rare, other._rare_counts)

    def build(self, vocab_size: int = 4466, *, min_character_count: int | None = None) -> list[str]:
        """Return at most `vocab_size` tokens in id order; counting may go on afterwards.

        Special tokens, bytes, then single characters in code-point order: those seen at least
        `min_character_count` times (None: twice, and once in a million characters), the most
        frequent ones if there are too many. Then chunks, the most frequent first. Ties go to the
        lower code point. UserError where `vocab_size` is not 262 to 65,536.
        """
        if not rule.FIRST_CHUNK <= vocab_size <= 1 << 16:
            raise UserError(
                f"a vocabulary of {vocab_size:,} tokens is impossible; "
                f"take {rule.FIRST_CHUNK} to {1 << 16:,}"
            )
        self._count_block()
        self._sum_pending()
        room = vocab_size - rule.FIRST_CHUNK
        if min_character_count is None:
            min_character_count = max(2, int(self._characters.sum()) // 1_000_000)
        codes = np.flatnonzero(self._characters >= max(1, min_character_count))
        frequent = np.argsort(-self._characters[codes], kind="stable")[:room]
        characters = [chr(code) for code in np.sort(codes[frequent])]

        keys, counts = self._chunk_counts()
        order = np.lexsort((keys, -counts))[: room - len(characters)]
        chunks = [rule.unpack(int(key)) for key in keys[order]]
        return [*rule.SPECIAL_TOKENS, *rule.BYTE_TOKENS, *characters, *chunks]

    def _chunk_counts(self) -> tuple[np.ndarray, np.ndarray]:
        pairs, triples = np.flatnonzero(self._pairs), np.flatnonzero(self._triples)
        keys = [
            (pairs >> 7) + 1 << 42 | (pairs & 127) + 1 << 21,
            (triples >> 14) + 1 << 42 | (triples >> 7 & 127) + 1 << 21 | (triples & 127) + 1,
        ]
        return (
            np.concatenate([*(part.astype(np.uint64) for part in keys), self._rare]),
            np.concatenate([self._pairs[pairs], self._triples[triples], self._rare_counts]),
        )

    def _count_block(self) -> None:
        block, self._block, self._block_size = self._block, [], 0
        found = library()
        if found is None:
            rare = self._count_in_python([data.decode() for data in block])
        else:
            ends = ends_of(block)
            rare = np.empty(sum(map(len, block)) // 3 + 1, np.uint64)
            count = found.i3_text_count(
                *(b"".join(block), ends.ctypes.data, len(block), self._common.ctypes.data),
                *(self._characters.ctypes.data, self._pairs.ctypes.data),
                *(self._triples.ctypes.data, rare.ctypes.data),
            )
            rare = rare[:count].copy()
        # Summed up at exact multiples, so that what is dropped depends on the texts alone.
        while self._pending_size + len(rare) >= _PENDING:
            taken = _PENDING - self._pending_size
            self._pending.append(rare[:taken])
            self._sum_pending()
            rare = rare[taken:]
        if len(rare):
            self._pending.append(rare)
            self._pending_size += len(rare)

    def _count_in_python(self, texts: list[str]) -> np.ndarray:
        rare = []
        for text in texts:
            for character, count in Counter(text).items():
                self._characters[ord(character)] += count
            for chunk in rule.chunks(text):
                if len(chunk) == 1:
                    continue
                if not chunk.isascii():
                    rare.append(rule.pack(chunk))
                elif len(chunk) == 2:
                    self._pairs[ord(chunk[0]) << 7 | ord(chunk[1])] += 1
                else:
                    a, b, c = map(ord, chunk)
                    self._triples[a << 14 | b << 7 | c] += 1
        return np.array(rare, np.uint64)

    def _sum_pending(self) -> None:
        if self._pending:
            self._add_rare(*np.unique(np.concatenate(self._pending), return_counts=True))
            self._pending, self._pending_size = [], 0

    def _add_rare(self, keys: np.ndarray, counts: np.ndarray) -> None:
        """Add counts of different, sorted chunk numbers, and drop what exceeds the limit."""
        merged, place = np.unique(np.concatenate([self._rare, keys]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, place[: len(self._rare)], self._rare_counts)
        np.add.at(total, place[len(self._rare) :], counts)
        if len(merged) > self._rare_limit:
            kept = np.sort(np.lexsort((merged, -total))[: self._rare_limit])
            merged, total = merged[kept], total[kept]
        self._rare, self._rare_counts = merged, total
