"""Optimizers for training on a CPU, without `torch.optim` and its 70 MB of imports.

`AdamW8bit`, `AdamW4bit`, `Lion8bit` and `Lion4bit` are for other programs: optimizers of
`torch.optim`'s kind, imported when they are asked for.
"""

from typing import Any

from i3lm.optim.base import Optimizer, ParameterGroup
from i3lm.optim.clip import clip_gradients
from i3lm.optim.elementwise import AdamW, Lion
from i3lm.optim.groups import OPTIMIZERS, make_optimizer
from i3lm.optim.muon import Muon
from i3lm.optim.schedule import learning_rate_factor

TORCH_STYLE = ("AdamW4bit", "AdamW8bit", "Lion4bit", "Lion8bit")

__all__ = [
    "OPTIMIZERS",
    "AdamW",
    "AdamW4bit",
    "AdamW8bit",
    "Lion",
    "Lion4bit",
    "Lion8bit",
    "Muon",
    "Optimizer",
    "ParameterGroup",
    "clip_gradients",
    "learning_rate_factor",
    "make_optimizer",
]


def __getattr__(name: str) -> Any:
    if name in TORCH_STYLE:
        from i3lm.optim import torch_style

        return getattr(torch_style, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
