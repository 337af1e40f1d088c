"""i3 computed the way the published training code computes such models.

A Python loop over time for both recurrences, LoRPt that builds A @ B at each forward pass,
attention with its scores, mask and softmax written out, 16 heads. The equations and the number
of parameters are those of `i3lm`. With `scan` the recurrences are parallel scans, equal up to
rounding: what the published model learns from so many tokens, without waiting for the loop.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3lm.model.ops_i3 import scan_channels, scan_states
from i3lm.presets import Architecture

HEAD_SIZE = 32  # 16 heads at 512


class LoRPt(nn.Module):
    """y = x (A B)^T + b, the product of the factors built each time."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(0.02 * torch.randn(outputs, rank))
        self.B = nn.Parameter(0.02 * torch.randn(rank, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return F.linear(x, self.A @ self.B, self.bias)


class Recurrence(nn.Module):
    """Time mixing and state space, one time step after the other."""

    def __init__(self, d: int, n: int, scan: bool) -> None:
        super().__init__()
        self.scan = scan
        self.w_mix = nn.Parameter(torch.full((d,), 0.5))
        self.A = nn.Parameter(0.9 * torch.eye(n))
        self.B = nn.Parameter(torch.randn(n, d) * d**-0.5)
        self.C = nn.Parameter(torch.zeros(d, n))
        self.D = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, D) to (B, T, D)."""
        h = x.new_zeros(x.shape[0], x.shape[2])
        s = x.new_zeros(x.shape[0], self.A.shape[0])
        if self.scan:
            mixed = scan_channels((1 - self.w_mix) * x, self.w_mix, h)
            states = scan_states(x @ self.B.T, self.A, s)
            return states @ self.C.T + self.D * mixed
        outputs = []
        for t in range(x.shape[1]):
            x_t = x[:, t]
            h = self.w_mix * h + (1 - self.w_mix) * x_t
            s = s @ self.A.T + x_t @ self.B.T
            outputs.append(s @ self.C.T + self.D * h)
        return torch.stack(outputs, dim=1)


class Attention(nn.Module):
    """Causal attention over low-rank queries, keys and values."""

    def __init__(self, d: int, rank: int) -> None:
        super().__init__()
        self.heads = d // HEAD_SIZE
        self.q, self.k, self.v = (
            nn.Sequential(nn.Linear(d, rank), nn.Linear(rank, d)) for _ in range(3)
        )
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, D) to (B, T, D)."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        future = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), diagonal=1)
        y = scores.masked_fill(future, float("-inf")).softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Recurrence, attention, feed-forward; each pre-norm and residual."""

    def __init__(self, sizes: Architecture, scan: bool) -> None:
        super().__init__()
        d, f, rank = sizes.hidden_size, sizes.intermediate_size, sizes.rank
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(d) for _ in range(3))
        self.recurrence = Recurrence(d, sizes.state_size, scan)
        self.attention = Attention(d, rank)
        self.ffn = nn.Sequential(LoRPt(d, f, rank), nn.GELU(), LoRPt(f, d, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, D) to (B, T, D)."""
        x = x + self.recurrence(self.norm_1(x))
        x = x + self.attention(self.norm_2(x))
        return x + self.ffn(self.norm_3(x))


class Published(nn.Module):
    """The language model."""

    def __init__(self, sizes: Architecture, scan: bool = False) -> None:
        super().__init__()
        d = sizes.hidden_size
        self.tokens = nn.Embedding(sizes.vocab_size, d)
        self.positions = nn.Embedding(sizes.max_position_embeddings, d)
        self.layers = nn.ModuleList(Layer(sizes, scan) for _ in range(sizes.num_hidden_layers))
        self.norm = nn.LayerNorm(d)
        self.head = LoRPt(d, sizes.vocab_size, sizes.rank)

    def hidden(self, inputs: Tensor) -> Tensor:
        """Return what the head sees, (B, T, D), for inputs (B, T)."""
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden (..., D)."""
        return self.head(hidden)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of targets (B, T) after inputs (B, T)."""
        return F.cross_entropy(self.logits(self.hidden(inputs)).flatten(0, 1), targets.flatten())
