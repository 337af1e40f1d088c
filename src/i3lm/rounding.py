"""Draws for rounding numbers at random, with the right mean, to what few bits can hold.

A number that is rounded to the nearest level stays where it is while its changes are smaller than
half a level: training in few bits then stands still (Gupta et al., arXiv 1502.02551). Draws are
functions of a position and a seed, so a resumed run draws the same. native/rounding.h has them too.
"""

from typing import Any

import torch
from torch import Tensor

GOLDEN = 0x9E3779B1  # 2^32 / the golden ratio, odd


def draws(
    begin: int, end: int, seed: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return two draws in [0, 1) for each position, functions of it and of `seed` (32 bits).

    A position has its own place in [0, 1), which the seed moves along. `seed_of` moves it by the
    golden ratio at each step, which fills the interval as evenly as can be: what roundings of a
    number that changes slowly add up to stays within two or three levels of the truth, where the
    sum of independent draws wanders off (docs/log.md).
    """
    place = mixed(torch.arange(begin, end, device=device))
    other = place << 16 & 0xFFFFFFFF | place >> 16
    first, second = ((h + seed >> 16 & 0xFFFF).float() / 65536 for h in (place, other))
    return first, second


def mixed(number: Any) -> Any:
    """Return 32 well mixed bits of whole numbers: the finaliser of MurmurHash3 (Appleby)."""
    h = number * GOLDEN & 0xFFFFFFFF
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


def seed_of(step: int, tensor: int) -> int:
    """Return the 32-bit seed of a tensor's draws at a step."""
    return int(step * GOLDEN + mixed(tensor)) & 0xFFFFFFFF
