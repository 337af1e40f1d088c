"""A layer's training pass on a CPU: torch's products, compiled passes between them.

Where the processor multiplies bfloat16 and the sizes fit, `whole_layer` does the same in one call.

The same function as `I3Layer.forward` without a mask or a state, with a backward pass of its own:
it keeps half of what autograd would and writes no tensor twice. Products run in `low`, bfloat16
under autocast and float32 else; the residual stream, the norms' statistics, the recurrences and
all sums are float32.

Shapes: M = B * T tokens, D hidden size, N states, R rank, F feed-forward size.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3lm.model import kernels, layers_i3, ops_i3, whole_head, whole_layer
from i3lm.model.fused_attention import attend, attend_backward
from i3lm.model.room import empty
from i3lm.model.stored import held, stored_in
from i3lm.native import tensor_library


class Parts(NamedTuple):
    """The tensors of a layer, or their gradients. `w` and `A` are those the recurrence runs on."""

    gain1: Tensor
    shift1: Tensor
    w: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    gain2: Tensor
    shift2: Tensor
    down: Tensor  # (3 R, D): queries, keys, values
    down_bias: Tensor
    q_up: Tensor
    q_bias: Tensor
    k_up: Tensor
    k_bias: Tensor
    v_up: Tensor
    v_bias: Tensor
    out: Tensor
    out_bias: Tensor
    gain3: Tensor
    shift3: Tensor
    up_A: Tensor
    up_B: Tensor
    up_bias: Tensor
    down_A: Tensor
    down_B: Tensor
    ffn_bias: Tensor


class Factors(NamedTuple):
    """The matrices of `Parts` in the products' type."""

    B: Tensor
    C: Tensor
    down: Tensor
    q_up: Tensor
    k_up: Tensor
    v_up: Tensor
    out: Tensor
    up_A: Tensor
    up_B: Tensor
    down_A: Tensor
    down_B: Tensor


class Kept(NamedTuple):
    """What the way back needs: the residual stream before each norm, and what was multiplied.

    `whole_layer` keeps hat2 and hat3 instead of x2 and x3.
    """

    x1: Tensor  # (M, D) float32, as x2 and x3
    stats1: Tensor  # (M, 2): mean and 1 / deviation
    n1: Tensor  # (M, D) low
    states: Tensor  # (B, T, N) float32
    x2: Tensor
    stats2: Tensor
    hat2: Tensor  # (M, D) low: x2 normalised, before gain and bias
    middle: Tensor  # (M, 3 R) low
    q: Tensor  # (M, D) low, before its bias, as k, v; `attended` is the attention's output
    k: Tensor
    v: Tensor
    attention: Tensor
    attended: Tensor
    x3: Tensor
    stats3: Tensor
    hat3: Tensor  # as hat2
    up_middle: Tensor  # (M, R) low
    inner: Tensor  # (M, F) low, before bias and GELU
    down_middle: Tensor  # (M, R) low


class _FusedLayer(torch.autograd.Function):
    """x (B, T, D) and the layer's `Parts` to the layer's output."""

    @staticmethod
    def forward(ctx, x_BTD, heads, eps, low, again, keep, *parameters):  # type: ignore[no-untyped-def]
        p = Parts(*parameters)
        f, out = None, empty(x_BTD.shape)
        if whole := whole_layer.fits(p, x_BTD.shape, heads, low):
            kept = Kept(x1=x_BTD.flatten(0, 1), **whole_layer.room(p, x_BTD.shape, heads))
            whole_layer.forward(p, kept, eps, out)
        else:
            f = _factors(p, low)
            kept, written = _run(p, f, x_BTD, heads, eps, low)
            kernels.add(kept.x3, written, out)
        if again != "none":
            nothing = x_BTD.new_empty(0)
            left_out = Kept._fields[1:] if again == "full" else whole_layer.WIDE
            kept = kept._replace(**dict.fromkeys(left_out, nothing))
        ctx.save_for_backward(*kept, *parameters)
        ctx.heads, ctx.eps, ctx.shape = heads, eps, x_BTD.shape
        ctx.low, ctx.again, ctx.factors = low, again, f if keep else None
        ctx.whole = whole
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BTD):  # type: ignore[no-untyped-def]
        saved = ctx.saved_tensors
        kept, p = Kept(*saved[: len(Kept._fields)]), Parts(*saved[len(Kept._fields) :])
        with held(p):
            return (_whole_backward if ctx.whole else _backward)(ctx, kept, p, grad_BTD)


def _whole_backward(ctx: Any, kept: Kept, p: Parts, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
    grads = whole_layer.gradients(p)  # which stay, so they come before what is freed again
    if ctx.again == "full":
        kept = kept._replace(**whole_layer.room(p, ctx.shape, ctx.heads))
        whole_layer.forward(p, kept, ctx.eps, None)
    grad = grad_BTD.contiguous().flatten(0, 1)
    grad = whole_layer.backward(p, kept, ctx.eps, grad, grads)
    gradients = (_gradient(*pair) for pair in zip(p, grads, strict=True))
    return grad.view(ctx.shape), None, None, None, None, None, *gradients


def _backward(ctx: Any, kept: Kept, p: Parts, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
    f = ctx.factors or _factors(p, ctx.low)
    if ctx.again == "full":
        kept, _ = _run(p, f, kept.x1.view(ctx.shape), ctx.heads, ctx.eps, ctx.low)
    elif ctx.again == "selective":
        kept = _widened(kept, p, f, ctx.eps)
    grad = grad_BTD.contiguous().flatten(0, 1)
    g: dict[str, Tensor] = {}
    grad, grad_low, n = _ffn_backward(kept, p, f, grad, ctx.eps, g)
    grad, grad_low = _attention_backward(kept, p, f, grad, grad_low, n, ctx.heads, ctx.eps, g)
    grad = _recurrence_backward(kept, p, f, grad, grad_low, ctx.shape, ctx.eps, g)
    gradients = (_gradient(getattr(p, name), g[name]) for name in Parts._fields)
    return grad.view(ctx.shape), None, None, None, None, None, *gradients


def _gradient(parameter: Tensor, gradient: Tensor) -> Tensor | None:
    """Return a gradient for autograd to add up; that of a stored parameter is added here.

    autograd lays gradients out as their parameter, which is empty by then.
    """
    if stored_in(parameter) is None:
        return gradient.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype)
    else:
        parameter.grad += gradient
    return None


def _factors(p: Parts, low: torch.dtype) -> Factors:
    return Factors(*kernels.narrow([getattr(p, name) for name in Factors._fields], low))


def _run(
    p: Parts, f: Factors, x_BTD: Tensor, heads: int, eps: float, low: torch.dtype
) -> tuple[Kept, tuple[Tensor, Tensor]]:
    """Return what a pass forward keeps, and what the feed-forward branch writes beside its bias."""
    batch, steps, width = x_BTD.shape
    x1 = x_BTD.flatten(0, 1)

    _, n1, stats1 = kernels.norm_forward(x1, None, (p.gain1, p.shift1, eps), low)
    u = (n1 @ f.B.t()).float().view(batch, steps, -1)
    states = kernels.scan_states(u, p.A.t().contiguous(), u.new_zeros(batch, u.shape[2]))
    zeros = x1.new_zeros(batch, width)
    mixed, _ = kernels.ema_forward(n1.view(x_BTD.shape), p.w, p.D, x_BTD, zeros)
    written = states.to(low).flatten(0, 1) @ f.C.t(), torch.zeros_like(p.D)

    norm = (p.gain2, p.shift2, eps)
    x2, n2, stats2 = kernels.norm_forward(mixed.flatten(0, 1), written, norm, low)
    middle = F.linear(n2, f.down, p.down_bias.to(low))
    ups = zip((f.q_up, f.k_up, f.v_up), middle.chunk(3, 1), strict=True)
    q, k, v = (part @ up.t() for up, part in ups)
    attended, attention = attend(q, k, v, (p.q_bias, p.v_bias), batch, heads)
    written = attended @ f.out.t(), p.out_bias

    norm = (p.gain3, p.shift3, eps)
    x3, n3, stats3 = kernels.norm_forward(x2, written, norm, low)
    up_middle = n3 @ f.up_B.t()
    inner = up_middle @ f.up_A.t()
    down_middle = kernels.gelu(inner, p.up_bias) @ f.down_B.t()
    written = down_middle @ f.down_A.t(), p.ffn_bias

    none = x1.new_empty(0)
    kept = Kept(
        x1, stats1, n1, states, x2, stats2, none, middle, q, k, v, attention, attended,
        x3, stats3, none, up_middle, inner, down_middle,
    )  # fmt: skip
    return kept, written


def _widened(kept: Kept, p: Parts, f: Factors, eps: float) -> Kept:
    """Return `kept` with what selective checkpointing left out: wide, and cheap to compute.

    Half of a layer's activations come from the rank-R middles by one product each, 5 % of a step.
    """
    norm = (p.gain1, p.shift1, eps)
    _, n1, _ = kernels.norm_forward(kept.x1, None, norm, f.B.dtype)
    ups = zip((f.q_up, f.k_up, f.v_up), kept.middle.chunk(3, 1), strict=True)
    q, k, v = (part @ up.t() for up, part in ups)
    return kept._replace(n1=n1, q=q, k=k, v=v, inner=kept.up_middle @ f.up_A.t())


def _ffn_backward(
    kept: Kept, p: Parts, f: Factors, grad: Tensor, eps: float, g: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x3, the same in `low`, and room for a norm's output."""
    grad_low = grad.to(f.down_A.dtype)
    g["ffn_bias"], g["down_A"] = kernels.column_sums(grad_low), grad_low.t() @ kept.down_middle
    d_middle = grad_low @ f.down_A
    d_inner = d_middle @ f.down_B
    activation, g["up_bias"] = kernels.gelu_backward(kept.inner, p.up_bias, d_inner)
    g["down_B"], g["up_A"] = d_middle.t() @ activation, d_inner.t() @ kept.up_middle
    d_middle = d_inner @ f.up_A
    d_n, n = d_middle @ f.up_B, torch.empty_like(grad_low)
    norm = (p.gain3, p.shift3, eps)
    grad, grad_low, sums = kernels.norm_backward(kept.x3, kept.stats3, norm, (d_n, None), grad, n)
    g["gain3"], g["shift3"], g["out_bias"] = sums
    g["up_B"] = d_middle.t() @ n
    return grad, grad_low, n


def _attention_backward(
    kept: Kept,
    p: Parts,
    f: Factors,
    grad: Tensor,
    grad_low: Tensor,
    n: Tensor,
    heads: int,
    eps: float,
    g: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the gradient of x2 and the same in low precision."""
    batch = kept.states.shape[0]
    g["out"] = grad_low.t() @ kept.attended
    d_out = grad_low @ f.out
    grads = attend_backward(kept.q, kept.k, kept.v, p.q_bias, kept.attention, d_out, batch, heads)
    d_middle = torch.empty_like(kept.middle)
    parts = zip("qkv", grads, kept.middle.chunk(3, 1), d_middle.chunk(3, 1), strict=True)
    for name, d_rows, middle, d_part in parts:
        g[f"{name}_up"] = d_rows.t() @ middle
        d_part.copy_(d_rows @ getattr(f, f"{name}_up"))
    g["q_bias"], g["v_bias"] = kernels.column_sums(grads[0]), kernels.column_sums(d_out)
    g["k_bias"] = torch.zeros_like(p.k_bias)
    d_n, norm = d_middle @ f.down, (p.gain2, p.shift2, eps)
    grad, grad_low, sums = kernels.norm_backward(kept.x2, kept.stats2, norm, (d_n, None), grad, n)
    g["gain2"], g["shift2"], _ = sums
    g["down"], g["down_bias"] = d_middle.t() @ n, kernels.column_sums(d_middle)
    return grad, grad_low


def _recurrence_backward(
    kept: Kept,
    p: Parts,
    f: Factors,
    grad: Tensor,
    grad_low: Tensor,
    shape: torch.Size,
    eps: float,
    g: dict[str, Tensor],
) -> Tensor:
    """Return the gradient of x1; the adjoints run from the last step to the first."""
    low, states = grad_low.dtype, kept.states
    g["C"] = grad_low.t() @ states.to(low).flatten(0, 1)
    d_states = (grad_low @ f.C).float().view(states.shape)
    start = torch.zeros_like(states[:, 0])
    adjoint = kernels.scan_states(d_states, p.A.contiguous(), start, reverse=True)
    before = F.pad(states[:, :-1], (0, 0, 1, 0))
    g["A"] = adjoint.flatten(0, 1).t() @ before.flatten(0, 1)
    d_u = adjoint.to(low).flatten(0, 1)
    g["B"] = d_u.t() @ kept.n1
    zeros = grad.new_zeros(shape[0], shape[2])
    d_n1, g["w"], g["D"], _ = kernels.ema_backward(
        grad.view(shape), kept.n1.view(shape), p.w, p.D, zeros, zeros
    )
    parts, norm = (d_n1.flatten(0, 1), d_u @ f.B), (p.gain1, p.shift1, eps)
    grad, _, sums = kernels.norm_backward(kept.x1, kept.stats1, norm, parts, grad, None)
    g["gain1"], g["shift1"], _ = sums
    return grad


def parameters_of(layer: Any) -> list[Tensor]:
    """Return the parameters of an `I3Layer` in the order of `Parts`: w_mix where that has w."""
    recurrence, attention, ffn = layer.recurrence, layer.attention, layer.ffn
    maps = (attention.qkv_down, attention.q_up, attention.k_up, attention.v_up, attention.o_proj)
    return [
        *_pair(layer.recurrence_norm),
        *(recurrence.w_mix, recurrence.A, recurrence.B, recurrence.C, recurrence.D),
        *_pair(layer.attention_norm),
        *(tensor for module in maps for tensor in _pair(module)),
        *_pair(layer.ffn_norm),
        *(ffn.up.A, ffn.up.B, ffn.up.bias),
        *(ffn.down.A, ffn.down.B, ffn.down.bias),
    ]


def parts_of(layer: Any) -> Parts:
    """Return the tensors of an `I3Layer`."""
    parts = Parts(*parameters_of(layer))
    return parts._replace(w=torch.sigmoid(parts.w), A=ops_i3.stable_transition(parts.A))


def _pair(module: nn.Module) -> tuple[Any, Any]:
    return module.weight, module.bias


def is_plain(layer: nn.Module) -> bool:
    """Say whether every part is one of ours, without hooks: an adapter's part must be called.

    The layer's own hooks are called in any case: around its forward, which is asked here.
    """
    ours = (
        *(layers_i3.Recurrence, layers_i3.Attention, layers_i3.FeedForward),
        *(layers_i3.LoRPtLinear, layers_i3.Projection, nn.LayerNorm),
    )
    parts = list(layer.modules())[1:]
    return all(type(part) in ours and not is_watched(part) for part in parts)


def is_watched(module: nn.Module) -> bool:
    """Say whether something asked to be told of a module's passes, or has taken its place."""
    forward = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def fused_layer(layer: Any, x: Tensor) -> Tensor | None:
    """Return the output of an `I3Layer` for x (B, T, D), or None where the passes do not fit."""
    if x.device.type != "cpu" or ops_i3.is_followed():
        return None
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if low not in kernels.NAMES or not is_plain(layer):
        return None
    parts = parts_of(layer)
    if x.dtype != torch.float32 or any(t.dtype != torch.float32 for t in parts):
        return None
    heads, eps = layer.attention.num_heads, layer.recurrence_norm.eps
    again = layer.checkpointing
    keep = again == "none" and not layer.sharded  # factors are whole weights, though narrow
    return _FusedLayer.apply(x.contiguous(), heads, eps, low, again, keep, *parts)


def install() -> bool:
    """Use the compiled passes where there are any; say whether they are in use."""
    if tensor_library() is None:
        return False
    ops_i3.recurrence_forward_kernel = kernels.recurrence_forward
    ops_i3.recurrence_backward_kernel = kernels.recurrence_backward
    ops_i3.cross_entropy_kernel = kernels.cross_entropy
    ops_i3.head_kernel = whole_head.head_loss
    ops_i3.transition_scale_kernel = kernels.transition_scale
    ops_i3.fused_layer = fused_layer
    return True
