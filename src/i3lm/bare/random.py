"""torch's random numbers of a CPU: a Mersenne Twister, and normal numbers by Box and Muller.

A model starts from the same weights, but for the last places, whether torch draws them or this.
"""

import numpy as np

from i3lm.bare.tensor import Tensor

LANES = 16  # numbers that are drawn together


class Generator:
    """A source of random numbers."""

    _source: "np.random.RandomState | None"

    def __init__(self) -> None:
        self.manual_seed(0)

    def manual_seed(self, seed: int) -> "Generator":
        """Begin anew."""
        self._seed, self._source = seed % 2**32, None
        return self

    def words(self, count: int) -> np.ndarray:
        """Return whole numbers of 32 bits."""
        if self._source is None:  # not before: numpy's random numbers take 7 MB
            self._source = np.random.RandomState(self._seed)
        return self._source.randint(0, 2**32, count, np.uint32)

    def normal(self, count: int) -> np.ndarray:
        """Return float32 numbers of mean 0 and variance 1; `count` is at least 16."""
        uniform = self._uniform(count)
        whole = count // LANES * LANES
        out = np.empty(count, np.float32)
        out[:whole] = _normal(uniform[:whole])
        if whole < count:  # the last ones are drawn once more, as torch does
            out[-LANES:] = _normal(self._uniform(LANES))
        return out

    def _uniform(self, count: int) -> np.ndarray:
        return (self.words(count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _normal(uniform: np.ndarray) -> np.ndarray:
    pairs = uniform.reshape(-1, 2, LANES // 2)
    radius = np.sqrt(-2 * np.log1p(-pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Begin anew."""
    return default_generator.manual_seed(seed)


def randperm(count: int) -> Tensor:
    """Return the whole numbers below `count` in a random order."""
    order = np.arange(count)
    for i, word in enumerate(default_generator.words(max(0, count - 1)).tolist()):
        j = i + word % (count - i)
        order[i], order[j] = order[j], order[i]
    return Tensor(order)
