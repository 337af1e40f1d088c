"""Other starts of a fresh network than ours; `ablations` says what they are."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from i3lm.model.layers_i3 import I3Layer, LoRPtLinear, Projection, Recurrence
from i3lm.model.network import I3Network

Start = Callable[[I3Network, float], None]


def parts_of(network: nn.Module, kind: type) -> list[Any]:
    """Return the modules of a kind, in order."""
    return [part for part in network.modules() if isinstance(part, kind)]


def _factors(network: I3Network) -> list[Tensor]:
    """Return the factors of all pairs; those of a silent map stay silent."""
    pairs = [p for part in parts_of(network, LoRPtLinear) for p in (part.A, part.B)]
    return [p for p in (*pairs, *(m.weight for m in parts_of(network, Projection))) if p.any()]


def _loud(network: I3Network, value: float) -> None:
    if not value:
        return
    for part in (*parts_of(network, LoRPtLinear), *parts_of(network, Projection)):
        if part.silent:
            part.silent = False
            part.reset_parameters()


def _normal(network: I3Network, value: float) -> None:
    _draw(network, lambda factor: value)


def _gauss(network: I3Network, value: float) -> None:
    if value:
        _draw(network, lambda factor: float(factor.square().mean().sqrt()))


def _draw(network: I3Network, deviation: Callable[[Tensor], float]) -> None:
    """Draw the factors from normal distributions, and set the induction heads again."""
    _without_induction(network)
    for factor in _factors(network):
        nn.init.normal_(factor, std=deviation(factor))
    for layer in parts_of(network, I3Layer):
        layer.reset_parameters()


def _induction(network: I3Network, value: float) -> None:
    if not value:
        _without_induction(network)


def _without_induction(network: I3Network) -> None:
    """Reset what `I3Layer.reset_parameters` has set."""
    for layer in parts_of(network, I3Layer):
        attention = layer.attention
        for part in (layer.recurrence, attention.qkv_down, attention.q_up, attention.k_up):
            part.reset_parameters()


def _radius(network: I3Network, value: float) -> None:
    for part in parts_of(network, Recurrence):
        part.A.copy_(value * torch.eye(len(part.A)))


def _tau(network: I3Network, value: float) -> None:
    for part in parts_of(network, Recurrence):
        count = len(part.w_mix)
        spread = torch.linspace(0.0, math.log(value), count)[torch.randperm(count)]
        part.w_mix.copy_(torch.logit(torch.exp(-torch.exp(-spread))))


def _w(network: I3Network, value: float) -> None:
    for part in parts_of(network, Recurrence):
        part.w_mix.fill_(math.log(value / (1 - value)))


def _embeddings(network: I3Network, value: float) -> None:
    for part in parts_of(network, nn.Embedding):
        nn.init.normal_(part.weight, std=value)


# In the order in which they are made: what sets less comes later.
STARTS: dict[str, Start] = {
    "loud": _loud, "normal": _normal, "gauss": _gauss, "induction": _induction, "radius": _radius,
    "tau": _tau, "w": _w, "embeddings": _embeddings,
}  # fmt: skip
