"""A GPT of the nanoGPT shape: what people train today at this size.

Pre-norm, learned positions, GELU feed-forward of four times the width, fused attention, head
tied to the token embedding, no biases; dropout, where it is asked for, in nanoGPT's places.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS = 6


@dataclass(frozen=True)
class Sizes:
    """The sizes of a GPT."""

    vocabulary: int
    positions: int
    width: int
    layers: int = LAYERS
    heads_of: int | None = None  # width of a head; None: 64, or 32 where that does not divide

    @property
    def heads(self) -> int:
        """The number of heads."""
        return self.width // (self.heads_of or (64 if self.width % 64 == 0 else 32))

    @property
    def parameters(self) -> int:
        """The total: tied embedding, positions, 12 squares of the width a layer, the norms."""
        d = self.width
        return (self.vocabulary + self.positions) * d + self.layers * (12 * d * d + 2 * d) + d


def sizes_like(parameters: int, vocabulary: int, positions: int) -> Sizes:
    """Return the GPT of six layers whose number of parameters comes nearest."""
    choices = (Sizes(vocabulary, positions, width) for width in range(32, 2049, 32))
    return min(choices, key=lambda sizes: abs(sizes.parameters - parameters))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        d = sizes.width
        self.heads, self.dropout = sizes.heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, 4 * d, bias=False)
        self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, D) to (B, T, D)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).chunk(3, dim=-1)
        )
        share = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=share)
        x = x + F.dropout(self.out(y.transpose(1, 2).flatten(2)), share)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm_2(x)))), share)


class GPT(nn.Module):
    """The language model."""

    def __init__(self, sizes: Sizes, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.positions, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes, dropout) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def hidden(self, inputs: Tensor) -> Tensor:
        """Return what the head sees, (B, T, D), for inputs (B, T)."""
        places = torch.arange(inputs.shape[1], device=inputs.device)
        x = self.dropout(self.tokens(inputs) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden (..., D)."""
        return F.linear(hidden, self.tokens.weight)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of targets (B, T) after inputs (B, T)."""
        logits = self.logits(self.hidden(inputs))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
