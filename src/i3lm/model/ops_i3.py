"""The operations of the i3 layer, in plain torch.

Shapes: B batch, T time, D channels (hidden size), N states, R rank, V vocabulary.
Sources: exponential time mixing as in RWKV (arXiv 2305.13048), linear state space as in S4
(arXiv 2111.00396) with a time-invariant transition, prefix scans after Hillis and Steele (1986),
low-rank products after LoRPt (FlameF0X, 2025).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# i3lm puts its compiled passes here; a model folder on its own runs on the torch forms below.
# Signature: (x, u, w, A, D, h, s) -> (D * h_t, s_t, h_T, s_T), and the same for its backward.
recurrence_forward_kernel: Callable | None = None
recurrence_backward_kernel: Callable | None = None
cross_entropy_kernel: Callable | None = None  # as `_cross_entropy`
# (hidden, A, B, bias, targets, backward) -> (loss, gradients), or None where it does not fit.
head_kernel: Callable | None = None
transition_scale_kernel: Callable | None = None  # as `_transition_scale`
# Tokens of a chunk of the two scans, which run in chunks where products are nearly free: on a CPU
# only for tests.
CHANNEL_CHUNK, STATE_CHUNK = 32, 16
chunks_on_cpu = False
# (layer, x) -> the layer's output, or None where it does not fit.
fused_layer: Callable | None = None


def lorpt(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x (A B)^T + bias` for x (..., in), A (out, R), B (R, in) without forming `A B`."""
    return F.linear(F.linear(x, B), A, bias)


def stable_transition(A: Tensor) -> Tensor:
    """Return A (N, N), scaled down where its spectral radius could exceed 1.

    Gelfand's bound `|A^64|_F^(1/64)` is never below the radius and at most 3 % above it for N = 32.
    The scale counts as a constant in the backward pass.
    """
    kernel: Any = transition_scale_kernel if _fits_cpu(A) else None
    return A * (kernel or _transition_scale)(A.detach())


@torch.no_grad()
def _transition_scale(A: Tensor) -> Tensor:
    power = A.double()
    norm = torch.linalg.matrix_norm(power).clamp(min=1e-12)
    power = power / norm
    for _ in range(6):
        power = power @ power
    bound = norm * torch.linalg.matrix_norm(power) ** (1 / 64)
    return bound.clamp(min=1.0).reciprocal().to(A.dtype)


def scan_channels(x: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """Return all h_t of `h_t = w h_(t-1) + x_t`: x (B, T, D), w (D), h (B, D) -> (B, T, D).

    No loop over time. On a CPU a doubling scan; elsewhere in chunks: one product with the powers of
    w within each, and a doubling scan over the chunks' ends. O(T) memory either way.
    """
    if x.device.type == "cpu" and not chunks_on_cpu:
        return _double(x, h, torch.addcmul, w)
    steps, size = x.shape[1], min(CHANNEL_CHUNK, x.shape[1])
    chunks = F.pad(x, (0, 0, 0, -steps % size)).unflatten(1, (-1, size))  # (B, J, C, D)
    ages = torch.arange(size, device=x.device)
    powers = torch.pow(w[:, None], ages)  # (D, C)
    age = ages[:, None] - ages
    decay = powers[:, age.clamp(min=0)] * (age >= 0)  # (D, C, C)
    inner = torch.einsum("dts,bjsd->bjtd", decay, chunks)
    ends = _double(inner[:, :, -1], h, torch.addcmul, powers[:, -1] * w)
    before = torch.cat([h[:, None], ends[:, :-1]], dim=1)
    return torch.addcmul(inner, before[:, :, None], (powers * w[:, None]).t()).flatten(1, 2)[
        :, :steps
    ]


def scan_states(u: Tensor, A: Tensor, s: Tensor) -> Tensor:
    """Return all s_t of `s_t = A s_(t-1) + u_t`: u (B, T, N), A (N, N), s (B, N) -> (B, T, N).

    As `scan_channels`; in chunks the powers of A stand in one matrix (C N, C N).
    """
    if u.device.type == "cpu" and not chunks_on_cpu:
        return _double(u, s, _add_states, A)
    steps, size = u.shape[1], min(STATE_CHUNK, u.shape[1])
    chunks = F.pad(u, (0, 0, 0, -steps % size)).unflatten(1, (-1, size))  # (B, J, C, N)
    powers = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)[None]
    top = A  # A^len(powers)
    while len(powers) < size:
        powers, top = torch.cat([powers, powers @ top]), top @ top
    powers = powers[:size]
    ages = torch.arange(size, device=u.device)
    age = ages[:, None] - ages
    decay = powers[age.clamp(min=0)] * (age >= 0)[..., None, None]  # (C, C, N, N)
    matrix = decay.permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
    inner = F.linear(chunks.flatten(2), matrix).unflatten(2, (size, -1))
    step = powers[-1] @ A
    ends = _double(inner[:, :, -1], s, _add_states, step)
    before = torch.cat([s[:, None], ends[:, :-1]], dim=1)
    carried = F.linear(before, (powers @ A).flatten(0, 1)).unflatten(2, (size, -1))
    return (inner + carried).flatten(1, 2)[:, :steps]


def _double(
    x: Tensor, first: Tensor, add: Callable[[Tensor, Tensor, Tensor], Tensor], power: Tensor
) -> Tensor:
    """Return all y_j of `y_j = P y_(j-1) + x_j` for x (B, J, ...) from y = first: log2(J) rounds.

    `add(x, y, P)` is x + P y; powers of P are as `power @ power` for a matrix, else elementwise.
    """
    out = torch.cat([add(x[:, :1], first[:, None], power), x[:, 1:]], dim=1)
    span = 1
    while span < x.shape[1]:
        out = torch.cat([out[:, :span], add(out[:, span:], out[:, :-span], power)], dim=1)
        span, power = 2 * span, power @ power if power.ndim == 2 else power * power
    return out


def _add_states(x: Tensor, y: Tensor, power: Tensor) -> Tensor:
    return x + F.linear(y, power)


def _forward(
    x: Tensor, u: Tensor, w: Tensor, A: Tensor, D: Tensor, h: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h_BTD = scan_channels((1 - w) * x, w, h)
    s_BTN = scan_states(u, A, s)
    return D * h_BTD, s_BTN, h_BTD[:, -1], s_BTN[:, -1]


def _backward(
    saved: tuple[Tensor, ...], grad_y: Tensor, grad_s: Tensor, grad_h: Tensor, grad_end: Tensor
) -> tuple[Tensor, ...]:
    """The adjoint recurrences, which run from the last step to the first (docs/math.md)."""
    x, w, A, D, h, s, _ = saved
    h_BTD = scan_channels((1 - w) * x, w, h)
    before = torch.cat([h[:, None], h_BTD[:, :-1]], dim=1)
    source = D * grad_y
    source = torch.cat([source[:, :-1], source[:, -1:] + grad_h[:, None]], dim=1)
    lam = scan_channels(source.flip(1), w, torch.zeros_like(h)).flip(1)
    source = torch.cat([grad_s[:, :-1], grad_s[:, -1:] + grad_end[:, None]], dim=1)
    sigma = scan_states(source.flip(1), A.t(), torch.zeros_like(s)).flip(1)
    grad_w = (lam * (before - x)).sum((0, 1))
    grad_D = (grad_y * h_BTD).sum((0, 1))
    return (1 - w) * lam, sigma, grad_w, grad_D, w * lam[:, 0], F.linear(sigma[:, 0], A.t())


def _exact(x: Tensor) -> AbstractContextManager:
    """Keep products in their operands' type, also under autocast."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if _is_autocast(device) else nullcontext()


def _is_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class _Recurrence(torch.autograd.Function):
    """Both recurrences over time, with a backward that costs two more scans."""

    @staticmethod
    def forward(ctx, x, u, w, A, D, h, s):  # type: ignore[no-untyped-def]
        ctx.compiled = _fits_kernel(x, u, w, A, D, h, s)
        run: Any = recurrence_forward_kernel if ctx.compiled else _forward
        with _exact(x):  # sums over all time stay float32
            y, s_BTN, h_end, s_end = run(x, u, w, A, D, h, s)
        ctx.save_for_backward(x, w, A, D, h, s, s_BTN)
        return y, s_BTN, h_end, s_end

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y, grad_s, grad_h, grad_end):  # type: ignore[no-untyped-def]
        *_, s, s_BTN = saved = ctx.saved_tensors
        run: Any = recurrence_backward_kernel if ctx.compiled else _backward
        with _exact(s):
            grad_x, grad_u, grad_w, grad_D, grad_h0, grad_s0 = run(
                saved, grad_y, grad_s, grad_h, grad_end
            )
            before = torch.cat([s[:, None], s_BTN[:, :-1]], dim=1)
            grad_A = grad_u.flatten(0, 1).t() @ before.flatten(0, 1)
        return grad_x, grad_u, grad_w, grad_A, grad_D, grad_h0, grad_s0


def _fits_kernel(*tensors: Tensor) -> bool:
    return recurrence_forward_kernel is not None and _fits_cpu(*tensors)


def is_followed() -> bool:
    """Say whether something looks on at torch's operations, which calls of C pass by."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0  # fake tensors, make_fx
        or torch._C._functorch.peek_interpreter_stack() is not None  # vmap, grad
    )


def _fits_cpu(*tensors: Tensor) -> bool:
    plain = all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    fits = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return plain and fits and not is_followed()


def recurrence(
    x: Tensor, u: Tensor, w: Tensor, A: Tensor, D: Tensor, h: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the two time-invariant recurrences of a layer over a stretch of time.

    h_t = w * h_(t-1) + (1 - w) * x_t and s_t = A s_(t-1) + u_t, from h (B, D) and s (B, N).

    x (B, T, D), u = x B^T (B, T, N), w (D), A (N, N), D (D). Returns D * h_t (B, T, D), s_t
    (B, T, N), and the last h (B, D) and s (B, N), from which the next stretch goes on.
    """
    if x.shape[1] == 1:  # decoding: one step, no scan
        h = w * h + (1 - w) * x[:, 0]
        s = F.linear(s, A) + u[:, 0]
        return (D * h)[:, None], s[:, None], h, s
    if torch.is_grad_enabled():
        return _Recurrence.apply(x, u, w, A, D, h, s)
    if _fits_kernel(x, u, w, A, D, h, s):
        assert recurrence_forward_kernel is not None
        return recurrence_forward_kernel(x, u, w, A, D, h, s)
    with _exact(x):
        return _forward(x, u, w, A, D, h, s)


class _CausalAttention(torch.autograd.Function):
    """Causal attention by blocks of queries; the backward pass recomputes the probabilities.

    On a CPU the batched products are 2 to 5 times faster than torch's flash kernel backward
    (docs/performance.md), and skip the keys after each block.
    """

    @staticmethod
    def forward(ctx, q, k, v, block):  # type: ignore[no-untyped-def]
        out = torch.empty_like(q)
        for rows, probs in _probabilities(q, k, block):
            out[:, rows] = probs.to(v.dtype) @ v[:, : rows.stop]
        ctx.save_for_backward(q, k, v)
        ctx.block = block
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(t, dtype=torch.float32) for t in (k, v))
        for rows, probs in _probabilities(q, k, ctx.block):
            seen = slice(0, rows.stop)
            grad_v[:, seen] += probs.to(v.dtype).mT @ grad[:, rows]
            inner = (grad[:, rows] @ v[:, seen].mT).to(probs.dtype)
            inner = torch._softmax_backward_data(inner, probs, -1, probs.dtype)
            inner = inner.mul_(scale).to(q.dtype)
            grad_q[:, rows] = inner @ k[:, seen]
            grad_k[:, seen] += inner.mT @ q[:, rows]
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


def _probabilities(q: Tensor, k: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield each block of queries' rows and attention probabilities, at least float32."""
    future = q.new_full((block, block), -torch.inf, dtype=torch.float32).triu_(1)
    for begin in range(0, q.shape[1], block):
        end = min(begin + block, q.shape[1])
        scores = q[:, begin:end] @ k[:, :end].mT
        scores = (scores.float() if scores.dtype == torch.bfloat16 else scores) * (
            q.shape[-1] ** -0.5
        )
        scores[:, :, begin:end] += future[: end - begin, : end - begin]
        yield slice(begin, end), torch.softmax(scores, -1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, block: int = 64) -> Tensor:
    """Scaled dot-product attention of equally long q, k, v (B, H, T, K), each seeing its past."""
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    flat = (t.flatten(0, 1) for t in (q, k, v))
    return _CausalAttention.apply(*flat, block).unflatten(0, q.shape[:2])


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention probabilities (B, H, T, T_all) of q (B, H, T, K), k (B, H, T_all, K).

    mask: boolean (True: may attend) or additive. None: each of the first T positions sees its past,
    or the one new position sees all.
    """
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is None:
        steps, keys = scores.shape[-2:]
        mask = scores.new_ones(steps, keys, dtype=torch.bool).tril(keys - 1 if steps == 1 else 0)
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return (scores + mask).softmax(-1)


class _Embedding(torch.autograd.Function):
    """Rows of a table, whose gradient goes into `table.grad` at once."""

    @staticmethod
    def forward(ctx, table, rows):  # type: ignore[no-untyped-def]
        ctx.table, ctx.rows = table, rows
        return F.embedding(rows, table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if ctx.table.grad is None:
            ctx.table.grad = torch.zeros_like(ctx.table)
        ctx.table.grad.index_add_(0, ctx.rows.flatten(), grad.flatten(0, -2))
        return None, None


def embedding(table: Tensor, rows: Tensor) -> Tensor:
    """Return table[rows]: table (V, D), rows (...) int64 -> (..., D).

    `backward` adds to `table.grad` in place, where torch would make a gradient of the table's size
    for each microbatch; `torch.autograd.grad` therefore does not see it.
    """
    return _Embedding.apply(table, rows)


class _Recompute(torch.autograd.Function):
    """Gradient checkpointing of `y = function(x)`: keeps x alone and runs the function again."""

    @staticmethod
    def forward(ctx, x, function, hold):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.function, ctx.hold = function, hold
        ctx.autocast = _is_autocast(x.device.type)
        return function(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x = ctx.saved_tensors[0].detach().requires_grad_()
        low = torch.autocast(x.device.type, torch.bfloat16) if ctx.autocast else nullcontext()
        with ctx.hold():
            with torch.enable_grad(), low:
                y = ctx.function(x)
            torch.autograd.backward(y, grad)
        return x.grad, None, None


def recompute(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    hold: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Return `function(x)`, keeping only x for the backward pass (Chen et al., arXiv 1604.06174).

    The function must be deterministic; on the way back it runs within `hold()`. Unlike
    `torch.utils.checkpoint` this does not import the compiler, 70 MB.
    """
    return _Recompute.apply(x, function, hold)


def _cross_entropy(
    logits: Tensor, bias: Tensor, targets: Tensor, backward: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of logits (M, V) + bias, and the bias's gradient.

    With `backward` the logits are replaced by their gradient.
    """
    scores = logits.float() + bias
    wanted = targets[:, None]
    log_sum = torch.logsumexp(scores, dim=-1, keepdim=True)
    loss = (log_sum - scores.gather(1, wanted)).sum()
    if not backward:
        return loss, None
    scores.sub_(log_sum).exp_()  # probabilities
    scores.scatter_add_(1, wanted, torch.full_like(log_sum, -1.0))
    logits.copy_(scores)
    return loss, scores.sum(0)


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of a LoRPt head, a block of tokens at a time.

    The gradients are formed on the way forward, so logits (tokens, V) never exist as a whole.
    """

    @staticmethod
    def forward(ctx, hidden, A, B, bias, targets, block, train):  # type: ignore[no-untyped-def]
        needs = train and any(ctx.needs_input_grad)
        device = hidden.device.type
        low = torch.get_autocast_dtype(device) if _is_autocast(device) else A.dtype
        fits = _fits_cpu(A, bias) and low in (torch.float32, torch.bfloat16)
        if head_kernel is not None and fits and low == torch.bfloat16:
            found = head_kernel(hidden, A, B, bias, targets, needs)
            if found is not None:
                ctx.save_for_backward(*found[1] or ())
                return found[0]
        total = hidden.new_zeros((), dtype=torch.float32)
        grads = [torch.zeros_like(t) for t in (hidden, A, B, bias)] if needs else None
        A_low, B_low = A.to(low), B.to(low)
        cross_entropy: Any = cross_entropy_kernel if fits else None
        for begin in range(0, hidden.shape[0], block):
            rows = slice(begin, begin + block)
            x = hidden[rows].to(low)
            middle = F.linear(x, B_low)
            logits = F.linear(middle, A_low)
            loss, grad_bias = (cross_entropy or _cross_entropy)(logits, bias, targets[rows], needs)
            total += loss
            if grads is None:
                continue
            assert grad_bias is not None
            grads[3] += grad_bias
            grads[1] += logits.t() @ middle  # they are their gradient now
            grad = logits @ A_low
            grads[2] += grad.t() @ x
            grads[0][rows] = grad @ B_low
        if grads is not None:
            ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total):  # type: ignore[no-untyped-def]
        return *(grad * grad_total for grad in ctx.saved_tensors), None, None, None


def head_loss(
    hidden: Tensor, A: Tensor, B: Tensor, bias: Tensor, targets: Tensor, block: int | None = None
) -> Tensor:
    """Return the cross-entropy, in nats, summed over all tokens.

    hidden (tokens, D), A (V, R), B (R, D), bias (V), targets (tokens) int64. `block` tokens have
    their logits at once: 256 on a CPU, where they stay in the cache, 8,192 elsewhere.
    """
    block = block or (256 if hidden.device.type == "cpu" else 8192)
    # Asked here: within `forward` it is never on, and what needs a gradient is said all the same.
    return _HeadLoss.apply(hidden, A, B, bias, targets, block, torch.is_grad_enabled())
