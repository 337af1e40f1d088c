"""The loss of a LoRPt head and its gradients in one call: native/head.c.

It computes what `ops_i3.head_loss` does, in bfloat16. For `ops_i3.head_kernel` and `whole_network`.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from i3lm.model import kernels
from i3lm.model.room import empty
from i3lm.model.whole_layer import SIDE, working_room
from i3lm.native import tensor_call

LOGITS = 1 << 22  # at once, 2 bytes each


def head_loss(
    hidden: Tensor, A: Tensor, B: Tensor, bias: Tensor, targets: Tensor, backward: bool
) -> tuple[Tensor, list[Tensor] | None] | None:
    """Return the summed loss in nats, and the gradients of hidden (M, D), A (V, R), B (R, D), bias.

    None where sizes, types or the processor do not fit.
    """
    tokens, width = hidden.shape
    classes, rank = A.shape
    plain = all(t.dtype == torch.float32 and t.is_contiguous() for t in (hidden, A, B, bias))
    if not plain or any(size % SIDE for size in (tokens, width, rank)):
        return None
    if not tokens or not kernels.multiplies_bfloat16():
        return None
    rows = -(-classes // SIDE) * SIDE
    A = F.pad(A, (0, 0, 0, rows - classes)) if rows > classes else A
    most = max(SIDE, LOGITS // rows // SIDE * SIDE)
    block = -(-tokens // -(-tokens // most) // SIDE) * SIDE  # of equal size
    targets, total, grads = targets.contiguous(), 0.0, None
    shapes = hidden.shape, (rows, rank), (rank, width), (rows,)
    if backward:
        grads = [empty(shape) for shape in shapes]
    for begin in range(0, tokens, block):
        here = slice(begin, begin + block)
        found = None
        if grads is not None:
            sums = grads[1:] if begin == 0 else [empty(shape) for shape in shapes[1:]]
            found = [grads[0][here], *sums]
        total += _call(hidden[here], A, B, bias, targets[here], classes, found)
        if grads is not None and found is not None and begin:
            torch._foreach_add_(grads[1:], found[1:])
    if grads is not None:
        grads[1], grads[3] = grads[1][:classes], grads[3][:classes]
    return hidden.new_full((), total), grads


def _call(
    hidden: Tensor, A: Tensor, B: Tensor, bias: Tensor, targets: Tensor, classes: int,
    grads: list[Tensor] | None,
) -> float:  # fmt: skip
    numbers = (*hidden.shape, A.shape[1], A.shape[0], classes)
    sizes = (ctypes.c_int64 * len(numbers))(*numbers)
    losses = torch.empty(hidden.shape[0] // SIDE, dtype=torch.float64, device="cpu")
    with working_room("i3_head_room", sizes) as work:
        tensors = hidden, A, B, bias, targets, losses, *(grads or (None,) * 4), work
        tensor_call("i3_head", sizes, *tensors)
    return float(losses.sum())
