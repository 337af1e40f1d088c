"""Small networks whose every number matters, for tests of the passes."""

import torch
from torch import Tensor

from i3lm.model.network import I3Network
from i3lm.presets import Architecture


def noisy_network(**sizes) -> I3Network:
    """Return a network of these `Architecture` fields; nothing in it is zero or alike."""
    torch.manual_seed(0)
    network = I3Network(Architecture(**sizes))
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def relative_error(mine: Tensor, truth: Tensor) -> float:
    """Return how far finite numbers are from the truth, as a share of its norm."""
    assert mine.isfinite().all()
    truth = truth.double()
    return float((mine.double() - truth).norm() / truth.norm().clamp(min=1e-9))
