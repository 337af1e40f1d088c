"""The parts of the i3 network: three-branch layers, LoRPt maps. Needs torch alone.

Shapes: B batch, T time, D hidden size, H heads, K head size, N states, R rank, V vocabulary.
`config` is any object with the fields of `I3Config`.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops_i3
from .ops_i3 import (
    attention_weights,
    causal_attention,
    lorpt,
    recompute,
    recurrence,
    stable_transition,
)

# How loud the previous token is beside the current one, and how sharply the first head compares
# them, at the start (docs/log.md).
WRITE_PREVIOUS, MATCH_PREVIOUS = 0.1, 1.7


class LoRPtLinear(nn.Module):
    """A linear map of low rank, `y = x (A B)^T + bias`, with A (out, R) and B (R, in).

    The two factors are applied one after the other. The forward pass takes (..., in) to (..., out).
    With `silent`, A starts at zero: what writes to a residual stream writes nothing at first.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        silent: bool = False,
    ) -> None:
        super().__init__()
        self.silent = silent
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.A = nn.Parameter(torch.empty(out_features, rank))
        self.B = nn.Parameter(torch.empty(rank, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw balanced orthogonal factors; the bias starts at zero."""
        init_factors(self.A, self.B)
        if self.silent:
            nn.init.zeros_(self.A)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def weight(self) -> Tensor:
        """The dense matrix A B (out, in), for tools that want one; a product at each use."""
        return self.A @ self.B

    @torch.no_grad()
    def resize(self, out_features: int) -> None:
        """Keep the first outputs, or add some whose rows of A and bias are zero."""
        more = out_features - self.out_features
        self.A = nn.Parameter(F.pad(self.A, (0, 0, 0, more)), self.A.requires_grad)
        if self.bias is not None:
            self.bias = nn.Parameter(F.pad(self.bias, (0, more)), self.bias.requires_grad)
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return lorpt(x, self.A, self.B, self.bias)

    def extra_repr(self) -> str:
        """Describe the sizes in `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}"
        )


def lorpt_map(config: Any, in_features: int, out_features: int, silent: bool = False) -> Any:
    """Return a LoRPt map, or, where the config is `dense`, the plain one that it merges to."""
    if getattr(config, "dense", False):
        return nn.Linear(in_features, out_features)
    return LoRPtLinear(in_features, out_features, config.rank, silent=silent)


@torch.no_grad()
def init_factors(A: Tensor, B: Tensor) -> None:
    """Fill A (out, R) and B (R, in) with orthogonal factors of equal spectral norm.

    The product has R equal singular values sqrt(out / R), so unit-variance inputs give
    outputs of unit variance, as a dense layer with weights of variance 1 / in would.
    """
    gain = (A.shape[0] / A.shape[1]) ** 0.25
    for factor in (A, B):
        if not factor.is_meta:
            nn.init.orthogonal_(factor, gain)


def init_orthogonal(factor: Tensor) -> Tensor:
    """Fill a factor (R, in) or (out, R) of a square map as `init_factors` would; return it."""
    gain = (max(factor.shape) / min(factor.shape)) ** 0.25
    return factor if factor.is_meta else nn.init.orthogonal_(factor, gain)


def _fill(parameter: Tensor, values: Tensor) -> None:
    """Copy values in place, unless transformers has marked the parameter as loaded."""
    if not getattr(parameter, "_is_hf_initialized", False):
        parameter.copy_(values)


class Projection(nn.Linear):
    """A dense map of attention: a factor of Q, K, V, or the silent output projection.

    `maps` maps may stand in one weight, (maps * R, in), so that they are one product. Factors start
    orthogonal, each with the spectral norm that balances its pair (see `init_factors`).
    """

    def __init__(
        self, in_features: int, out_features: int, maps: int = 1, silent: bool = False
    ) -> None:
        self.maps, self.silent = maps, silent  # nn.Linear resets at once
        super().__init__(in_features, out_features)
        self.weight.stacked_maps = maps  # type: ignore[attr-defined]  # each has its own update

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw orthogonal factors, or zeros where silent; the bias starts at zero."""
        nn.init.zeros_(self.bias)
        if self.silent:
            nn.init.zeros_(self.weight)
            return
        rows, columns = self.out_features // self.maps, self.in_features
        if self.maps > 1 and not self.weight.is_meta:
            one = torch.empty(rows, columns)
            draws = [init_orthogonal(one).clone() for _ in range(self.maps)]
            _fill(self.weight, torch.cat(draws))
        else:
            init_orthogonal(self.weight)


class State(Protocol):
    """What a layer sees of a cache: `network.LayerState`, or transformers' cache wrapped.

    One that can be cut back also has `record`, which takes the recurrent state after each new
    position: h (B, T, D), s (B, T, N).
    """

    recurrent: tuple[Tensor, Tensor] | None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, K); return all of them so far."""


class Recurrence(nn.Module):
    """Time mixing and a linear state space, both time-invariant.

    h_t = w h_(t-1) + (1 - w) x_t; s_t = A s_(t-1) + B x_t; y_t = C s_t + D h_t.
    `w_mix` holds the logit of w, so w stays in (0, 1) whatever the optimizer does; the spectral
    radius of A is held at or below 1 by `stable_transition`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        d, n = config.hidden_size, config.state_size
        self.w_mix = nn.Parameter(torch.empty(d))
        self.A = nn.Parameter(torch.empty(n, n))
        self.B = nn.Parameter(torch.empty(n, d))
        self.C = nn.Parameter(torch.empty(d, n))
        self.D = nn.Parameter(torch.empty(d))
        self.max_time_constant = config.max_position_embeddings / 2

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Spread the decays: time constants from 1 token to half the window, evenly in log."""
        if self.A.is_meta:
            return
        d, n = self.D.numel(), self.A.shape[0]
        spread = math.log(self.max_time_constant)
        taus = torch.exp(torch.linspace(0.0, spread, d))[torch.randperm(d)]
        w = torch.exp(-1 / taus)
        _fill(self.w_mix, torch.log(w / (1 - w)))
        _fill(self.A, torch.diag(torch.exp(-1 / torch.exp(torch.linspace(0.0, spread, n)))))
        nn.init.normal_(self.B, std=d**-0.5)
        nn.init.zeros_(self.C)  # the branch writes nothing at first
        nn.init.zeros_(self.D)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """Mix x (B, T, D) over time; go on from `state` and leave the new state there."""
        if state is None or state.recurrent is None:
            h = x.new_zeros(x.shape[0], x.shape[2], dtype=torch.float32)
            s = x.new_zeros(x.shape[0], self.A.shape[0], dtype=torch.float32)
        else:
            h, s = state.recurrent
        w, A = torch.sigmoid(self.w_mix), stable_transition(self.A)
        u = F.linear(x, self.B)
        x = x.to(A.dtype)
        record = getattr(state, "record", None)
        D = torch.ones_like(self.D) if record else self.D  # then y is h itself
        y, s_BTN, h, s = recurrence(x, u.to(A.dtype), w, A, D, h.to(A.dtype), s.to(A.dtype))
        if state is not None:
            state.recurrent = (h, s)
        if record:
            record(y, s_BTN)
            y = self.D * y
        return y + F.linear(s_BTN, self.C)


class Attention(nn.Module):
    """Causal multi-head attention whose queries, keys and values have rank R.

    The three down-projections (D to R, with bias) are the rows of one matrix `qkv_down`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        d, r = config.hidden_size, config.rank
        self.num_heads = config.num_attention_heads
        self.qkv_down = Projection(d, 3 * r, maps=3)
        self.q_up = Projection(r, d)
        self.k_up = Projection(r, d)
        self.v_up = Projection(r, d)
        self.o_proj = Projection(d, d, silent=True)
        self.o_proj.weight.joined_maps = self.num_heads  # type: ignore[attr-defined]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, K)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        state: State | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend over x (B, T, D) and what `state` holds.

        mask: (B or 1, 1, T, T_all), boolean (True: may attend) or additive. None: each of the first
        T positions sees its past, or the one new position sees all. The probabilities
        (B, H, T, T_all) are appended to `weights`.
        """
        q, k, v = self.qkv_down(x).chunk(3, dim=-1)
        q, k, v = (
            self._heads(up(low)) for up, low in ((self.q_up, q), (self.k_up, k), (self.v_up, v))
        )
        if state is not None:
            k, v = state.append(k, v)
        steps = q.shape[2]
        if weights is not None:
            weights.append(attention_weights(q, k, mask))
            y = weights[-1] @ v
        elif mask is None and steps > 1:  # keys beyond the queries are room of a static cache
            y = causal_attention(q, k[:, :, :steps], v[:, :, :steps])
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """LoRPt(D to 4 D), GELU, LoRPt(4 D to D)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up = lorpt_map(config, config.hidden_size, config.intermediate_size)
        self.down = lorpt_map(config, config.intermediate_size, config.hidden_size, silent=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, D) to (B, T, D)."""
        return self.down(F.gelu(self.up(x)))


class I3Layer(nn.Module):
    """Three pre-norm residual branches: recurrence, attention, feed-forward.

    `checkpointing` says what training keeps for the way back: "none" leaves out nothing,
    "selective" what is wide and cheap to compute again, half of all (always left out where a layer
    is one compiled call); "full" all but the input.
    """

    checkpointing = "none"
    sharded = False  # weights are whole only while the layer runs
    held: Callable | None = None  # where weights are stored: holds them for the way back
    training_pass: Callable | None = None  # the branches, compiled, where they were

    def __init__(self, config: Any) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_eps
        self.recurrence_norm = nn.LayerNorm(d, eps=eps)
        self.recurrence = Recurrence(config)
        self.attention_norm = nn.LayerNorm(d, eps=eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.LayerNorm(d, eps=eps)
        self.ffn = FeedForward(config)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start the first head as one that finds what followed the current token before.

        Such induction heads (Olsson et al., arXiv 2209.11895) form late from random weights. Here
        half of the states hold a projection G of the current token and pass it to the other half,
        which writes the previous token's along E; the head compares G of its query with E of its
        keys. It says nothing until `o_proj` learns to use it. Expects the parts to be reset.
        """
        mix, attention = self.recurrence, self.attention
        width, states, rank = mix.D.numel(), mix.A.shape[0], attention.q_up.weight.shape[1]
        size = min(states // 2, rank, width // attention.num_heads)
        if size == 0 or mix.A.is_meta:
            return
        basis = nn.init.orthogonal_(torch.empty(width, 2 * size))
        G, E = basis[:, :size].t(), basis[:, size:]  # (size, D), (D, size)
        A, B, C = torch.zeros_like(mix.A), torch.zeros_like(mix.B), torch.zeros_like(mix.C)
        A[size : 2 * size, :size] = torch.eye(size)
        B[:size], C[:, size : 2 * size] = G, WRITE_PREVIOUS * E
        down = attention.qkv_down.weight.clone()
        down[:size], down[rank : rank + size] = MATCH_PREVIOUS * G, MATCH_PREVIOUS * E.t()
        for tensor, values in (
            (mix.A, A),
            (mix.B, B),
            (mix.C, C),
            (attention.qkv_down.weight, down),
        ):
            _fill(tensor, values)
        for up in (attention.q_up, attention.k_up):
            values = up.weight.clone()
            values[: width // attention.num_heads] = 0
            values[:size, :size] = torch.eye(size)
            _fill(up.weight, values)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        padding: Tensor | None = None,
        state: State | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Transform x (B, T, D). `padding` (B, T, 1) is 0 where a token must leave no trace."""
        if mask is None and padding is None and state is None and weights is None:
            y = None if ops_i3.fused_layer is None else ops_i3.fused_layer(self, x)
            if y is not None:
                return y
            run = self.training_pass or self._branches
            again = self.checkpointing != "none" or self.held is not None  # torch has no selection
            if again and torch.is_grad_enabled():
                return recompute(run, x, self._hold)
            if torch.is_grad_enabled():
                return run(x)
        return self._branches(x, mask, padding, state, weights)

    def _hold(self) -> AbstractContextManager:
        return nullcontext() if self.held is None else self.held(self.parameters())

    def _branches(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        padding: Tensor | None = None,
        state: State | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        mixed = self.recurrence_norm(x)
        if padding is not None:
            mixed = mixed * padding
        x = x + self.recurrence(mixed, state)
        x = x + self.attention(self.attention_norm(x), mask, state, weights)
        return x + self.ffn(self.ffn_norm(x))


def build_backbone(module: nn.Module, config: Any) -> None:
    """Give `module` the backbone's parts. transformers' base model has the same ones."""
    d = config.hidden_size
    module.embed_tokens = nn.Embedding(config.vocab_size, d)
    module.embed_positions = nn.Embedding(config.max_position_embeddings, d)
    module.layers = nn.ModuleList(I3Layer(config) for _ in range(config.num_hidden_layers))
    module.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)


def used_rows(config: Any) -> int:
    """Return how many rows of the vocabulary stand for a token; the rest can never be generated."""
    return config.used_vocab_size or config.vocab_size


def head_logits(head: nn.Module, hidden: Tensor, config: Any) -> Tensor:
    """Return logits (..., V) of hidden (..., D), -inf for the rows that stand for no token."""
    logits = head(hidden)
    used = used_rows(config)
    if used < logits.shape[-1]:
        unused = torch.arange(logits.shape[-1], device=logits.device) >= used
        logits = logits.masked_fill(unused, -torch.inf)
    return logits


def init_module(module: nn.Module, config: Any) -> None:
    """Initialise the parameters that are the module's own."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=config.initializer_range)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, LoRPtLinear | Projection | Recurrence | I3Layer):
        module.reset_parameters()
