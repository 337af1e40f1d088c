"""Calls of the compiled kernels in native/text.c."""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from i3lm.errors import UserError
from i3lm.native import text_library
from i3lm.tokenizer import rule

_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library with its functions declared, or None where it was not built."""
    found = text_library()
    if found is not None:
        found.i3_text_new.argtypes = [_POINTER, _SIZE, _SIZE, _POINTER]
        found.i3_text_new.restype = _POINTER
        found.i3_text_free.argtypes = [_POINTER]
        found.i3_text_free.restype = None
        found.i3_text_encode.argtypes = [_POINTER, ctypes.c_char_p, _SIZE, _POINTER]
        found.i3_text_encode.restype = _SIZE
        found.i3_text_encode_batch.argtypes = [
            *(_POINTER, ctypes.c_char_p, _POINTER, _SIZE, _POINTER, _POINTER)
        ]
        found.i3_text_encode_batch.restype = None
        found.i3_text_count.argtypes = [ctypes.c_char_p, _POINTER, _SIZE, *[_POINTER] * 5]
        found.i3_text_count.restype = _SIZE
        text: list[Any] = [ctypes.c_char_p, _SIZE]
        found.i3_lines_scan.argtypes = [*text, ctypes.c_int32, ctypes.c_char_p, *[_POINTER] * 5]
        found.i3_lines_scan.restype = _SIZE
        table = [*text, *[_POINTER] * 3, ctypes.c_int32]
        found.i3_lines_encode.argtypes = [_POINTER, *table, _POINTER, _POINTER]
        found.i3_lines_encode.restype = None
        found.i3_lines_count.argtypes = [*table, *[_POINTER] * 5]
        found.i3_lines_count.restype = _SIZE
    return found


def utf8(text: str) -> bytes:
    """Return `text` in UTF-8; UserError where it holds half a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start + 1:,} of the text is a lone surrogate "
            f"(U+{ord(text[error.start]):04X}), which no encoding can hold; remove it"
        ) from None


def ends_of(parts: Sequence[bytes]) -> np.ndarray:
    """Return int64 (N,): where each part ends in their concatenation."""
    return np.fromiter(accumulate(map(len, parts)), np.int64, len(parts))


@dataclass(frozen=True)
class LineTable:
    """The lines of a text in UTF-8, N of them, each a document: plain, or `tagged` conversations.

    `begins`, `ends` (bytes) and `characters` (code points) are int64 (N,), `digests` uint8 (N, 16)
    or None, `kinds` uint8 (N,): `BLANK`; `HERE`, the kernels handle it; `FOR_PYTHON`, they do not,
    and its digest is not set.
    """

    data: bytes
    tagged: bool
    begins: np.ndarray
    ends: np.ndarray
    characters: np.ndarray
    digests: np.ndarray | None
    kinds: np.ndarray

    BLANK, HERE, FOR_PYTHON = 0, 1, 2

    def arguments(self, selected: np.ndarray) -> tuple[Any, ...]:
        """Return the arguments that the kernels take; `selected` is boolean (N,)."""
        arrays = (self.begins, self.ends, np.ascontiguousarray(selected, np.uint8))
        pointers = (array.ctypes for array in arrays)  # `ctypes` keeps its array alive
        return self.data, len(self.kinds), *pointers, self.tagged


def scan_lines(data: bytes, tagged: bool, salt: bytes | None) -> LineTable:
    """Take a text apart into lines; the digests are those of BLAKE2b with this salt, 16 bytes.

    None: no digests. Needs the compiled kernels.
    """
    found, room = library(), int(np.count_nonzero(np.frombuffer(data, np.uint8) == 10)) + 1
    assert found is not None
    begins, ends, characters = (np.empty(room, np.int64) for _ in range(3))
    kinds = np.empty(room, np.uint8)
    digests = None if salt is None else np.empty((room, 16), np.uint8)
    count = found.i3_lines_scan(
        *(data, len(data), tagged, (salt or b"").ljust(16, b"\0")),
        *(begins.ctypes, ends.ctypes, characters.ctypes),
        *(None if digests is None else digests.ctypes, kinds.ctypes),
    )
    digests = None if digests is None else digests[:count]
    shapes = (begins[:count], ends[:count], characters[:count])
    return LineTable(data, tagged, *shapes, digests, kinds[:count])


class Encoder:
    """The compiled rule for one vocabulary: `chunks[k]` has the id FIRST_CHUNK + k."""

    def __init__(self, found: ctypes.CDLL, chunks: Sequence[str]) -> None:
        keys = np.array([rule.pack(chunk) for chunk in chunks], np.uint64)
        common = rule.common_table()
        self._library = found
        self._tables = found.i3_text_new(
            keys.ctypes.data, len(keys), rule.FIRST_CHUNK, common.ctypes.data
        )
        if not self._tables:
            raise MemoryError
        weakref.finalize(self, found.i3_text_free, self._tables)

    def encode(self, data: bytes) -> np.ndarray:
        """Return uint16 (N,), the ids of one text in UTF-8."""
        ids = np.empty(len(data), np.uint16)
        count = self._library.i3_text_encode(self._tables, data, len(data), ids.ctypes.data)
        return ids[:count].copy()

    def encode_batch(self, parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all texts, uint16 (N,), and where each text's ids end, int64."""
        ends, id_ends = ends_of(parts), np.zeros(len(parts), np.int64)
        data = b"".join(parts)
        ids = np.empty(len(data), np.uint16)
        self._library.i3_text_encode_batch(
            *(self._tables, data, ends.ctypes.data, len(parts)),
            *(ids.ctypes.data, id_ends.ctypes.data),
        )
        return ids[: id_ends[-1] if len(parts) else 0].copy(), id_ends

    def encode_lines(self, table: LineTable, selected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the selected lines, uint16, and for every line where they end after it.

        Each line is `<bos>` ids `<eos>`, a conversation with its tags.
        """
        lines = len(table.kinds)
        ids, id_ends = np.empty(len(table.data) + 2 * lines, np.uint16), np.zeros(lines, np.int64)
        arguments = table.arguments(selected)
        self._library.i3_lines_encode(self._tables, *arguments, ids.ctypes, id_ends.ctypes)
        return ids[: id_ends[-1] if lines else 0], id_ends
