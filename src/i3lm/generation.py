"""Generate text: the prompt once through the network, then one position at a time.

Needs torch alone; transformers' `generate` gives the same tokens for the same ids.
"""

import codecs
import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from i3lm.errors import UserError
from i3lm.folder import Loaded, load_folder
from i3lm.model.decoding import CompiledStep
from i3lm.model.network import I3Network
from i3lm.tokenizer import BOS, END_INST, EOS, INST, PAD, UNK, ChunkTokenizer
from i3lm.tokenizer.rule import FIRST_BYTE, FIRST_CHUNK

Model: TypeAlias = str | Path | Loaded
Notify = Callable[[str], None]
LONGEST_CHUNK = 3  # characters


def ignore(notice: str) -> None:
    """Drop a notice."""


def open_model(model: Model) -> Loaded:
    """Return `model` itself, or the model of that folder."""
    return model if isinstance(model, Loaded) else load_folder(model)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest, whatever the rest says."""

    temperature: float = 0.5
    top_k: int | None = None  # draw among the k likeliest; None: among all
    top_p: float | None = 0.95  # draw among the likeliest that together reach p; None: among all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """Draw a token from logits (V,), float32 on the CPU."""
        if self.temperature == 0:
            return int(logits.argmax())
        # From the maximum down, so that no temperature overflows; none is 0 in float32.
        logits = (logits - logits.max()) / max(self.temperature, 1e-30)
        if self.top_k is not None and self.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[-1], -torch.inf)
        probabilities, order = logits.softmax(-1).sort(descending=True, stable=True)
        if self.top_p is not None:
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        return int(order[torch.multinomial(probabilities, 1, generator=generator)])


class Decoder:
    """Feeds tokens to a network, which remembers its window of them.

    Past the window it reads the newest half window anew and goes on from there; `moved` tells.
    """

    def __init__(self, network: I3Network) -> None:
        self.network = network
        self.window: int = network.config.max_position_embeddings
        self.moved = False
        self._device = next(network.parameters()).device
        self._ids: list[int] = []
        self._states = network.new_states()
        self._step = CompiledStep(network) if CompiledStep.fits(network) else None

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> Tensor:
        """Return the logits (V,) after `ids`, float32 on the CPU. At most a window of them."""
        self._ids = [*self._ids, *ids][-self.window :]
        if self._states[0].length + len(ids) > self.window:
            self.moved = True
            ids = self._ids[-max(1, self.window // 2) :]
            self._states = self.network.new_states()
        logits = self._last_logits(list(ids))
        if logits.isnan().any():
            raise UserError("the model's output is not a number; train it anew at a lower rate")
        return logits

    def _last_logits(self, ids: list[int]) -> Tensor:
        if self._step is not None and len(ids) == 1 and self._states[0].length:
            return self._step(torch.tensor(ids), self._states)[0]
        # Products of one row are too small to share: threads would only wait for each other.
        with _threads(1 if len(ids) == 1 else torch.get_num_threads()):
            tokens = torch.tensor([ids], device=self._device)
            return self.network(tokens, self._states, last_only=True)[0, 0].float().cpu()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


class TextStream(Iterator[str]):
    """The text that follows the tokens `ids`, in pieces, as they are generated.

    Special tokens are never generated, but for those in `ends`, which end the text, as do the
    strings in `stop`. The first bytes generated are `begin_with` and are not given out.
    `tokens` counts what was generated so far, `prompt_tokens` are those of `ids`. After the end
    `finish_reason` is "eos" (the model ended the text), "stop" (a stop string) or "length"
    (max_new_tokens).
    """

    def __init__(
        self,
        loaded: Loaded,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        generator: torch.Generator,
        ends: Sequence[int] = (EOS,),
        stop: Sequence[str] = (),
        begin_with: bytes = b"",
        notify: Notify = ignore,
    ) -> None:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
        if not all(stop):
            raise UserError("a stop string is empty; leave it out")
        self.tokens, self.prompt_tokens = 0, len(ids)
        self.finish_reason: str | None = None
        self._begin_with, self._ends, self._stop = begin_with, tuple(ends), tuple(stop)
        self._bytes = token_bytes(loaded.tokenizer)
        new = self._generate(loaded.network, ids, max_new_tokens, sampling, generator, notify)
        self._pieces = self._cut(decode_stream((self._bytes[i] for i in new), len(begin_with)))

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating."""
        self._pieces.close()

    def _generate(
        self,
        network: I3Network,
        ids: Sequence[int],
        limit: int,
        sampling: Sampling,
        generator: torch.Generator,
        notify: Notify,
    ) -> Iterator[int]:
        decoder = Decoder(network)
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
            logits = decoder.feed(ids)
            if decoder.moved and not told:
                told = True
                notify(
                    f"past the model's window of {decoder.window} tokens: "
                    f"going on from the newest {decoder.window // 2}"
                )
            logits = logits.index_fill(0, torch.tensor(banned), -torch.inf)
            if wanted:
                fitting = torch.tensor(self._fitting(wanted))
                only = torch.full_like(logits, -torch.inf)
                logits = only.index_copy(0, fitting, logits[fitting])
            token = sampling.pick(logits, generator)
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


def make_generator(seed: int | None) -> torch.Generator:
    """Return a CPU random generator; without a seed, one that differs each time."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    elif -(2**63) <= seed < 2**64:
        generator.manual_seed(seed)
    else:
        raise UserError(f"seed {seed} does not fit 64 bits; choose a smaller one")
    return generator


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


def stream(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.5,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    seed: int | None = None,
    stop: Sequence[str] = (),
    notify: Notify = ignore,
) -> TextStream:
    """Return the continuation of `prompt` piece by piece; arguments as of `generate`."""
    loaded = open_model(model)
    ids, begin_with = split_prompt(loaded.tokenizer, prompt)
    return TextStream(
        loaded,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        generator=make_generator(seed),
        stop=stop,
        begin_with=begin_with,
        notify=notify,
    )


def generate(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.5,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    seed: int | None = None,
    stop: Sequence[str] = (),
    notify: Notify = ignore,
) -> str:
    """Return text that continues `prompt`, without the prompt.

    model: a model folder, or what `i3lm.load` gave. Ends where the model ends the text, before the
    first of the `stop` strings, or after `max_new_tokens`. Temperature 0 takes the likeliest token
    each time; `top_k` and `top_p` narrow the draw. The same seed gives the same text. `notify` gets
    a sentence when the prompt, or the text, outgrows the model's window. UserError for settings out
    of range.
    """
    return "".join(
        stream(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            notify=notify,
        )
    )
