"""Puts the compiled recurrences in place of the torch forms of `ops_i3`."""

import ctypes

import torch
from torch import Tensor

from i3lm.model import ops_i3
from i3lm.native import tensor_library


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _sizes(tensor: Tensor) -> tuple[ctypes.c_int64, ...]:
    return tuple(ctypes.c_int64(size) for size in tensor.shape)


def _scan_states(u: Tensor, columns: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """Run s_t = M s_(t-1) + u_t; `columns` is M transposed, `state` (B, N) is updated."""
    library = tensor_library()
    assert library is not None
    out = torch.empty_like(u)
    if library.i3_state_scan(
        *_sizes(u), *map(_pointer, (columns, u, state, out)), ctypes.c_int(reverse)
    ):
        raise ValueError(f"the kernel holds at most 256 states, not {u.shape[2]}")
    return out


def recurrence_forward(
    x: Tensor, u: Tensor, w: Tensor, A: Tensor, D: Tensor, h: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ops_i3.recurrence` for float32 tensors in memory; shapes as there."""
    library = tensor_library()
    assert library is not None
    x, u, h, s = x.contiguous(), u.contiguous(), h.clone(), s.clone()
    y = torch.empty_like(x)
    tensors = (x, w.contiguous(), D.contiguous(), h, y)
    library.i3_ema_forward(*_sizes(x), *map(_pointer, tensors))
    return y, _scan_states(u, A.t().contiguous(), s, reverse=False), h, s


def recurrence_backward(
    saved: tuple[Tensor, ...], grad_y: Tensor, grad_s: Tensor, grad_h: Tensor, grad_end: Tensor
) -> tuple[Tensor, ...]:
    """The adjoint of `recurrence_forward`; arguments as `ops_i3._backward`."""
    library = tensor_library()
    assert library is not None
    x, w, A, D, h, s, _ = (t.contiguous() for t in saved)
    grad_y, lam = grad_y.contiguous(), grad_h.clone()
    grad_x, grad_w, grad_D = torch.empty_like(x), torch.zeros_like(h), torch.zeros_like(h)
    tensors = (grad_y, x, w, D, h, lam, grad_x, grad_w, grad_D)
    if library.i3_ema_backward(*_sizes(x), *map(_pointer, tensors)):
        raise MemoryError("no memory for the backward pass of a recurrence")
    source = grad_s.clone(memory_format=torch.contiguous_format)
    source[:, -1] += grad_end
    sigma = _scan_states(source, A, torch.zeros_like(s), reverse=True)
    return grad_x, sigma, grad_w.sum(0), grad_D.sum(0), lam, sigma[:, 0] @ A


def install() -> bool:
    """Use the compiled kernels where there are any; say whether they are in use."""
    if tensor_library() is None:
        return False
    ops_i3.recurrence_forward_kernel = recurrence_forward
    ops_i3.recurrence_backward_kernel = recurrence_backward
    return True
