"""Counting a vocabulary over a stream of texts, in memory that does not grow with the stream."""

import mmap
from collections import Counter

import numpy as np

from i3lm.errors import UserError
from i3lm.tokenizer import rule
from i3lm.tokenizer.kernel import LineTable, ends_of, library, utf8

_BLOCK = 1 << 18  # bytes of UTF-8 counted at a time
_PENDING = 1 << 19  # occurrences of rare chunks kept before they are summed up
RARE_LIMIT = 1 << 20  # different rare chunks kept

# Counts by code point, of ASCII pairs and of ASCII triples; int64.
Tables = tuple[np.ndarray, np.ndarray, np.ndarray]


def _new_tables() -> Tables:
    # Not numpy's memory: it asks for huge pages, and a count here and there would take them all.
    ours = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    characters, pairs, triples = (
        np.frombuffer(mmap.mmap(-1, 8 * size, **ours), np.int64)
        for size in (0x110000, 1 << 14, 1 << 21)
    )
    return characters, pairs, triples


def _add(tables: Tables, others: Tables, sign: int = 1) -> None:
    """Add counts, where there are any: pages that hold none stay untouched."""
    for table, other in zip(tables, others, strict=True):
        places = np.flatnonzero(other)
        table[places] += sign * other[places]


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
        self._tables = _new_tables()
        self._idle: list[Tables] = []  # of threads that count lines
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
            counter._finish()
        _add(self._tables, other._tables)
        self._add_rare(other._rare, other._rare_counts)

    def remove(self, other: "VocabularyCounter") -> None:
        """Take back what `other` has counted, texts that this one has counted, too.

        Exact, but for rare chunks that were dropped from either.
        """
        for counter in (self, other):
            counter._finish()
        _add(self._tables, other._tables, -1)
        _, mine, its = np.intersect1d(
            self._rare, other._rare, assume_unique=True, return_indices=True
        )
        self._rare_counts[mine] -= other._rare_counts[its]
        left = self._rare_counts > 0
        self._rare, self._rare_counts = self._rare[left], self._rare_counts[left]

    def build(
        self,
        vocab_size: int = 4466,
        *,
        min_character_count: int | None = None,
        min_chunk_count: int = 1,
    ) -> list[str]:
        """Return at most `vocab_size` tokens in id order; counting may go on afterwards.

        Special tokens, bytes, then single characters in code-point order: those seen at least
        `min_character_count` times (None: twice, and once in a million characters), the most
        frequent ones if there are too many. Then chunks that were seen `min_chunk_count` times, the
        most frequent first. Ties go to the lower code point. UserError where `vocab_size` is not
        262 to 65,536.
        """
        if not rule.FIRST_CHUNK <= vocab_size <= 1 << 16:
            raise UserError(
                f"a vocabulary of {vocab_size:,} tokens is impossible; "
                f"take {rule.FIRST_CHUNK} to {1 << 16:,}"
            )
        self._finish()
        characters_seen = self._tables[0]
        room = vocab_size - rule.FIRST_CHUNK
        if min_character_count is None:
            min_character_count = max(2, int(characters_seen.sum()) // 1_000_000)
        codes = np.flatnonzero(characters_seen >= max(1, min_character_count))
        frequent = np.argsort(-characters_seen[codes], kind="stable")[:room]
        characters = [chr(code) for code in np.sort(codes[frequent])]

        keys, counts = self._chunk_counts()
        known = counts >= min_chunk_count
        keys, counts = keys[known], counts[known]
        order = np.lexsort((keys, -counts))[: room - len(characters)]
        chunks = [rule.unpack(int(key)) for key in keys[order]]
        return [*rule.SPECIAL_TOKENS, *rule.BYTE_TOKENS, *characters, *chunks]

    def _chunk_counts(self) -> tuple[np.ndarray, np.ndarray]:
        _, of_pairs, of_triples = self._tables
        pairs, triples = np.flatnonzero(of_pairs), np.flatnonzero(of_triples)
        keys = [
            (pairs >> 7) + 1 << 42 | (pairs & 127) + 1 << 21,
            (triples >> 14) + 1 << 42 | (triples >> 7 & 127) + 1 << 21 | (triples & 127) + 1,
        ]
        return (
            np.concatenate([*(part.astype(np.uint64) for part in keys), self._rare]),
            np.concatenate([of_pairs[pairs], of_triples[triples], self._rare_counts]),
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
                *(table.ctypes.data for table in (*self._tables, rare)),
            )
            rare = rare[:count].copy()
        self.add_rare(rare)

    @property
    def takes_lines(self) -> bool:
        """Whether `count_lines` works: with the compiled kernels, without lower-casing."""
        return library() is not None and not self.lowercase

    def count_lines(self, table: LineTable, selected: np.ndarray) -> np.ndarray:
        """Count selected lines, in any thread; return their rare chunks, to be given to `add_rare`.

        Each turn of a conversation counts as a text. Needs the compiled kernels.
        """
        found = library()
        assert found is not None
        try:
            tables = self._idle.pop()
        except IndexError:
            tables = _new_tables()
        rare = np.empty(len(table.data) // 3 + 1, np.uint64)
        count = found.i3_lines_count(
            *table.arguments(selected), *(a.ctypes for a in (self._common, *tables, rare))
        )
        self._idle.append(tables)
        return rare[:count].copy()

    def add_rare(self, rare: np.ndarray) -> None:
        """Take the rare chunks of `count_lines`, in the order of the texts, in one thread."""
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
        characters, pairs, triples = self._tables
        for text in texts:
            for character, count in Counter(text).items():
                characters[ord(character)] += count
            for chunk in rule.chunks(text):
                if len(chunk) == 1:
                    continue
                if not chunk.isascii():
                    rare.append(rule.pack(chunk))
                elif len(chunk) == 2:
                    pairs[ord(chunk[0]) << 7 | ord(chunk[1])] += 1
                else:
                    a, b, c = map(ord, chunk)
                    triples[a << 14 | b << 7 | c] += 1
        return np.array(rare, np.uint64)

    def _finish(self) -> None:
        """Bring everything counted so far into `_tables` and `_rare`."""
        self._count_block()
        self._sum_pending()
        while self._idle:
            _add(self._tables, self._idle.pop())

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
