"""One position at a time through a network: a single compiled call where it fits.

torch's own call of some thirty small operations a layer costs several times their arithmetic.
"""

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from i3lm.model import fused
from i3lm.model.layers_i3 import used_rows
from i3lm.model.network import I3Network, LayerState
from i3lm.model.stored import stored_in
from i3lm.native import tensor_call, tensor_library


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    assert all(t.is_contiguous() for t in tensors)
    return [t.data_ptr() for t in tensors]


def _narrowed(parts: fused.Parts) -> fused.Parts:
    names = fused.Factors._fields
    return parts._replace(**{name: getattr(parts, name).detach().bfloat16() for name in names})


class CompiledStep:
    """The step of a network whose weights stay as they are. Keeps the network's tensors alive.

    It reads the factors of a layer and of the head in bfloat16, as training multiplies them: half
    of the bytes, and the bytes decide. All else, and every sum, is float32.
    """

    def __init__(self, network: I3Network) -> None:
        self.network = network
        model, head, self.config = network.model, network.lm_head, network.config
        self.classes = used_rows(self.config)
        with torch.no_grad():
            self._layers = [_narrowed(fused.parts_of(layer)) for layer in model.layers]
        self._outer: tuple[Tensor, ...] = (
            *(model.embed_tokens.weight, model.embed_positions.weight),
            *(model.norm.weight, model.norm.bias),
            *(head.A.bfloat16(), head.B.bfloat16(), head.bias),
        )
        self._outer_addresses = (ctypes.c_void_p * len(self._outer))(*_addresses(self._outer))
        self._layer_addresses = [_addresses(parts) for parts in self._layers]

    @staticmethod
    def fits(network: I3Network) -> bool:
        """Say whether the compiled step can stand for the network."""
        if tensor_library() is None or network.lm_head.bias is None:
            return False
        if network._forward_pre_hooks:  # it must be called
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
        """Return logits (B, V) after tokens (B,) int64, which the states then hold too.

        The states must hold a position already. Rows that stand for no token have logit -inf.
        """
        config, position, streams = self.config, states[0].length, len(tokens)
        if position + 1 > states[0].capacity:
            raise ValueError(f"the window of {states[0].capacity} positions is full")
        addresses = []
        for layer, state in zip(self._layer_addresses, states, strict=True):
            addresses += [*layer, *_addresses(state.buffers())]
            state.length += 1
        logits = torch.empty(streams, self.classes, dtype=torch.float32)
        tensor_call(
            "i3_decode",
            *(streams, len(states), config.hidden_size, config.num_attention_heads, config.rank),
            *(config.state_size, config.intermediate_size, self.classes),
            *(states[0].capacity, position, threads, float(config.layer_norm_eps)),
            tokens.contiguous(),
            (ctypes.c_void_p * len(addresses))(*addresses),
            self._outer_addresses,
            logits,
        )
        return F.pad(logits, (0, config.vocab_size - self.classes), value=-torch.inf)
