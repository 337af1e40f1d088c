"""A layer's training pass on a CPU: torch's products, compiled passes between them.

The same function as `I3Layer.forward` without a mask or a state, with a backward pass of its own: it keeps
half of what autograd would and writes no tensor twice. Products run in `low`, bfloat16 under autocast and
float32 else; the residual stream, norms' statistics, recurrences and sums are float32.

Shapes: M = B * T tokens, D hidden size, N states, R rank, F feed-forward size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3lm.model import kernels, layers_i3, ops_i3
from i3lm.model.fused_attention import attend, attend_backward
from i3lm.native import tensor_library


class _FusedLayer(torch.autograd.Function):
    """x and the layer's parameters, in the order of `_arguments`, to the layer's output."""

    @staticmethod
    def forward(ctx, x_BTD, heads, eps, low, *parameters):  # type: ignore[no-untyped-def]
        (g1, b1, w, A, B, C, D, g2, b2, Wd, bd, Wq, bq, Wk, bk, Wv, bv, Wo, bo,
         g3, b3, UA, UB, ub, DA, DB, db) = parameters  # fmt: skip
        batch, steps, width = x_BTD.shape
        x1 = x_BTD.flatten(0, 1)

        _, n1, stats1 = kernels.norm_forward(x1, None, (g1, b1, eps), low)
        u = (n1 @ B.to(low).t()).float().view(batch, steps, -1)
        s = kernels.scan_states(u, A.t().contiguous(), u.new_zeros(batch, A.shape[0]))
        s_low = s.to(low).flatten(0, 1)
        mixed, _ = kernels.ema_forward(
            n1.view(x_BTD.shape), w, D, x_BTD, x1.new_zeros(batch, width)
        )
        written = s_low @ C.to(low).t()

        x2, n2, stats2 = kernels.norm_forward(mixed.flatten(0, 1), written, (g2, b2, eps), low)
        middle = F.linear(n2, Wd.to(low), bd.to(low))  # (M, 3 R)
        q, k, v = (
            F.linear(part, W.to(low), b.to(low))
            for part, W, b in zip(middle.chunk(3, 1), (Wq, Wk, Wv), (bq, bk, bv), strict=True)
        )
        y, kept = attend(q, k, v, batch, heads)
        written = F.linear(y, Wo.to(low), bo.to(low))

        x3, n3, stats3 = kernels.norm_forward(x2, written, (g3, b3, eps), low)
        ffn_middle = n3 @ UB.to(low).t()  # (M, R)
        inner = F.linear(ffn_middle, UA.to(low), ub.to(low))  # (M, F)
        low_out = kernels.gelu(inner) @ DB.to(low).t()
        written = F.linear(low_out, DA.to(low), db.to(low))

        ctx.save_for_backward(
            x1, stats1, n1, s, x2, stats2, middle, q, k, v, kept, y, x3, stats3, ffn_middle,
            inner, low_out, *parameters,
        )  # fmt: skip
        ctx.heads, ctx.eps, ctx.shape, ctx.low = heads, eps, x_BTD.shape, low
        return kernels.add(x3, written).view(x_BTD.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BTD):  # type: ignore[no-untyped-def]
        (x1, stats1, n1, s, x2, stats2, middle, q, k, v, kept, y, x3, stats3, ffn_middle, inner, low_out,
         g1, b1, w, A, B, C, D, g2, b2, Wd, bd, Wq, bq, Wk, bk, Wv, bv, Wo, bo,
         g3, b3, UA, UB, ub, DA, DB, db) = ctx.saved_tensors  # fmt: skip
        batch, steps, width = ctx.shape
        low, eps = ctx.low, ctx.eps
        grad = grad_BTD.contiguous().flatten(0, 1)
        grad_low = grad.to(low)

        grad_db, grad_DA = kernels.column_sums(grad_low), grad_low.t() @ low_out
        d_low_out = grad_low @ DA.to(low)
        d_inner = d_low_out @ DB.to(low)
        activation, grad_ub = kernels.gelu_backward(inner, d_inner)
        grad_DB, grad_UA = d_low_out.t() @ activation, d_inner.t() @ ffn_middle
        d_middle = d_inner @ UA.to(low)
        n = torch.empty_like(n1)
        grad, grad_low, (grad_g3, grad_b3, grad_bo) = kernels.norm_backward(
            x3, stats3, (g3, b3, eps), (d_middle @ UB.to(low), None), grad, n
        )
        grad_UB = d_middle.t() @ n

        grad_Wo = grad_low.t() @ y
        d_y = grad_low @ Wo.to(low)
        d_qkv = attend_backward(q, k, v, kept, d_y, batch, ctx.heads)
        d_middle = torch.empty_like(middle)
        grads_up = []
        parts, d_parts = middle.chunk(3, 1), d_middle.chunk(3, 1)
        for d_rows, W, part, d_part in zip(d_qkv, (Wq, Wk, Wv), parts, d_parts, strict=True):
            grads_up += [d_rows.t() @ part, kernels.column_sums(d_rows)]
            d_part.copy_(d_rows @ W.to(low))
        grad, grad_low, (grad_g2, grad_b2, _) = kernels.norm_backward(
            x2, stats2, (g2, b2, eps), (d_middle @ Wd.to(low), None), grad, n
        )
        grad_Wd, grad_bd = d_middle.t() @ n, kernels.column_sums(d_middle)

        s_low = s.to(low).flatten(0, 1)
        grad_C = grad_low.t() @ s_low
        d_s = (grad_low @ C.to(low)).float().view(s.shape)
        sigma = kernels.scan_states(d_s, A.contiguous(), s.new_zeros(batch, s.shape[2]), True)
        before = F.pad(s[:, :-1], (0, 0, 1, 0))
        grad_A = sigma.flatten(0, 1).t() @ before.flatten(0, 1)
        d_u = sigma.to(low).flatten(0, 1)
        grad_B = d_u.t() @ n1
        zeros = grad.new_zeros(batch, width)
        d_n1, grad_w, grad_D, _ = kernels.ema_backward(
            grad.view(ctx.shape), n1.view(ctx.shape), w, D, zeros, zeros
        )
        grad, _, (grad_g1, grad_b1, _) = kernels.norm_backward(
            x1, stats1, (g1, b1, eps), (d_n1.flatten(0, 1), d_u @ B.to(low)), grad, None
        )
        return (
            grad.view(ctx.shape), None, None, None,
            grad_g1, grad_b1, grad_w, grad_A, grad_B.float(), grad_C.float(), grad_D,
            grad_g2, grad_b2, grad_Wd.float(), grad_bd, *(g.float() for g in grads_up),
            grad_Wo.float(), grad_bo, grad_g3, grad_b3, grad_UA.float(), grad_UB.float(), grad_ub,
            grad_DA.float(), grad_DB.float(), grad_db,
        )  # fmt: skip


def _arguments(layer: Any) -> tuple[Tensor, ...]:
    """The tensors of an `I3Layer` in the order of the passes."""
    recurrence, attention, ffn = layer.recurrence, layer.attention, layer.ffn
    return (
        *_pair(layer.recurrence_norm),
        torch.sigmoid(recurrence.w_mix),
        ops_i3.stable_transition(recurrence.A),
        recurrence.B,
        recurrence.C,
        recurrence.D,
        *_pair(layer.attention_norm),
        *_pair(attention.qkv_down),
        *_pair(attention.q_up),
        *_pair(attention.k_up),
        *_pair(attention.v_up),
        *_pair(attention.o_proj),
        *_pair(layer.ffn_norm),
        *(ffn.up.A, ffn.up.B, ffn.up.bias),
        *(ffn.down.A, ffn.down.B, ffn.down.bias),
    )


def _pair(module: nn.Module) -> tuple[Tensor, Tensor]:
    return module.weight, module.bias  # type: ignore[return-value]


def _is_plain(layer: nn.Module) -> bool:
    """Say whether every part is one of ours, without hooks: an adapter's part must be called."""
    ours = (layers_i3.LoRPtLinear, layers_i3.Projection, nn.LayerNorm)
    for module in layer.modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return False
        if not any(module.children()) and type(module) not in (*ours, layers_i3.Recurrence):
            return False
    return True


def fused_layer(layer: Any, x: Tensor) -> Tensor | None:
    """Return the output of an `I3Layer` for x (B, T, D), or None where the passes do not fit."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if low not in kernels.NAMES or not _is_plain(layer):
        return None
    arguments = _arguments(layer)
    if x.dtype != torch.float32 or any(t.dtype != torch.float32 for t in arguments):
        return None
    heads, eps = layer.attention.num_heads, layer.recurrence_norm.eps
    return _FusedLayer.apply(x.contiguous(), heads, eps, low, *arguments)


def install() -> bool:
    """Use the compiled passes where there are any; say whether they are in use."""
    if tensor_library() is None:
        return False
    ops_i3.recurrence_forward_kernel = kernels.recurrence_forward
    ops_i3.recurrence_backward_kernel = kernels.recurrence_backward
    ops_i3.cross_entropy_kernel = kernels.cross_entropy
    ops_i3.fused_layer = fused_layer
    return True
