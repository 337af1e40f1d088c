"""Optimizers for training on a CPU, without `torch.optim` and its 70 MB of imports."""

from .base import Optimizer, ParameterGroup
from .elementwise import AdamW, Lion
from .groups import OPTIMIZERS, make_optimizer
from .muon import Muon
from .schedule import learning_rate_factor

__all__ = [
    "OPTIMIZERS",
    "AdamW",
    "Lion",
    "Muon",
    "Optimizer",
    "ParameterGroup",
    "learning_rate_factor",
    "make_optimizer",
]
