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
from i3lm.training.hardware import to_device

# The share grows with the passes after the first times parameters a token of the text, past the
# first few: docs/results.md, "The same text many times".
FREE, SHARE_EACH, LARGEST_SHARE = 10.0, 0.0012, 0.3
CPU = torch.device("cpu")
FORESEEN = 0.02  # of the budget: before, nobody knows how much a time budget will read


class Dropping:
    """Drops a share: the one asked for, or one that fits the passes over the text to come.

    corpus_tokens: of one pass; None where there is no second one. All that it drops is a pure
    function of the seed, the share and the sample.
    """

    def __init__(
        self,
        config: TrainConfig,
        sizes: Architecture,
        corpus_tokens: int | None,
        device: torch.device = CPU,
    ) -> None:
        self._given, self._seed = config.dropout, config.seed % 2**64
        self._layers, self._parameters = sizes.num_hidden_layers, sizes.parameters
        self._corpus_tokens, self._told, self._device = corpus_tokens, False, device
        self._steps = None if config.seconds else config.steps
        window = sizes.max_position_embeddings
        self._step_tokens = max(1, round(config.batch_tokens / window)) * window
        self.share = config.dropout or 0.0

    def foresee(self, progress: float, tokens: int) -> str | None:
        """Set the share for a run that has read `tokens` within this share of its budget.

        Return a sentence, once, where it drops what nobody asked it to.
        """
        if self._given is not None or self._corpus_tokens is None:
            return None
        expected = 0.0
        if self._steps:
            expected = self._steps * self._step_tokens
        elif progress >= FORESEEN:
            expected = tokens / progress
        passes = expected / self._corpus_tokens
        excess = (passes - 1) * self._parameters / self._corpus_tokens - FREE
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
        return Dropout(self.share, to_device(np.stack(keys), self._device))

    def _random(self, *place: int) -> "np.random.Generator":  # imported where it is needed alone
        return np.random.default_rng((self._seed, *place))
