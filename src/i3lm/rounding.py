"""Draws for rounding numbers at random, with the right mean, to what few bits can hold.

A number that is rounded to the nearest level stays where it is while its changes are smaller than
half a level: training in few bits then stands still (Gupta et al., arXiv 1502.02551). Draws are
functions of a position and a seed, so a resumed run draws the same. native/rounding.h has them too.
"""

import torch
from torch import Tensor


def draws(
    begin: int, end: int, seed: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return two draws in [0, 1) for each position, functions of it and of `seed` (32 bits).

    The mix is the finaliser of MurmurHash3 (Appleby, public domain).
    """
    h = torch.arange(begin, end, device=device)
    h = (h * 0x9E3779B1 & 0xFFFFFFFF) ^ seed
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    h = h ^ h >> 16
    return (h >> 16).float() / 65536, (h & 65535).float() / 65536


def seed_of(step: int, tensor: int) -> int:
    """Return the 32-bit seed of a tensor's draws at a step."""
    return (step * 0x9E3779B97F4A7C15 + tensor * 0xD1B54A32D192ED03 >> 29) & 0xFFFFFFFF
