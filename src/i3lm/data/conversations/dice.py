"""Repeatable choices: the same numbers on every machine and Python version."""

import hashlib
import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Draws from a stream that (seed, number) alone decides.

    Only `random.Random.random` is used, whose sequence Python promises to keep.
    """

    def __init__(self, seed: int, number: int) -> None:
        digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
        self._draw = random.Random(int.from_bytes(digest, "big")).random

    def chance(self, share: float) -> bool:
        """Return True in a share of the cases."""
        return self._draw() < share

    def pick(self, items: Sequence[T]) -> T:
        """Return one item."""
        return items[int(self._draw() * len(items))]

    def lean(self, items: Sequence[T]) -> T:
        """Return one item, the first ones more often: the first of n with chance 1 / sqrt(n)."""
        draw = self._draw()
        return items[int(draw * draw * len(items))]

    def between(self, low: int, high: int) -> int:
        """Return a number from low to high, both included."""
        return low + int(self._draw() * (high - low + 1))

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return `count` different items, or all there are, in another order."""
        mixed = list(items)
        count = min(count, len(mixed))
        for i in range(count):
            j = i + int(self._draw() * (len(mixed) - i))
            mixed[i], mixed[j] = mixed[j], mixed[i]
        return mixed[:count]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in another order."""
        return self.sample(items, len(items))


def reserved(*parts: object) -> bool:
    """Return whether a combination is kept for held-out questions: about one in ten.

    `generate` never emits a reserved combination, `questions` asks about nothing else. The
    combinations are listed in `questions`.
    """
    return zlib.crc32(":".join(map(str, parts)).encode()) % 10 == 7
