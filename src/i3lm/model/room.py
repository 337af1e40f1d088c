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


def empty(shape: Sequence[int]) -> Tensor:
    """Return an uninitialised float32 tensor in memory. MemoryError where there is no room."""
    (tensor,) = pieces([(shape, torch.float32)])
    return tensor


def pieces(kinds: Iterable[tuple[Sequence[int], torch.dtype]]) -> list[Tensor]:
    """Return uninitialised tensors of these shapes and types in one piece of memory.

    It stays while one of them does. MemoryError where there is no room.
    """
    kinds = list(kinds)
    sizes = [-(-math.prod(shape) * dtype.itemsize // BORDER) * BORDER for shape, dtype in kinds]
    whole = np.empty(sum(sizes) + BORDER, np.uint8)
    begin = -whole.__array_interface__["data"][0] % BORDER
    parts = torch.from_numpy(whole)[begin : begin + sum(sizes)].split(sizes)
    return [
        part[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for part, (shape, dtype) in zip(parts, kinds, strict=True)
    ]
