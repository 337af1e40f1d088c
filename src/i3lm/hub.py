"""Makes i3 known to transformers' Auto classes without importing transformers for it."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

AUTO = "transformers.models.auto.modeling_auto"


def register() -> None:
    """Register the i3 classes with AutoConfig, AutoModel and AutoModelForCausalLM."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from i3lm.model.configuration_i3 import I3Config
    from i3lm.model.modeling_i3 import I3ForCausalLM, I3Model

    AutoConfig.register("i3", I3Config, exist_ok=True)
    AutoModel.register(I3Config, I3Model, exist_ok=True)
    AutoModelForCausalLM.register(I3Config, I3ForCausalLM, exist_ok=True)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers i3 right after transformers' Auto classes were imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register now if transformers' Auto classes are there, else as soon as they are imported."""
    if AUTO in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterImport())
