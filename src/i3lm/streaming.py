"""Text, token by token, from whatever computes logits: a network, or a runtime. No torch here."""

import codecs
import operator
import random
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from i3lm.errors import UserError
from i3lm.presets import TEMPERATURE, TOP_P
from i3lm.tokenizer import BOS, END_INST, EOS, INST, PAD, UNK, ChunkTokenizer
from i3lm.tokenizer.rule import FIRST_BYTE, FIRST_CHUNK

Notify = Callable[[str], None]
LONGEST_CHUNK = 3  # characters
NO_NUMBERS = "the model's output is not a number; train it anew at a lower rate"
MOST_TEMPERATURE = 1000


def ignore(notice: str) -> None:
    """Drop a notice."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest, whatever the rest says."""

    temperature: float = TEMPERATURE
    top_k: int | None = None  # draw among the k likeliest; None: among all
    top_p: float | None = TOP_P  # draw among the likeliest that together reach p; None: among all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise UserError(
                f"temperature is {self.temperature}; it must be from 0 (greedy) to "
                f"{MOST_TEMPERATURE:,} (any token alike)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def pick(self, logits: np.ndarray, generator: random.Random) -> int:
        """Draw a token from logits (V,), float32."""
        if self.temperature == 0:
            return int(logits.argmax())
        # From the maximum down, so that no temperature overflows; none is 0 in float32.
        scores = (logits - logits.max()) / max(self.temperature, 1e-30)
        if self.top_k is not None and self.top_k < len(logits):
            # By the logits themselves: differences may round to the same.
            scores[logits < np.partition(logits, -self.top_k)[-self.top_k]] = -np.inf
        weights = np.exp(scores, dtype=np.float64)
        ids = np.arange(len(weights))
        if self.top_p is not None and self.top_p < 1:
            # Even together, those below this are not what the likeliest lack: no need to sort them.
            ids = np.flatnonzero(weights * len(weights) >= (1 - self.top_p) * weights.sum())
            ids = ids[np.argsort(-weights[ids], kind="stable")]
            before = weights[ids].cumsum() - weights[ids]
            ids = ids[before < self.top_p * weights.sum()]
        ends = weights[ids].cumsum()
        return int(ids[np.searchsorted(ends, generator.random() * ends[-1], side="right")])


def make_generator(seed: int | None) -> random.Random:
    """Return a random generator; without a seed, one that differs each time.

    Python's own: numpy's takes 7 MB. UserError for a seed of more than 64 bits.
    """
    seed = None if seed is None else operator.index(seed)  # numpy's integers are seeds, too
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise UserError(f"seed {seed} does not fit 64 bits; choose a smaller one")
    return random.Random(None if seed is None else seed % 2**64)


class Feeds(Protocol):
    """What a `TokenText` draws from: `WindowDecoder` and its kinds."""

    window: int
    moved: bool

    def feed(self, ids: Sequence[int]) -> Any:
        """Return the logits (V,) after `ids`, float32: an array, or a tensor on the CPU."""


class WindowDecoder:
    """The window rule of a model that remembers `window` tokens.

    Past the window it reads the newest half window anew and goes on from there; `moved` tells.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.moved = False
        self._ids: list[int] = []

    def _within_window(self, ids: Sequence[int]) -> list[int]:
        """Return what to read next so that the window holds it: `ids`, or the newest half."""
        self._ids = [*self._ids, *ids][-self.window :]
        if self._held() + len(ids) > self.window:
            self.moved = True
            ids = self._ids[-max(1, self.window // 2) :]
            self._forget()
        return list(ids)

    @abstractmethod
    def _held(self) -> int:
        """The positions that the model remembers."""

    @abstractmethod
    def _forget(self) -> None:
        """Begin anew at the first position."""


def token_bytes(tokenizer: ChunkTokenizer) -> list[bytes]:
    """Return the UTF-8 bytes that each token stands for; none for special tokens."""
    return [
        b"" if i < FIRST_BYTE else bytes([i - FIRST_BYTE]) if i < FIRST_CHUNK else t.encode()
        for i, t in enumerate(tokenizer.tokens)
    ]


def decode_stream(parts: Iterable[bytes], skip: int = 0) -> Iterator[str]:
    """Yield the text of UTF-8 `parts` but its first `skip` bytes; a character comes as a whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in parts:
        yield decoder.decode(part[skip:])
        skip = max(0, skip - len(part))
    yield decoder.decode(b"", final=True)


class TokenText(Iterator[str]):
    """The text that follows the tokens `ids`, in pieces, as they are generated.

    `decoder` makes what gives logits, `pick` draws a token from logits (V,), a float32 array.
    Special tokens are never generated, but for those in `ends`, which end the text, as do the
    strings in `stop`. The first bytes generated are `begin_with` and are not given out.
    `tokens` counts what was generated so far, `prompt_tokens` are those of `ids`. After the end
    `finish_reason` is "eos" (the model ended the text), "stop" (a stop string) or "length"
    (max_new_tokens).
    """

    def __init__(
        self,
        tokenizer: ChunkTokenizer,
        decoder: Callable[[], Feeds],
        pick: Callable[[np.ndarray], int],
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        ends: Sequence[int] = (EOS,),
        stop: Sequence[str] = (),
        begin_with: bytes = b"",
        notify: Notify = ignore,
    ) -> None:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(stop):
            raise UserError("a stop string is empty; leave it out")
        self.tokens, self.prompt_tokens = 0, len(ids)
        self.finish_reason: str | None = None
        self._begin_with, self._ends, self._stop = begin_with, tuple(ends), stop
        self._bytes = token_bytes(tokenizer)
        new = self._generate(decoder, pick, ids, max_new_tokens, notify)
        self._pieces = self._cut(decode_stream((self._bytes[i] for i in new), len(begin_with)))

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()

    def _generate(
        self,
        make_decoder: Callable[[], Feeds],
        pick: Callable[[np.ndarray], int],
        ids: Sequence[int],
        limit: int,
        notify: Notify,
    ) -> Iterator[int]:
        decoder = make_decoder()
        banned = [i for i in (UNK, PAD, BOS, EOS, INST, END_INST) if i not in self._ends]
        wanted = self._begin_with  # the generated text begins with the end of the prompt
        told = len(ids) > decoder.window
        if told:
            notify(
                f"the prompt has {len(ids)} tokens and the model's window {decoder.window}: "
                "only the newest of them are read"
            )
            ids = ids[-decoder.window :]
        while self.tokens < limit:
            logits = np.asarray(decoder.feed(ids)).copy()
            if decoder.moved and not told:
                told = True
                notify(
                    f"past the model's window of {decoder.window} tokens: "
                    f"going on from the newest {decoder.window // 2}"
                )
            logits[banned] = -np.inf
            if wanted:
                fitting = self._fitting(wanted)
                only = np.full_like(logits, -np.inf)
                only[fitting] = logits[fitting]
                logits = only
            if not np.isfinite(logits.max()):
                raise UserError(NO_NUMBERS)
            token = pick(logits)
            if token in self._ends:
                self.finish_reason = "eos"
                return
            # What only repeats the prompt is not new.
            self.tokens += len(self._bytes[token]) > len(wanted)
            wanted = wanted[len(self._bytes[token]) :]
            ids = [token]
            yield token
        self.finish_reason = "length"

    def _fitting(self, wanted: bytes) -> list[int]:
        """Return the chunks that begin `wanted` or begin with it; without any, its first byte."""
        return [
            i
            for i, text in enumerate(self._bytes)
            if i >= FIRST_CHUNK and (text.startswith(wanted) or wanted.startswith(text))
        ] or [FIRST_BYTE + wanted[0]]

    def _cut(self, pieces: Iterator[str]) -> Generator[str]:
        """Yield `pieces` up to the first stop string; hold back what may be the start of one."""
        held = ""
        for piece in pieces:
            held += piece
            found = [at for at in (held.find(stop) for stop in self._stop) if at >= 0]
            if found:
                self.finish_reason = "stop"
                held = held[: min(found)]
                break
            keep = max((_overlap(held, stop) for stop in self._stop), default=0)
            ready, held = held[: len(held) - keep], held[len(held) - keep :]
            if ready:
                yield ready
        if held:
            yield held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def split_prompt(tokenizer: ChunkTokenizer, prompt: str) -> tuple[list[int], bytes]:
    """Return <bos> and the ids of `prompt` but its undecided end, and the bytes of that end.

    A chunk whose three characters reach the end of the prompt may be cut differently once more
    text follows ("th", "e": "the"). Text is therefore generated from the last sure token on, bound
    to begin with the prompt's end.
    """
    ids = [int(i) for i in tokenizer.encode(prompt)]
    kept, characters = len(ids), 0
    while kept and ids[kept - 1] >= FIRST_CHUNK:
        characters += len(tokenizer.tokens[ids[kept - 1]])
        if characters > LONGEST_CHUNK:
            break
        kept -= 1
    return [BOS, *ids[:kept]], "".join(tokenizer.tokens[i] for i in ids[kept:]).encode()
