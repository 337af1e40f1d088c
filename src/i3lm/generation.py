"""Generate text: the prompt once through the network, then one position at a time.

Needs torch alone; transformers' `generate` gives the same tokens for the same ids.
"""

import contextlib
import dataclasses
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from i3lm.errors import UserError
from i3lm.folder import Loaded, load_folder
from i3lm.model.decoding import CompiledStep, Pace
from i3lm.model.network import I3Network
from i3lm.presets import TEMPERATURE, TOP_P
from i3lm.streaming import (
    NO_NUMBERS,
    Notify,
    Sampling,
    TokenText,
    WindowDecoder,
    decode_stream,
    ignore,
    make_generator,
    split_prompt,
    token_bytes,
)
from i3lm.tokenizer import EOS

__all__ = [
    "Decoder",
    "Model",
    "Notify",
    "Sampling",
    "TextStream",
    "decode_stream",
    "generate",
    "ignore",
    "make_generator",
    "open_model",
    "split_prompt",
    "stream",
    "token_bytes",
]

Model: TypeAlias = str | Path | Loaded


def open_model(model: Model) -> Loaded:
    """Return `model` itself, or the model of that folder."""
    return model if isinstance(model, Loaded) else load_folder(model)


def settled(loaded: Loaded) -> Loaded:
    """Return the same with what each text needs of the weights made once, 2 bytes a number.

    For a model that nobody trains any more: later changes of its weights are not seen.
    """
    return dataclasses.replace(loaded, step=_step_of(loaded.network))


def _step_of(network: I3Network) -> CompiledStep | None:
    return CompiledStep(network) if CompiledStep.fits(network) else None


class Decoder(WindowDecoder):
    """Feeds tokens to a network, which remembers its window of them.

    Past the window it reads the newest half window anew and goes on from there; `moved` tells.
    """

    def __init__(self, network: I3Network, step: CompiledStep | None = None) -> None:
        super().__init__(network.config.max_position_embeddings)
        self.network = network
        self._device = next(network.parameters()).device
        self._states = network.new_states()
        self._step = step or _step_of(network)
        self._pace = Pace(torch.get_num_threads())

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> Tensor:
        """Return the logits (V,) after `ids`, float32 on the CPU. At most a window of them."""
        logits = self._last_logits(self._within_window(ids))
        if logits.isnan().any():
            raise UserError(NO_NUMBERS)
        return logits

    def _held(self) -> int:
        return self._states[0].length

    def _forget(self) -> None:
        self._states = self.network.new_states()

    def _last_logits(self, ids: list[int]) -> Tensor:
        tokens, most = torch.tensor([ids], device=self._device), torch.get_num_threads()
        if self._step is not None and len(ids) > 1:
            return self._step(tokens, self._states, most)[0]
        if self._step is not None:
            threads, begin = self._pace.choose(), time.perf_counter()
            logits = self._step(tokens, self._states, threads)[0]
            self._pace.took(threads, time.perf_counter() - begin)
            return logits
        # torch's products of one row are too small to share: threads would only wait.
        with _threads(1 if len(ids) == 1 else most):
            return self.network(tokens, self._states, last_only=True)[0, 0].float().cpu()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TextStream(TokenText):
    """The text that follows the tokens `ids` by a network: see `TokenText`."""

    def __init__(
        self,
        loaded: Loaded,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        generator: random.Random,
        ends: Sequence[int] = (EOS,),
        stop: Sequence[str] = (),
        begin_with: bytes = b"",
        notify: Notify = ignore,
    ) -> None:
        def pick(logits: np.ndarray) -> int:
            return sampling.pick(logits, generator)

        super().__init__(
            loaded.tokenizer,
            lambda: Decoder(loaded.network, loaded.step),
            pick,
            ids,
            max_new_tokens=max_new_tokens,
            ends=ends,
            stop=stop,
            begin_with=begin_with,
            notify=notify,
        )


def stream(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = TEMPERATURE,
    top_k: int | None = None,
    top_p: float | None = TOP_P,
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
    temperature: float = TEMPERATURE,
    top_k: int | None = None,
    top_p: float | None = TOP_P,
    seed: int | None = None,
    stop: Sequence[str] = (),
    notify: Notify = ignore,
) -> str:
    """Return text that continues `prompt`, without the prompt.

    model: a model folder, or what `i3lm.load` gave. Ends where the model ends the text, before the
    first of the `stop` strings (one, or several), or after `max_new_tokens`. Temperature 0 takes
    the likeliest token each time; `top_k` and `top_p` narrow the draw. The same seed gives the same
    text. `notify` gets a sentence when the prompt, or the text, outgrows the model's window.
    UserError for settings out of range.
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
