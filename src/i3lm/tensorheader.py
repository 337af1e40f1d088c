"""What a safetensors file says it holds, read within limits before any of it is loaded.

Format: https://github.com/huggingface/safetensors#format. No torch: `i3lm info` answers at once.
"""

import json
import math
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i3lm.files import open_without_waiting, read_small

# Bytes of a number, by the format's names of those types that models, states and codes have.
BYTES = {
    "F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
# Far beyond any model of ours, small enough to be read from a file that nobody knows.
HEADER_BYTES, TENSORS = 16 << 20, 100_000
SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")


@dataclass(frozen=True)
class Entry:
    """One tensor: its type by the format's name, its shape, where it begins behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = field(default=0, compare=False)  # bytes

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file says it holds."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    begin: int  # position of the first tensor's bytes


def weight_files(folder: str | Path) -> list[Path]:
    """Return a model folder's weight files: model.safetensors, or those that its index names.

    transformers divides large models so. ValueError for a damaged index; OSError.
    """
    whole = Path(folder) / "model.safetensors"
    index = whole.with_name(f"{whole.name}.index.json")
    if whole.exists() or not index.exists():
        return [whole]
    try:
        names = {*json.loads(read_small(index))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index.name} is no index of weight files") from None
    if not names or not all(isinstance(n, str) and SHARD.fullmatch(n) for n in names):
        raise ValueError(f"{index.name} names no weight files beside it")
    return [whole.with_name(name) for name in sorted(names)]


def read_header(path: str | Path) -> Header:
    """Return the header of a safetensors file; no tensor is read.

    ValueError, in one line, where it is too long, not well formed, not of this file's length, or
    not a plain file; OSError where it cannot be read.
    """
    with open(path, "rb", opener=open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a plain file")
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(HEADER_BYTES, status.st_size - 8):
            raise ValueError(f"its header says to be {size:,} bytes")
        text = file.read(size)
    try:
        tensors, metadata, end = _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ValueError("its header is not that of a safetensors file") from None
    if 8 + size + end != status.st_size:
        raise ValueError("it is not as long as its header says")
    return Header(tensors, metadata, 8 + size)


def _parse(entries: dict[str, Any]) -> tuple[dict[str, Entry], dict[str, str], int]:
    metadata = entries.pop("__metadata__", {})
    if len(entries) > TENSORS or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError
    tensors, spans = {}, []
    for name, fields in entries.items():
        begin, end = fields["data_offsets"]
        entry = Entry(fields["dtype"], tuple(fields["shape"]), begin)
        if not all(type(n) is int and n >= 0 for n in (*entry.shape, begin, end)):
            raise ValueError
        if entry.numbers * BYTES[entry.dtype] != end - begin:
            raise ValueError
        tensors[name] = entry
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):  # side by side: none hides in another, nothing between them
        if begin != position:
            raise ValueError
        position = end
    return tensors, metadata, position
