"""Lines that the compiled code has taken apart: many documents at once, none a Python object."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from i3lm.data.documents import Document, Lines, read_line
from i3lm.tokenizer.kernel import LineTable, scan_lines


@dataclass(frozen=True)
class ScannedLines:
    """Lines and where each begins and ends."""

    lines: Lines
    table: LineTable

    @classmethod
    def scan(cls, lines: Lines, salt: bytes | None) -> "ScannedLines":
        """Take lines apart; `salt` is that of their digests, which None leaves out.

        Runs beside other threads.
        """
        return cls(lines, scan_lines(lines.data, lines.tagged, salt))

    @property
    def here(self) -> np.ndarray:
        """Boolean (N,): the compiled code handles the line."""
        return self.table.kinds == LineTable.HERE

    @property
    def full(self) -> np.ndarray:
        """Boolean (N,): the line is not blank."""
        return self.table.kinds != LineTable.BLANK

    @cached_property
    def prefixes(self) -> np.ndarray:
        """uint64 (N,): the first eight bytes of each digest, big-endian; noise where not `here`."""
        assert self.table.digests is not None
        first = np.ascontiguousarray(self.table.digests[:, :8])
        return first.view(">u8")[:, 0].astype(np.uint64)

    def digest(self, index: int) -> bytes:
        """Return the digest of a line that is `here`."""
        assert self.table.digests is not None
        return self.table.digests[index].tobytes()

    @cached_property
    def others(self) -> list[tuple[int, Document]]:
        """The documents that the compiled code leaves to Python, and their indices."""
        indices = np.flatnonzero(self.full & ~self.here).tolist()
        return [(index, self.document(index)) for index in indices]

    def raw(self, index: int) -> bytes:
        """Return a line as it stands."""
        return self.table.data[int(self.table.begins[index]) : int(self.table.ends[index])]

    def document(self, index: int) -> Document:
        """Return a line as a document; UserError where it is none."""
        return self.later(index)()

    def later(self, index: int) -> Callable[[], Document]:
        """Return what makes the document of a line, without keeping the other lines in memory."""
        data, where = self.raw(index), f"{self.lines.path}:{self.lines.first + index}"
        tagged = self.lines.tagged
        return lambda: read_line(data.decode(), tagged, where)
