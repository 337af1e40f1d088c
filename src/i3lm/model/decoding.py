"""The next positions through a network that remembers those before: compiled calls where they fit.

torch's own call of some thirty small operations a layer costs several times their arithmetic.
"""

import ctypes
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from i3lm.model import fused
from i3lm.model.layers_i3 import used_rows
from i3lm.model.network import I3Network, LayerState
from i3lm.model.stored import stored_in
from i3lm.native import tensor_call, tensor_library

LANES = 16  # outputs of a panel (native/rows.h)
STATE_TENSORS = 4  # of a layer, the last of its addresses: `LayerState.buffers`
AT_ONCE = 256  # positions of a call, each of which takes 20 KB in i3-12m, for every text


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    assert all(t.is_contiguous() for t in tensors)
    return [t.data_ptr() for t in tensors]


def _panels(matrix: Tensor) -> Tensor:
    """Return a matrix (outputs, inputs) in bfloat16, as the compiled step reads it."""
    outputs, inputs = matrix.shape
    shape = -(-outputs // LANES), -(-inputs // 2), 2 * LANES
    room = torch.empty(shape, dtype=torch.bfloat16, device="cpu")
    tensor_call("i3_panels", outputs, inputs, matrix.detach(), room)
    return room


def _narrowed(parts: fused.Parts) -> fused.Parts:
    names = fused.Factors._fields
    return parts._replace(**{name: _panels(getattr(parts, name)) for name in names})


class CompiledStep:
    """The steps of a network whose weights stay as they are. Keeps their tensors alive.

    It reads the factors of a layer and of the head in bfloat16, as training multiplies them: half
    of the bytes, and the bytes decide. All else, and every sum, is float32.
    """

    def __init__(self, network: I3Network) -> None:
        model, head, self.config = network.model, network.lm_head, network.config
        self.classes = used_rows(self.config)
        with torch.no_grad():
            self._layers = [_narrowed(fused.parts_of(layer)) for layer in model.layers]
        self._outer: tuple[Tensor, ...] = (
            *(model.embed_tokens.weight, model.embed_positions.weight),
            *(model.norm.weight, model.norm.bias),
            *(_panels(head.A), _panels(head.B), head.bias),
        )
        self._outer_addresses = (ctypes.c_void_p * len(self._outer))(*_addresses(self._outer))
        room = [None] * STATE_TENSORS
        layers = [a for parts in self._layers for a in (*_addresses(parts), *room)]
        self._addresses = (ctypes.c_void_p * len(layers))(*layers)

    @staticmethod
    def fits(network: I3Network) -> bool:
        """Say whether the compiled step can stand for the network."""
        if tensor_library() is None or network.lm_head.bias is None:
            return False
        if any(map(fused.is_watched, network.modules())):  # they must be called
            return False
        plain = all(map(fused.is_plain, network.model.layers)) and fused.is_plain(network.lm_head)
        tensors = network.parameters()
        return plain and all(
            t.dtype == torch.float32
            and t.device.type == "cpu"
            and t.is_contiguous()
            and stored_in(t) is None
            for t in tensors
        )

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, states: list[LayerState], threads: int = 1) -> Tensor:
        """Return logits (B, V) after tokens (B, T) int64, which the states then hold too.

        Rows that stand for no token have logit -inf. Any number of threads gives the same bits.
        ValueError where there is no token, or the window has no room for so many; IndexError for a
        token that there is not. All come before anything changes.
        """
        if tokens.shape[1] == 0:
            raise ValueError("there is no token to go on with")
        if states[0].length + tokens.shape[1] > states[0].capacity:
            raise ValueError(f"the window of {states[0].capacity} positions is full")
        if tokens.dtype != torch.int64:
            raise ValueError(f"tokens are int64, not {tokens.dtype}")
        least, most, rows = int(tokens.min()), int(tokens.max()), self.config.vocab_size
        if least < 0 or most >= rows:
            raise IndexError(f"token {least if least < 0 else most} is none of {rows}")
        for begin in range(0, tokens.shape[1], AT_ONCE):
            logits = self._call(tokens[:, begin : begin + AT_ONCE], states, threads)
        if self.classes == self.config.vocab_size:
            return logits
        return F.pad(logits, (0, self.config.vocab_size - self.classes), value=-torch.inf)

    def _call(self, tokens: Tensor, states: list[LayerState], threads: int) -> Tensor:
        config, position, (streams, steps) = self.config, states[0].length, tokens.shape
        addresses = type(self._addresses).from_buffer_copy(self._addresses)
        each = len(addresses) // len(self._layers)
        for end, state in zip(range(each, len(addresses) + 1, each), states, strict=True):
            buffers = state.buffers(streams, config)
            addresses[end - STATE_TENSORS : end] = _addresses(buffers)  # type: ignore[assignment]
        logits = torch.empty(streams, self.classes, dtype=torch.float32, device="cpu")
        tensor_call(
            "i3_decode",
            *(streams, steps, len(states), config.hidden_size, config.num_attention_heads),
            *(config.rank, config.state_size, config.intermediate_size, self.classes),
            *(states[0].capacity, position, threads, float(config.layer_norm_eps)),
            tokens.contiguous(),
            addresses,
            self._outer_addresses,
            logits,
        )
        for state in states:
            state.length += steps
        return logits


class Pace:
    """How many threads a step gets: the number that was quickest, of 1, 2, 4 and so on to `most`.

    A step waits some ten times a layer for its slowest thread. That is worth it while cores are
    free; where other work holds one, a wait can take as long as many steps. So at first each number
    is tried, from 1 up to one that is far slower, and later again after `PROBE` steps; after twice
    as many each time that it was far slower.
    """

    FIRST, PROBE, FAR = 3, 48, 2

    def __init__(self, most: int) -> None:
        self.counts = sorted({most, *(2**i for i in range(most.bit_length()))})
        self._steps, self._seconds = 0, dict.fromkeys(self.counts, math.inf)
        self._trials = dict.fromkeys(self.counts, self.FIRST)  # that are left
        self._gap = dict.fromkeys(self.counts, self.PROBE)
        self._due = dict(self._gap)

    @property
    def _best(self) -> int:
        return min(self.counts, key=self._seconds.__getitem__)

    def choose(self) -> int:
        """Return the number of threads for the next step."""
        self._steps += 1
        best = self._best
        for count in self.counts:
            if self._trials[count] or (count != best and self._steps >= self._due[count]):
                return count
        return best

    def took(self, count: int, seconds: float) -> None:
        """Learn what a step of `count` threads took."""
        known = self._seconds[count]
        if self._trials[count] or known == math.inf:
            seconds = self._seconds[count] = min(known, seconds)
            self._trials[count] = max(0, self._trials[count] - 1)
        else:
            self._seconds[count] += (seconds - known) / 4
        best = self._best
        if self._trials[count] or count == best:
            return
        far = seconds > self.FAR * self._seconds[best]
        self._gap[count] = 2 * self._gap[count] if far else self.PROBE
        self._due[count] = self._steps + self._gap[count]
        if far:  # more threads wait no less
            for more in self.counts[self.counts.index(count) :]:
                self._trials[more] = 0
                self._due[more] = max(self._due[more], self._due[count])
