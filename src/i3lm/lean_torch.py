"""Keeps a command's process small: parts of torch that i3lm never uses are imported when asked for.

`import torch` runs 1,100 modules, 80 MB of Python objects; a fifth of them are for compiling,
quantizing and exporting. Those that nothing else in torch needs while it loads are put off: in
their place stands a module that imports the real one as soon as anything of it is asked for.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# What `torch/__init__.py` imports for its users or for its compiler, and uses itself nowhere.
UNUSED = frozenset(
    f"torch.{name}"
    for name in (
        *("_meta_registrations", "distributed._meta_registrations", "export", "profiler"),
        *("ao", "quantization", "nn.intrinsic", "nn.qat", "nn.quantizable", "nn.quantized"),
        *("distributions", "masked", "optim", "quasirandom"),
    )
)
# Who imports one of these works with a whole torch: what the modules above register counts there.
WHOLE = frozenset({"torch._dynamo", "torch._inductor", "torch.onnx", "transformers", "accelerate"})

# Whether this process is another program's, which may want torch for itself: nothing may stand in
# its place then (`bare`).
shared = False


def put_off_unused() -> None:
    """Put off what i3lm does not use, from the next `import torch` on; too late does no harm."""
    if "torch" not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the unused modules once, as stand-ins, and afterwards lets the real ones be found."""

    def __init__(self) -> None:
        self.standing_in: dict[str, ModuleType] = {}
        self.whole = False
        self.lock = threading.RLock()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if self.whole:
            return None
        if name in WHOLE:
            self.whole = True  # first: what follows imports torch's compiler again
            for put_off in tuple(self.standing_in):
                self.real(put_off)
        if name not in UNUSED or name in self.standing_in:
            return None
        real = importlib.machinery.PathFinder.find_spec(name, path, target)
        if real is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=real.origin)
        spec.has_location = real.has_location  # else `inspect` asks each module for its file
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Make a fresh module the stand-in: PEP 562's `__getattr__` is asked for what it lacks."""
        name = module.__name__
        self.standing_in[name] = module

        def ask_the_real_one(attribute: str) -> Any:
            return getattr(self.real(name), attribute)

        module.__getattr__ = ask_the_real_one  # type: ignore[method-assign]

    def real(self, name: str) -> ModuleType:
        """Import the module `name` in place of its stand-in, once."""
        with self.lock:
            if sys.modules.get(name) is self.standing_in[name]:
                del sys.modules[name]
            return importlib.import_module(name)
