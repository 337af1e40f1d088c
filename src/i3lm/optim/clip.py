"""The length of all gradients together, and its limit."""

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor

from i3lm.native import tensor_call, tensor_library
from i3lm.optim.base import scale_gradients


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale all gradients so that their norm is at most `limit`; return the norm before.

    As `torch.nn.utils.clip_grad_norm_`, but gradients below the limit are read once, not written.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = gradient_norm(grads)
    scale_gradients(grads, clip_factor(norm, limit))
    return norm


def clip_factor(norm: float, limit: float) -> float:
    """Return the factor by which gradients of this norm come to at most `limit`."""
    return limit / norm if norm > limit else 1.0


def gradient_norm(grads: list[Tensor]) -> float:
    """Return the Euclidean norm of all numbers in `grads`; 0 for none."""
    if not grads:
        return 0.0
    if tensor_library() is None or not all(_plain(g) for g in grads):
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
    addresses = (ctypes.c_void_p * len(grads))(*(g.data_ptr() for g in grads))
    counts = torch.tensor([g.numel() for g in grads])
    sums = torch.empty(len(grads), dtype=torch.float64)
    tensor_call("i3_square_sums", len(grads), addresses, counts, sums)
    return float(sums.sum().sqrt())


def _plain(grad: Tensor) -> bool:
    fits = grad.dtype == torch.float32 and grad.device.type == "cpu"
    return fits and grad.is_contiguous()
