"""Which tokens make up training sample k: a pure function of a seed and k."""

import mmap

import numpy as np

_ROUNDS = 6
_M1, _M2, _M3 = (
    np.array(m, np.uint64) for m in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Loader:
    """Windows of `context` + 1 tokens of a token stream, in a shuffled order without state.

    The samples 0, 1, 2, ... go through the stream epoch by epoch. An epoch divides it, as a ring,
    into `windows_per_epoch` = (N - 1) // context windows side by side, from a start of its own,
    and takes each once in a pseudo-random order of its own. So sample k depends on (seed, k)
    alone: a run goes on at any step, on any number of machines, with nothing replayed.

    With `opening`, the two tokens that open a conversation, a window moves on to the first one
    that begins within its first half: what is told at its start and asked at its end then stands
    in one window. The ring's start differs from epoch to epoch, so what a moved window leaves out
    comes in another.

    `tokens`: one-dimensional integer array of N > context tokens, memory-mapped or not. The pages
    of a memory map are given back after each read, so they do not pile up in the process.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        context: int,
        batch: int,
        seed: int,
        opening: tuple[int, int] | None = None,
    ) -> None:
        if context < 1 or batch < 1:
            raise ValueError("context and batch must be at least 1")
        if tokens.ndim != 1 or len(tokens) <= context:
            raise ValueError(f"{context + 1} tokens or more are needed, not {tokens.shape}")
        self.tokens = tokens
        self.context = context
        self.batch_size = batch
        self.seed, self.opening = seed, opening
        self.windows_per_epoch = (len(tokens) - 1) // context
        # Half the bits of the smallest even-sized power of two that holds every window number.
        self._bits = max(1, ((self.windows_per_epoch - 1).bit_length() + 1) // 2)
        self._map = tokens.base if isinstance(tokens.base, mmap.mmap) else None

    def close(self) -> None:
        """Nothing runs beside it."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, targets) of the samples step * B ... step * B + B - 1, (B, T) int64."""
        return self.windows(step * self.batch_size, self.batch_size)

    def windows(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (inputs, targets), each (count, T) int64, of samples first ... first + count - 1.

        Targets are the inputs moved by one token.
        """
        starts = self.starts(np.arange(first, first + count))
        indices = starts[:, None] + np.arange(self.context + 1)
        indices[indices >= len(self.tokens)] -= len(self.tokens)
        rows = self.tokens[indices].astype(np.int64)
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)
        return rows[:, :-1], rows[:, 1:]

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Return the positions, int64, of the first token of each sample (non-negative int64)."""
        epochs, numbers = np.divmod(samples.astype(np.int64), self.windows_per_epoch)
        keys = _mix(_mix(np.array([self.seed % 2**64], np.uint64)) ^ epochs.astype(np.uint64))
        length = np.uint64(len(self.tokens))
        ring_start = (_mix(keys ^ _M3) % length).astype(np.int64)
        windows = self._permute(numbers.astype(np.uint64), keys).astype(np.int64)
        return self._at_openings((ring_start + windows * self.context) % len(self.tokens))

    def _at_openings(self, starts: np.ndarray) -> np.ndarray:
        """Move each start to the first conversation that begins within half a window."""
        if self.opening is None:
            return starts
        indices = (starts[:, None] + np.arange(self.context // 2 + 2)) % len(self.tokens)
        near, (first, second) = self.tokens[indices], self.opening
        found = (near[:, :-1] == first) & (near[:, 1:] == second)
        distance = found.argmax(1)  # 0 where there is none
        return (starts + distance) % len(self.tokens)

    def _permute(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Permute 0 ... windows_per_epoch - 1 by a Feistel network, walking until back in range."""
        result = numbers.copy()
        todo = np.arange(len(numbers))
        while len(todo):
            result[todo] = self._feistel(result[todo], keys[todo])
            todo = todo[result[todo] >= np.uint64(self.windows_per_epoch)]
        return result

    def _feistel(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        bits = np.uint64(self._bits)
        mask = np.uint64((1 << self._bits) - 1)
        left, right = numbers >> bits, numbers & mask
        for turn in range(1, _ROUNDS + 1):
            round_key = keys + _M1 * np.array([turn], np.uint64)
            left, right = right, left ^ (_mix(right ^ _mix(round_key)) & mask)
        return (left << bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words (splitmix64, https://doi.org/10.1145/2714064.2660195)."""
    x = x + _M1
    x = (x ^ (x >> np.uint64(30))) * _M2
    x = (x ^ (x >> np.uint64(27))) * _M3
    return x ^ (x >> np.uint64(31))
