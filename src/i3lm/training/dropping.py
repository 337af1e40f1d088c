"""Dropout: what keeps a model that reads a small text again and again from reciting it.

A share of what each layer adds is dropped, and the same share of the input tokens, other ones in
each pass, becomes <unk> (word dropout: Bowman et al., https://arxiv.org/abs/1511.06349, 3.2).
"""

import numpy as np
import torch

from i3lm.model.dropout import Dropout
from i3lm.presets import Architecture
from i3lm.tokenizer import UNK
from i3lm.tokenizer.rule import FIRST_BYTE
from i3lm.training.config import TrainConfig

# The share grows with passes over the text times parameters a token of it, past the first few:
# docs/results.md, "The same text many times".
FREE, SHARE_EACH, LARGEST_SHARE = 15.0, 0.0012, 0.3
FORESEEN = 0.02  # of the budget: before, nobody knows how much a time budget will read


class Dropping:
    """Drops a share: the one asked for, or one that fits the passes over the text to come.

    corpus_tokens: of one pass; None where there is no second one. All that it drops is a pure
    function of the seed, the share and the sample.
    """

    def __init__(self, config: TrainConfig, sizes: Architecture, corpus_tokens: int | None) -> None:
        self._given, self._seed = config.dropout, config.seed % 2**64
        self._layers, self._parameters = sizes.num_hidden_layers, sizes.parameters
        self._corpus_tokens, self._told = corpus_tokens, False
        self._planned = None if config.steps is None else config.steps * config.batch_tokens
        self.share = config.dropout or 0.0

    def foresee(self, progress: float, tokens: int) -> str | None:
        """Set the share for a run that has read `tokens` within this share of its budget.

        Return a sentence, once, where it drops what nobody asked it to.
        """
        if self._given is not None or self._corpus_tokens is None:
            return None
        expected: list[float] = [] if self._planned is None else [self._planned]
        if progress >= FORESEEN:
            expected.append(tokens / progress)
        passes = min(expected, default=0.0) / self._corpus_tokens
        excess = passes * self._parameters / self._corpus_tokens - FREE
        self.share = min(LARGEST_SHARE, max(0.0, excess * SHARE_EACH))
        if round(self.share, 2) == 0 or self._told:
            return None
        self._told = True
        return (
            f"the text will be read about {passes:.0f} times: a dropout of {self.share:.2f} keeps "
            "the model from learning it by heart (--dropout 0: none)"
        )

    def hide(self, inputs: np.ndarray, sample: int) -> np.ndarray:
        """Return inputs (B, T) int64 of the samples `sample`, ... with some tokens as <unk>.

        Special tokens stay.
        """
        if self.share == 0:
            return inputs
        hidden = np.empty(inputs.shape, bool)
        for row in range(len(inputs)):
            draw = self._random(sample + row).random(inputs.shape[1], np.float32)
            hidden[row] = draw < self.share
        return np.where(hidden & (inputs >= FIRST_BYTE), UNK, inputs)

    def of_layers(self, sample: int, count: int) -> Dropout | None:
        """Return what `count` samples from `sample` on drop in the layers; None for nothing."""
        if self.share == 0:
            return None
        size = self._layers, 2
        keys = [self._random(sample + row, 1).integers(2**32, size=size) for row in range(count)]
        return Dropout(self.share, torch.from_numpy(np.stack(keys)))

    def _random(self, *place: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, *place))
