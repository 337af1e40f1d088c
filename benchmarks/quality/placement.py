"""Where low rank pays: i3 with other feed-forward networks or another head, parameters equal.

A layer's feed-forward network, or all of them for a dense head, get the inner width with which the
model has as many parameters as the preset. Such layers take torch's path, so all variants do.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3lm.errors import UserError
from i3lm.model import ops_i3
from i3lm.model.layers_i3 import FeedForward, LoRPtLinear, init_orthogonal
from i3lm.model.network import I3Network
from i3lm.presets import Architecture

Plan = tuple[int | None, int | None]  # ranks of the maps up and down; None: dense
RANKS = (16, 32, 64, 128, 256)
NAMES = (
    *("all", "dense", "up", "down", "alternate", "deeper", "shallower", "head"),
    *(f"rank{r}" for r in RANKS),
)


def plans(name: str, sizes: Architecture) -> list[Plan]:
    """Return the ranks of each layer, the first layer first."""
    r, layers = sizes.rank, sizes.num_hidden_layers
    ramp = [round(r * (0.5 + i / max(1, layers - 1))) for i in range(layers)]
    if name.startswith("rank"):
        rank = int(name.removeprefix("rank"))
        return [(rank, rank)] * layers
    table: dict[str, list[Plan]] = {
        "all": [(r, r)] * layers,
        "dense": [(None, None)] * layers,
        "up": [(r, None)] * layers,
        "down": [(None, r)] * layers,
        "alternate": [(r, r) if i % 2 == 0 else (None, None) for i in range(layers)],
        "deeper": [(rank, rank) for rank in ramp],
        "shallower": [(rank, rank) for rank in reversed(ramp)],
        "head": [(r, r)] * layers,
    }
    return table[name]


def width_for(plan: Plan, hidden: int, parameters: int) -> int:
    """Return the inner width with which such a network has about `parameters` parameters."""

    def count(width: int) -> int:
        up, down = (r * (hidden + width) if r else hidden * width for r in plan)
        return up + width + down + hidden

    slope = count(2) - count(1)
    return max(8, round((parameters - count(0)) / slope))


def build(name: str, sizes: Architecture) -> I3Network:
    """Return the variant `name`; UserError for an unknown one."""
    if name not in NAMES:
        raise UserError(f"no placement is named {name!r}; choose of {', '.join(NAMES)}")
    ops_i3.fused_layer = None
    network = _DenseHead(sizes) if name == "head" else I3Network(sizes)
    parts, layers = sizes.parameters_by_part(), sizes.num_hidden_layers
    budget = parts["feed-forward"] // layers
    if name == "head":
        extra = sum(p.numel() for p in network.lm_head.parameters()) - parts["head"]
        budget -= extra // layers
    for layer, plan in zip(network.model.layers, plans(name, sizes), strict=True):
        layer.ffn = _feed_forward(plan, sizes, width_for(plan, sizes.hidden_size, budget))
    return network


def _feed_forward(plan: Plan, sizes: Architecture, width: int) -> FeedForward:
    hidden = sizes.hidden_size
    ffn = FeedForward(dataclasses.replace(sizes, intermediate_size=width))
    for name, rank, shape in (("up", plan[0], (hidden, width)), ("down", plan[1], (width, hidden))):
        silent = name == "down"
        part = LoRPtLinear(*shape, rank, silent=silent) if rank else _dense(*shape, silent=silent)
        setattr(ffn, name, part)
    return ffn


def _dense(inputs: int, outputs: int, silent: bool) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.bias)
    if silent:
        nn.init.zeros_(linear.weight)
    else:
        init_orthogonal(linear.weight)
    return linear


class _DenseHead(I3Network):
    """i3 with a head of one matrix, (V, D), trained as the embeddings are."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__(sizes)
        self.lm_head = _Rows(sizes.vocab_size, sizes.hidden_size)

    def head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden.flatten(0, 1), self.lm_head.A, self.lm_head.bias)
        used = self.config.used_vocab_size or self.config.vocab_size
        return F.cross_entropy(logits[:, :used].float(), targets.flatten(), reduction="sum")


class _Rows(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.A = nn.Parameter(nn.init.normal_(torch.empty(rows, width), std=width**-0.5))
        self.bias = nn.Parameter(torch.zeros(rows))
