"""Dropout of what a layer adds to the residual stream (Srivastava et al., 2014).

Which numbers are dropped is a function of keys alone, the same on every device and for any division
of the work: a counter goes through the final mix of MurmurHash3. The kernel keeps no mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from i3lm.model import ops_i3
from i3lm.model.room import empty
from i3lm.native import tensor_call, tensor_library

_WORD = 0xFFFFFFFF


def kept(keys: Tensor, count: int, share: float) -> Tensor:
    """Return which of `count` numbers of each row stay, (B, count) bool, for keys (B, 2) int64."""
    h = torch.arange(count, device=keys.device) * 0x9E3779B1 + keys[:, :1]
    h &= _WORD
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _WORD
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _WORD
    return (h ^ (h >> 16) ^ keys[:, 1:]) >= _least(share)


def _least(share: float) -> int:
    return min(_WORD, round(share * 2**32))


@dataclass(frozen=True)
class Dropout:
    """What a microbatch drops of each layer: a `share` of the numbers, by keys (B, layers, 2).

    The keys are int64 below 2^32. What stays grows by 1 / (1 - share).
    """

    share: float
    keys: Tensor

    def __call__(self, x: Tensor, y: Tensor, layer: int) -> Tensor:
        """Return x + dropout(y - x) for the input x and the output y (B, T, D) of a layer."""
        plain = x.dtype == y.dtype == torch.float32 and x.device.type == "cpu"
        if plain and tensor_library() is not None and not ops_i3.is_followed():
            return _Dropped.apply(x.contiguous(), y.contiguous(), self, layer)
        keys = self.keys[:, layer].to(x.device)
        stay = kept(keys, x.shape[1] * x.shape[2], self.share).view(x.shape)
        return x + stay * ((y - x) / (1 - self.share))

    def run(self, x: Tensor, y: Tensor, layer: int, out: Tensor) -> Tensor:
        """Fill `out`, which may be y, with the same by the kernel, and return it.

        x and y: float32 in memory, (B * T, D) or (B, T, D).
        """
        tensor_call("i3_dropout", *self._arguments(x, layer), x, y, out)
        return out

    def run_backward(self, grad: Tensor, layer: int, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and y from that of `run`'s result; the latter is `grad_y`,
        which may be `grad`."""
        grad_x = empty(grad.shape)
        tensor_call("i3_dropout_backward", *self._arguments(grad, layer), grad, grad_x, grad_y)
        return grad_x, grad_y

    def _arguments(self, x: Tensor, layer: int) -> tuple[int, int, int, float, Tensor]:
        rows = len(self.keys)
        keys = self.keys[:, layer].contiguous()
        return rows, x.numel() // max(1, rows), _least(self.share), 1 / (1 - self.share), keys


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, dropout: Dropout, layer: int) -> Tensor:
        ctx.dropout, ctx.layer = dropout, layer
        return dropout.run(x, y, layer, empty(x.shape))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous()
        return *ctx.dropout.run_backward(grad, ctx.layer, empty(grad.shape)), None, None
