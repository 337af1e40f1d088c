"""Causal attention with a backward pass of its own, for `fused`.

q, k, v and their gradients are (M, D): M = B * T tokens, D = H heads of K. Two ways: a compiled
kernel that keeps a head in the processor's cache (bfloat16, where the processor multiplies it),
else batched products over blocks of queries. Both compute the probabilities again on the way back.
q and v come without their biases, which are added here; a bias of k would change nothing.
"""

import torch
from torch import Tensor

from i3lm.model import kernels


def attend(
    q: Tensor, k: Tensor, v: Tensor, biases: tuple[Tensor, Tensor], batch: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Return the output (M, D) and what `attend_backward` needs beside it. biases: of q and v."""
    if kernels.attention_supported(q, heads):
        return kernels.attention_forward(q, k, v, biases, batch, heads)
    q, v = (x + bias.to(x.dtype) for x, bias in zip((q, v), biases, strict=True))
    q, k, v = (_split(x, batch, heads) for x in (q, k, v))
    out = torch.empty_like(q)
    for begin, end in _blocks(q.shape[1]):
        scores = torch.bmm(q[:, begin:end], k[:, :end].mT)
        kernels.softmax(scores, begin, q.shape[2] ** -0.5)
        out[:, begin:end] = torch.bmm(scores, v[:, :end])
    return _join(out, batch), q.new_empty(0)


def attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_bias: Tensor,
    kept: Tensor,
    grad: Tensor,
    batch: int,
    heads: int,
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v from that of the output."""
    if kept.numel():
        return kernels.attention_backward(q, k, v, q_bias, kept, grad)
    q = q + q_bias.to(q.dtype)
    q, k, v, grad = (_split(x, batch, heads) for x in (q, k, v, grad))
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for begin, end in _blocks(q.shape[1]):
        rows, seen = slice(begin, end), slice(0, end)
        probs = torch.bmm(q[:, rows], k[:, seen].mT)
        inner = torch.bmm(grad[:, rows], v[:, seen].mT)
        kernels.softmax(probs, begin, q.shape[2] ** -0.5, inner)
        grad_v[:, seen] += torch.bmm(probs.mT, grad[:, rows])
        grad_q[:, rows] = torch.bmm(inner, k[:, seen])
        grad_k[:, seen] += torch.bmm(inner.mT, q[:, rows])
    return tuple(_join(x, batch) for x in (grad_q, grad_k, grad_v))


def _blocks(steps: int) -> list[tuple[int, int]]:
    """Eight blocks or fewer, of 64 or more: a block's keys after the diagonal are wasted work."""
    size = max(64, -(-steps // 8))
    return [(begin, min(begin + size, steps)) for begin in range(0, steps, size)]


def _split(x: Tensor, batch: int, heads: int) -> Tensor:
    """(M, D) -> (B * H, T, K)."""
    return x.view(batch, -1, heads, x.shape[1] // heads).transpose(1, 2).flatten(0, 1)


def _join(x: Tensor, batch: int) -> Tensor:
    """(B * H, T, K) -> (M, D)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2).flatten(0, 1)
