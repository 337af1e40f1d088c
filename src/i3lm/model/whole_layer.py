"""A layer's training pass in one call each way: native/layer_forward.c and layer_backward.c.

It computes what `fused` does, in bfloat16, with products of its own: no thread waits while Python
and torch hand out the next of a hundred operations. For `fused` and `whole_network`.
"""

import contextlib
import ctypes
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from i3lm.model import kernels
from i3lm.model.room import Kind, empty, pieces
from i3lm.native import tensor_call, tensor_library

if TYPE_CHECKING:
    from i3lm.model.fused import Kept, Parts

WIDE = ("n1", "q", "k", "v", "inner")  # of `Kept`: what selective checkpointing leaves out
ABSENT = (*WIDE, "x2", "x3")  # what is not kept here at all
SIDE = 32  # tokens and all sizes come in multiples of it


def fits(p: "Parts", shape: Sequence[int], heads: int, low: torch.dtype) -> bool:
    """Say whether the passes take inputs of this shape (B, T, D), on this processor."""
    batch, steps, width = shape
    sizes = (batch * steps, width, p.A.shape[0], p.q_up.shape[1], p.up_A.shape[0])
    return (
        low == torch.bfloat16
        and batch * steps > 0
        and not any(size % SIDE for size in sizes)
        and p.up_A.shape[1] == p.down_A.shape[1] == p.q_up.shape[1]
        and width // heads % 16 == 0
        and p.A.shape[0] <= kernels.MAX_STATES
        and all(t.is_contiguous() for t in p)
        and kernels.multiplies_bfloat16()
    )


class Sizes(NamedTuple):
    """As in native/whole.h."""

    batch: int
    steps: int
    width: int
    states: int
    rank: int
    inner: int
    heads: int


def sizes_of(p: "Parts", shape: Sequence[int], heads: int) -> Sizes:
    """Return the sizes of a layer's passes over (B, T, D)."""
    batch, steps, width = shape
    return Sizes(batch, steps, width, p.A.shape[0], p.q_up.shape[1], p.up_A.shape[0], heads)


def kinds_kept(s: Sizes) -> dict[str, Kind]:
    """Return shapes and types of what the way forward keeps beside x1: as in `Kept`, in its order.

    Of a norm's input the way back wants the normalised values alone, and bfloat16 does for them.
    What is wide is not among it: the way back computes it from the middles once more, a block of
    tokens at a time, which is faster than to write it to memory and to read it.
    """
    tokens, exact, low = s.batch * s.steps, torch.float32, torch.bfloat16
    return {
        "stats1": ((tokens, 2), exact),
        "states": ((s.batch, s.steps, s.states), exact),
        "stats2": ((tokens, 2), exact),
        "hat2": ((tokens, s.width), low),
        "middle": ((tokens, 3 * s.rank), low),
        "attention": ((s.batch, s.heads, s.steps), exact),
        "attended": ((tokens, s.width), low),
        "stats3": ((tokens, 2), exact),
        "hat3": ((tokens, s.width), low),
        "up_middle": ((tokens, s.rank), low),
        "down_middle": ((tokens, s.rank), low),
    }


def room(p: "Parts", shape: Sequence[int], heads: int) -> dict[str, Tensor]:
    """Return tensors for what the way forward of (B, T, D) keeps, by the names of `Kept`."""
    kinds = kinds_kept(sizes_of(p, shape, heads))
    absent = {name: torch.empty(0, device="cpu") for name in ABSENT}
    return absent | dict(zip(kinds, pieces(kinds.values()), strict=True))


def _addresses(tensors: "Parts | Kept") -> list[int]:
    """Return where tensors are, but for absent ones, in their order."""
    return [t.data_ptr() for n, t in zip(tensors._fields, tensors, strict=True) if n not in ABSENT]


def _sizes(p: "Parts", kept: "Kept") -> Sizes:
    return sizes_of(p, (*kept.states.shape[:2], kept.x1.shape[1]), kept.attention.shape[1])


_WORK: list[Tensor] = []  # that no call uses now: new memory each time would leave holes


@contextlib.contextmanager
def working_room(name: str, sizes: "ctypes.Array[ctypes.c_int64]") -> Iterator[Tensor]:
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
    run_forward(_sizes(p, kept), _addresses(p), _addresses(kept), eps, out)


def run_forward(
    sizes: Sizes, parts: Sequence[int], kept: Sequence[int], eps: float, out: Tensor | None
) -> None:
    """Do what `forward` does, with addresses of `Parts` and, without the absent ones, `Kept`."""
    counts = (ctypes.c_int64 * len(sizes))(*sizes)
    with working_room("i3_layer_forward_room", counts) as work:
        arguments = _array(parts), _array(kept), eps, kernels.gelu_tables(), out
        tensor_call("i3_layer_forward", counts, *arguments, work)


def _array(addresses: Sequence[int]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(addresses))(*addresses)


def gradients(p: "Parts") -> "Parts":
    """Return room for the gradients of the parts, in one piece of memory."""
    sizes = [math.prod(t.shape) for t in p]
    flat = empty((sum(sizes),))
    grads = [g.view(t.shape) for g, t in zip(flat.split(sizes), p, strict=True)]
    grads[p._fields.index("k_bias")].zero_()
    return type(p)(*grads)


def backward(p: "Parts", kept: "Kept", eps: float, grad: Tensor, grads: "Parts") -> Tensor:
    """Fill `grads`; return the gradient of x (M, D) from that of the output (M, D)."""
    parts = _addresses(p), _addresses(kept)
    return run_backward(_sizes(p, kept), *parts, eps, _addresses(grads), False, grad)


def run_backward(
    sizes: Sizes,
    parts: Sequence[int],
    kept: Sequence[int],
    eps: float,
    grads: Sequence[int],
    add: bool,
    grad: Tensor,
) -> Tensor:
    """Do what `backward` does, with addresses as `run_forward`; `add` to gradients or fill them."""
    counts, grad_x = (ctypes.c_int64 * len(sizes))(*sizes), empty(grad.shape)
    with working_room("i3_layer_backward_room", counts) as work:
        arguments = _array(parts), _array(kept), eps, kernels.gelu_tables(), _array(grads), int(add)
        tensor_call("i3_layer_backward", counts, *arguments, grad, grad_x, work)
    return grad_x
