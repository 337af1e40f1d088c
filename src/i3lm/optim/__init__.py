"""Optimizers for training on a CPU, without `torch.optim` and its 70 MB of imports."""

from i3lm.optim.base import Optimizer, ParameterGroup
from i3lm.optim.clip import clip_gradients
from i3lm.optim.elementwise import AdamW, Lion
from i3lm.optim.groups import OPTIMIZERS, make_optimizer
from i3lm.optim.muon import Muon
from i3lm.optim.schedule import learning_rate_factor

__all__ = [
    "OPTIMIZERS",
    "AdamW",
    "Lion",
    "Muon",
    "Optimizer",
    "ParameterGroup",
    "clip_gradients",
    "learning_rate_factor",
    "make_optimizer",
]
