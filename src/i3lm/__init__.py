"""i3lm: pretrain i3, a small conversational language model, on the computer that you have."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from i3lm.hub import register_when_imported

if TYPE_CHECKING:
    from i3lm.chatting import Chat, chat
    from i3lm.errors import UserError
    from i3lm.evaluation import evaluate
    from i3lm.folder import load_folder as load
    from i3lm.generation import generate, stream
    from i3lm.model_info import info
    from i3lm.quantizing import quantize
    from i3lm.training.api import resume, train
    from i3lm.training.config import TrainConfig
    from i3lm.training.events import Listener

# Before torch loads its threads: let them spin for microseconds only. By default they spin on when
# another process has the processor, and a busy laptop trains ten times slower (docs/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
__all__ = [
    "Chat",
    "Listener",
    "TrainConfig",
    "UserError",
    "__version__",
    "chat",
    "evaluate",
    "generate",
    "info",
    "load",
    "quantize",
    "resume",
    "stream",
    "train",
]

# What is imported at its first use, so that `import i3lm` alone brings in no torch. No module of
# the package may have one of these names: importing it would hide the function.
_PLACES = {
    "Chat": ("chatting", "Chat"),
    "Listener": ("training.events", "Listener"),
    "TrainConfig": ("training.config", "TrainConfig"),
    "UserError": ("errors", "UserError"),
    "chat": ("chatting", "chat"),
    "evaluate": ("evaluation", "evaluate"),
    "generate": ("generation", "generate"),
    "info": ("model_info", "info"),
    "load": ("folder", "load_folder"),
    "quantize": ("quantizing", "quantize"),
    "resume": ("training.api", "resume"),
    "stream": ("generation", "stream"),
    "train": ("training.api", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'i3lm' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f"i3lm.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_imported()
