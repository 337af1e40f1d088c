"""The i3 network written down from its equations, slowly, in float64: the truth for all tests."""

import math

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def bounded(A: Tensor) -> Tensor:
    """A over max(1, |A^64|_F^(1/64)); the divisor is a constant for gradients."""
    bound = torch.linalg.matrix_norm(torch.linalg.matrix_power(A.detach(), 64)) ** (1 / 64)
    return A / max(1.0, float(bound))


def recurrence(x, u, w, A, D, h, s):
    """Both recurrences, a step at a time; arguments and results as `ops_i3.recurrence`."""
    ys, states = [], []
    for t in range(x.shape[1]):
        h = w * h + (1 - w) * x[:, t]
        s = s @ A.T + u[:, t]
        ys.append(D * h)
        states.append(s)
    return torch.stack(ys, 1), torch.stack(states, 1), h, s


def attention(x: Tensor, p: dict[str, Tensor], heads: int) -> Tensor:
    batch, steps, width = x.shape
    down = x @ p["qkv_down.weight"].T + p["qkv_down.bias"]
    rank = down.shape[-1] // 3
    size = width // heads
    projected = []
    for i, name in enumerate(("q_up", "k_up", "v_up")):
        y = down[..., i * rank : (i + 1) * rank] @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        projected.append(y.view(batch, steps, heads, size))
    q, k, v = projected
    out = torch.zeros(batch, steps, heads, size, dtype=x.dtype)
    for t in range(steps):
        scores = torch.einsum("bhk,bjhk->bhj", q[:, t], k[:, : t + 1]) / math.sqrt(size)
        weights = torch.softmax(scores, -1)
        out[:, t] = torch.einsum("bhj,bjhk->bhk", weights, v[:, : t + 1])
    return out.reshape(batch, steps, width) @ p["o_proj.weight"].T + p["o_proj.bias"]


def lorpt(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return x @ (p["A"] @ p["B"]).T + p["bias"]


def part(parameters: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n[len(prefix) :]: t for n, t in parameters.items() if n.startswith(prefix)}


def logits(parameters: dict[str, Tensor], config, input_ids: Tensor) -> Tensor:
    """Logits (B, T, V) of input_ids (B, T) for float64 parameters by name."""
    eps = config.layer_norm_eps
    model = part(parameters, "model.")
    x = model["embed_tokens.weight"][input_ids]
    x = x + model["embed_positions.weight"][: input_ids.shape[1]]
    for i in range(config.num_hidden_layers):
        p = part(model, f"layers.{i}.")
        y = layer_norm(x, p["recurrence_norm.weight"], p["recurrence_norm.bias"], eps)
        r = part(p, "recurrence.")
        zeros = [x.new_zeros(x.shape[0], n) for n in (x.shape[2], r["A"].shape[0])]
        w = torch.sigmoid(r["w_mix"])
        mixed, states, _, _ = recurrence(y, y @ r["B"].T, w, bounded(r["A"]), r["D"], *zeros)
        x = x + states @ r["C"].T + mixed
        y = layer_norm(x, p["attention_norm.weight"], p["attention_norm.bias"], eps)
        x = x + attention(y, part(p, "attention."), config.num_attention_heads)
        y = layer_norm(x, p["ffn_norm.weight"], p["ffn_norm.bias"], eps)
        x = x + lorpt(gelu(lorpt(y, part(p, "ffn.up."))), part(p, "ffn.down."))
    x = layer_norm(x, model["norm.weight"], model["norm.bias"], eps)
    return lorpt(x, part(parameters, "lm_head."))
