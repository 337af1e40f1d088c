"""Calls of the compiled passes in native/tensor.c and native/layer.h, on tensors in memory.

`low` is the type of the products' operands: bfloat16 or float32. Rows are tokens, (M, D).
"""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from i3lm.model import ops_i3
from i3lm.native import multiplies_bfloat16, tensor_call

ROWS, MAX_STATES = 32, 256  # as in native/tensor.c
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def _call(name: str, low: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    tensor_call(f"{name}_{NAMES[low]}", *arguments)


def _partial(rows: int, *sizes: int) -> Tensor:
    """Room for the sums of each chunk of rows."""
    return torch.empty(-(-rows // ROWS), *sizes, dtype=torch.float32, device="cpu")


def narrow(tensors: Sequence[Tensor], low: torch.dtype) -> list[Tensor]:
    """Return float32 tensors in `low`: copies in one piece of memory, or the tensors themselves."""
    if low == torch.float32:
        return list(tensors)
    tensors = [t.contiguous() for t in tensors]
    counts = [t.numel() for t in tensors]
    flat = torch.empty(sum(counts), dtype=low, device="cpu")
    addresses = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
    tensor_call("i3_narrow", len(tensors), addresses, torch.tensor(counts, device="cpu"), flat)
    pieces = flat.split(counts)
    return [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)]


def product(x: Tensor, w: Tensor) -> Tensor:
    """Return x w^T for x (M, K) in bfloat16 and w (N, K) in float32; sizes are multiples of 32."""
    y = torch.empty(x.shape[0], w.shape[0], dtype=x.dtype, device="cpu")
    tensor_call("i3_product", *y.shape, x.shape[1], x, w, y)
    return y


Written = tuple[Tensor, Tensor]  # what a branch writes, (M, D) low, and its bias (D)


def norm_forward(
    x: Tensor, written: Written | None, norm: tuple[Tensor, Tensor, float], low: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y = x + what is written, LayerNorm(y) in `low`, and the rows' statistics (M, 2)."""
    y = x if written is None else torch.empty_like(x)
    added, shift = written or (None, None)
    n, stats = torch.empty_like(x, dtype=low), x.new_empty(x.shape[0], 2)
    weight, bias, eps = norm
    _call("i3_norm_forward", low, *x.shape, x, added, shift, y, weight, bias, eps, n, stats)
    return y, n, stats


def norm_backward(
    x: Tensor,
    stats: Tensor,
    norm: tuple[Tensor, Tensor, float],
    grads: tuple[Tensor, Tensor | None],
    grad_y: Tensor,
    n: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x, the same in `low`, and the sums (3, D).

    grads: of LayerNorm's output, in up to two parts. grad_y: what reaches x beside the norm.
    The sums are those of the gain's, the bias's and x's gradient. n is filled with LayerNorm(x).
    """
    grad, low = torch.empty_like(x), grads[0].dtype
    grad_low, partial = torch.empty_like(x, dtype=low), _partial(x.shape[0], 3, x.shape[1])
    weight, bias, _ = norm
    arguments = (x, stats, weight, bias, *grads, grad_y, grad, grad_low, n, partial)
    _call("i3_norm_backward", low, *x.shape, *arguments)
    return grad, grad_low, partial.sum(0)


def add(x: Tensor, written: Written, out: Tensor) -> None:
    """Fill `out` with x + what is written, in float32."""
    _call("i3_add", written[0].dtype, *x.shape, x, *written, out)


def column_sums(x: Tensor) -> Tensor:
    """Return the sum over the rows of x (M, D)."""
    partial = _partial(*x.shape)
    _call("i3_column_sums", x.dtype, *x.shape, x, partial)
    return partial.sum(0)


@functools.cache
def gelu_tables() -> Tensor:
    """Return quadratics (2, 3, 32) for Phi(-a) and for the slope of GELU at -a.

    Segment i is a = (i + t) / 6, 0 <= t < 1, up to a = 32 / 6; coefficients of 1, t and t^2, which
    meet the function at its Chebyshev points. |error| < 4e-5; bfloat16 rounds by up to 2e-3 there.
    """
    t = (
        1 - torch.cos(torch.pi * (torch.arange(3, dtype=torch.float64, device="cpu") + 0.5) / 3)
    ) / 2
    a = (torch.arange(32, dtype=torch.float64, device="cpu")[:, None] + t) / 6
    below = torch.special.erfc(a * 0.5**0.5) / 2
    slope = below - a * torch.exp(-a * a / 2) / (2 * torch.pi) ** 0.5
    powers = torch.stack([t**0, t, t * t], 1)
    return torch.stack([torch.linalg.solve(powers, f.mT) for f in (below, slope)]).float()


def gelu(x: Tensor, shift: Tensor) -> Tensor:
    """Return the GELU of x (M, D) + shift (D): x Phi(x), no approximation by tanh."""
    y = torch.empty_like(x)
    if x.dtype == torch.bfloat16 and multiplies_bfloat16():
        _call("i3_table_gelu_forward", x.dtype, *x.shape, x, shift, y, gelu_tables())
    else:
        _call("i3_gelu_forward", x.dtype, *x.shape, x, shift, y)
    return y


def gelu_backward(x: Tensor, shift: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Replace grad (M, D) by that of x; return gelu(x + shift) and the new grad's column sums."""
    y, partial = torch.empty_like(x), _partial(*x.shape)
    arguments = (x, shift, y, grad, partial)
    if x.dtype == torch.bfloat16 and multiplies_bfloat16():
        _call("i3_table_gelu_backward", x.dtype, *x.shape, *arguments, gelu_tables())
    else:
        _call("i3_gelu_backward", x.dtype, *x.shape, *arguments)
    return y, partial.sum(0)


def softmax(scores: Tensor, first: int, scale: float, grad: Tensor | None = None) -> None:
    """Replace scores (heads, rows, keys) by softmax(scale * scores), row r over first + r + 1 keys.

    `grad`, of the probabilities, is replaced by that of the scores.
    """
    _call("i3_softmax", scores.dtype, *scores.shape, first, scale, scores, grad)


def attention_supported(q: Tensor, heads: int) -> bool:
    """Say whether the attention kernel runs for q (M, D) on this processor."""
    return q.dtype == torch.bfloat16 and q.shape[1] // heads % 16 == 0 and multiplies_bfloat16()


def _heads(q: Tensor, batch: int, heads: int) -> tuple[int, ...]:
    return batch, q.shape[0] // batch, heads, q.shape[1] // heads


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, biases: tuple[Tensor, Tensor], batch: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Return causal attention (M, D) and the logarithms of its denominators (B, H, T).

    biases: of q and v, float32 (D). One of k would change nothing: softmax takes it away.
    """
    sizes, y = _heads(q, batch, heads), torch.empty_like(q)
    log_sums = torch.empty(batch, heads, sizes[1], dtype=torch.float32, device="cpu")
    _call("i3_attention_forward", q.dtype, *sizes, q, k, v, *biases, y, log_sums)
    return y, log_sums


def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, q_bias: Tensor, log_sums: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v (M, D) from that of the output."""
    grads = tuple(torch.empty_like(x) for x in (q, k, v))
    sizes = _heads(q, *log_sums.shape[:2])
    _call("i3_attention_backward", q.dtype, *sizes, q, k, v, q_bias, grad, log_sums, *grads)
    return grads


def ema_forward(
    x: Tensor, w: Tensor, D: Tensor, residual: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor]:
    """Return residual + D * h_t (B, T, D) in float32 and the last h, going on from h (B, D)."""
    out, h = torch.empty_like(x, dtype=torch.float32), h.clone()
    _call("i3_ema_forward", x.dtype, *x.shape, x, w, D, residual, h, out)
    return out, h


def ema_backward(
    grad: Tensor, x: Tensor, w: Tensor, D: Tensor, h: Tensor, grad_h: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w, D and the first h, from that of the output and the last h."""
    lam, grad_x = grad_h.clone(), torch.empty_like(x)
    grad_w, grad_D = torch.zeros_like(h), torch.zeros_like(h)
    arguments = (grad, x, w, D, h, lam, grad_x, grad_w, grad_D)
    _call("i3_ema_backward", x.dtype, *x.shape, *arguments)
    return grad_x, grad_w.sum(0), grad_D.sum(0), lam


def scan_states(u: Tensor, columns: Tensor, state: Tensor, reverse: bool = False) -> Tensor:
    """Run s_t = M s_(t-1) + u_t; `columns` is M transposed, `state` (B, N) is updated."""
    if u.shape[2] > MAX_STATES:  # C keeps a state on its stack
        with torch.autocast("cpu", enabled=False):  # sums over all time stay float32
            out = ops_i3.scan_states(u.flip(1) if reverse else u, columns.t(), state)
        state.copy_(out[:, -1])
        return out.flip(1) if reverse else out
    out = torch.empty_like(u)
    tensor_call("i3_state_scan", *u.shape, columns, u, state, out, int(reverse))
    return out


def transition_scale(A: Tensor) -> Tensor:
    """Return the factors of `ops_i3.stable_transition`, (...), for A (..., N, N), float32."""
    scale = torch.empty(A.shape[:-2], dtype=torch.float32, device="cpu")
    tensor_call("i3_transition_scale", scale.numel(), A.shape[-1], A.contiguous(), scale)
    return scale


def cross_entropy(
    logits: Tensor, bias: Tensor, targets: Tensor, backward: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of logits (M, V) + bias in nats, float64, and the bias's gradient.

    With `backward` the logits are replaced by their gradient.
    """
    chunks, classes = -(-logits.shape[0] // ROWS), logits.shape[1]
    losses = torch.empty(chunks, dtype=torch.float64, device="cpu")
    grad = torch.zeros(chunks, classes, dtype=torch.float32, device="cpu") if backward else None
    arguments = (logits, bias, targets.contiguous(), losses, grad)
    _call("i3_cross_entropy", logits.dtype, *logits.shape, *arguments)
    return losses.sum(), None if grad is None else grad.sum(0)


def recurrence_forward(
    x: Tensor, u: Tensor, w: Tensor, A: Tensor, D: Tensor, h: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ops_i3.recurrence` for float32 tensors; shapes as there."""
    x, u, w, D, h, s = (t.contiguous() for t in (x, u, w, D, h, s))
    y, h = ema_forward(x, w, D, None, h)
    s = s.clone()
    return y, scan_states(u, A.t().contiguous(), s), h, s


def recurrence_backward(
    saved: tuple[Tensor, ...], grad_y: Tensor, grad_s: Tensor, grad_h: Tensor, grad_end: Tensor
) -> tuple[Tensor, ...]:
    """The adjoint of `recurrence_forward`; arguments as `ops_i3._backward`."""
    x, w, A, D, h, s, _ = (t.contiguous() for t in saved)
    grad_x, grad_w, grad_D, lam = ema_backward(grad_y.contiguous(), x, w, D, h, grad_h.contiguous())
    source = grad_s.clone(memory_format=torch.contiguous_format)
    source[:, -1] += grad_end
    sigma = scan_states(source, A, torch.zeros_like(s), reverse=True)
    return grad_x, sigma, grad_w, grad_D, lam, sigma[:, 0] @ A
