"""Makes i3 known to transformers' Auto classes without importing transformers for it."""

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType


def register_config() -> None:
    """Register the i3 configuration with AutoConfig."""
    from transformers import AutoConfig

    from i3lm.model.configuration_i3 import I3Config

    AutoConfig.register("i3", I3Config, exist_ok=True)


def register_models() -> None:
    """Register the i3 models with AutoModel and AutoModelForCausalLM."""
    from transformers import AutoModel, AutoModelForCausalLM

    from i3lm.model.configuration_i3 import I3Config
    from i3lm.model.modeling_i3 import I3ForCausalLM, I3Model

    AutoModel.register(I3Config, I3Model, exist_ok=True)
    AutoModelForCausalLM.register(I3Config, I3ForCausalLM, exist_ok=True)


# `AutoConfig` can be imported without the models, and the models import the configurations.
_REGISTER = {
    "transformers.models.auto.configuration_auto": register_config,
    "transformers.models.auto.modeling_auto": register_models,
}


def _register_for(name: str) -> None:
    """Register what the module `name` takes; a transformers that is too old still works without."""
    try:
        _REGISTER[name]()
    except ImportError as error:
        warnings.warn(
            f"i3 models are unknown to this transformers ({error}); "
            'pip install --upgrade "transformers>=5.17,<6"',
            stacklevel=2,
        )


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers i3 right after one of transformers' Auto modules was run.

    It stays in place and keeps no state, so looking for a module without importing it is harmless.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _REGISTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register_for(name)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register now with what is imported of transformers' Auto classes, else once it is."""
    for name in _REGISTER:
        if name in sys.modules:
            _register_for(name)
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
