"""A layer's training pass in one call each way: native/layer_forward.c and layer_backward.c.

It computes what `fused` does, in bfloat16, with products of its own: no thread waits while Python
and torch hand out the next of a hundred operations. For `fused._FusedLayer` alone.
"""

import contextlib
import ctypes
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from i3lm.model import kernels
from i3lm.model.room import empty, pieces
from i3lm.native import tensor_call, tensor_library

if TYPE_CHECKING:
    from i3lm.model.fused import Kept, Parts

WIDE = ("n1", "q", "k", "v", "inner")  # of `Kept`: what selective checkpointing leaves out
SIDE = 32  # tokens and all sizes come in multiples of it


def fits(p: "Parts", x_BTD: Tensor, heads: int, low: torch.dtype) -> bool:
    """Say whether the passes take these sizes, on this processor."""
    batch, steps, width = x_BTD.shape
    sizes = (batch * steps, width, p.A.shape[0], p.q_up.shape[1], p.up_A.shape[0])
    return (
        low == torch.bfloat16
        and not any(size % SIDE for size in sizes)
        and p.up_A.shape[1] == p.down_A.shape[1] == p.q_up.shape[1]
        and width // heads % 16 == 0
        and p.A.shape[0] <= kernels.MAX_STATES
        and all(t.is_contiguous() for t in p)
        and kernels.multiplies_bfloat16()
    )


def room(p: "Parts", x_BTD: Tensor, heads: int) -> dict[str, Tensor]:
    """Return tensors for what the way forward keeps, by the names of `Kept`.

    What is wide is empty: the way back computes it from the middles once more, a block of tokens at
    a time, which is faster than to write it to memory and to read it.
    """
    batch, steps, width = x_BTD.shape
    tokens, rank = batch * steps, p.q_up.shape[1]
    exact = {
        "stats1": (tokens, 2), "states": (batch, steps, p.A.shape[0]), "x2": (tokens, width),
        "stats2": (tokens, 2), "attention": (batch, heads, steps), "x3": (tokens, width),
        "stats3": (tokens, 2),
    }  # fmt: skip
    low = {
        "middle": (tokens, 3 * rank), "attended": (tokens, width),
        "up_middle": (tokens, rank), "down_middle": (tokens, rank),
    }  # fmt: skip
    kinds = [(shape, torch.float32) for shape in exact.values()]
    kinds += [(shape, torch.bfloat16) for shape in low.values()]
    wide = {name: torch.empty(0, device="cpu") for name in WIDE}
    return wide | dict(zip((*exact, *low), pieces(kinds), strict=True))


def _addresses(tensors: "Parts | Kept") -> Any:
    """Return where tensors are, but for wide ones, in their order."""
    found = [t.data_ptr() for n, t in zip(tensors._fields, tensors, strict=True) if n not in WIDE]
    return (ctypes.c_void_p * len(found))(*found)


def _sizes(p: "Parts", kept: "Kept") -> Any:
    batch, steps, states = kept.states.shape
    width, rank = p.q_up.shape
    sizes = batch, steps, width, states, rank, p.up_A.shape[0], kept.attention.shape[1]
    return (ctypes.c_int64 * len(sizes))(*sizes)


_WORK: list[Tensor] = []  # that no call uses now: new memory each time would leave holes


@contextlib.contextmanager
def working_room(name: str, sizes: Any) -> Iterator[Tensor]:
    """Give what a call needs beside its tensors, on a border of 64 bytes; `name` says how much."""
    library = tensor_library()
    assert library is not None
    needed = getattr(library, name)
    needed.restype = ctypes.c_int64
    size = needed(sizes)
    try:
        work = _WORK.pop()
    except IndexError:  # none, or another thread has it
        work = torch.empty(size, dtype=torch.uint8, device="cpu")
    if work.numel() < size:
        work = torch.empty(size, dtype=torch.uint8, device="cpu")
    yield work
    _WORK.append(work)


def drop_work() -> None:
    """Free what was kept for the next call."""
    _WORK.clear()


def forward(p: "Parts", kept: "Kept", eps: float, out: Tensor | None) -> None:
    """Fill `kept` but for x1, and `out` (M, D) if it is given."""
    arguments = _sizes(p, kept), _addresses(p), _addresses(kept), eps, kernels.gelu_tables()
    with working_room("i3_layer_forward_room", arguments[0]) as work:
        tensor_call("i3_layer_forward", *arguments, out, work)


def gradients(p: "Parts") -> list[Tensor]:
    """Return room for the gradients of the parts, in one piece of memory."""
    sizes = [math.prod(t.shape) for t in p]
    flat = empty((sum(sizes),))
    grads = [g.view(t.shape) for g, t in zip(flat.split(sizes), p, strict=True)]
    grads[p._fields.index("k_bias")].zero_()
    return grads


def backward(p: "Parts", kept: "Kept", eps: float, grad: Tensor, grads: list[Tensor]) -> Tensor:
    """Fill `grads`; return the gradient of x (M, D) from that of the output (M, D)."""
    grad_x = empty(grad.shape)
    arguments = _sizes(p, kept), _addresses(p), _addresses(kept), eps, kernels.gelu_tables()
    with working_room("i3_layer_backward_room", arguments[0]) as work:
        tensor_call(
            "i3_layer_backward", *arguments, _addresses(type(p)(*grads)), grad, grad_x, work
        )
    return grad_x
