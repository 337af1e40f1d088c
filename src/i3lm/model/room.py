"""Memory for tensors that come and go with every layer, in blocks that the heap can use again.

torch asks the C library for memory on a border of 64 bytes. glibc before 2.38 cuts such a block out
of a larger one, and finds no use for the hole that it leaves: the next block of its size needs a
few bytes more. So 60 MB of holes were kept beside 12 MB of activations. A plain block, with its
border within, takes the place of the last one of its size.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

BORDER = 64  # bytes


Kind = tuple[Sequence[int], torch.dtype]  # of a tensor


def empty(shape: Sequence[int]) -> Tensor:
    """Return an uninitialised float32 tensor in memory. MemoryError where there is no room."""
    return block(math.prod(shape) * 4).view(torch.float32).view(shape)


def block(size: int) -> Tensor:
    """Return `size` uninitialised bytes, from a border on. MemoryError where there is no room."""
    whole = np.empty(size + BORDER, np.uint8)
    begin = -whole.__array_interface__["data"][0] % BORDER
    return torch.from_numpy(whole[begin : begin + size])


def places(kinds: Iterable[Kind]) -> tuple[list[int], int]:
    """Return where tensors of these shapes and types begin in a block, and its size, in bytes."""
    begins, size = [], 0
    for shape, dtype in kinds:
        begins.append(size)
        size += -(-math.prod(shape) * dtype.itemsize // BORDER) * BORDER
    return begins, size


def pieces(kinds: Iterable[Kind]) -> list[Tensor]:
    """Return uninitialised tensors of these shapes and types in one piece of memory.

    It stays while one of them does. MemoryError where there is no room.
    """
    kinds = list(kinds)
    begins, size = places(kinds)
    whole = block(size)
    return [
        whole[begin : begin + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for begin, (shape, dtype) in zip(begins, kinds, strict=True)
    ]
