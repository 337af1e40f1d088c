"""What the tests of this folder share."""

import dataclasses

import torch

from i3lm.folder import Loaded
from i3lm.model.network import I3Network

WINDOW = 32
TEXT = "the cat sat on the mat with the other hat and her tea, was it not for you?\n"


def with_bias(loaded: Loaded, token: int, bias: float) -> Loaded:
    """The same model, more or less inclined to a token."""
    network = I3Network(loaded.architecture).eval()
    network.load_state_dict(loaded.network.state_dict())
    with torch.no_grad():
        network.lm_head.bias[token] += bias
    return dataclasses.replace(loaded, network=network)
