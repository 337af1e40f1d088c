"""The modules that stand in torch's place."""

import importlib.machinery
import importlib.metadata
import math
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np

from i3lm.bare import files, functions, nn, products, random, tensor

TYPES = "float64 float32 float16 bfloat16 int64 int32 int8 uint8 Tensor Size"
LAYERS = "Module ModuleList Parameter Linear Embedding LayerNorm"
INITS = "zeros_ ones_ normal_ orthogonal_"
FUNCTIONAL = "linear embedding pad gelu scaled_dot_product_attention"
FUNCTIONS = (
    "empty full zeros ones empty_like zeros_like ones_like tensor from_numpy arange "
    "linspace eye exp log cos diag sigmoid isfinite lerp cat stack index_select bmm "
    "autocast is_autocast_enabled"
)


def install() -> None:
    """Let `import torch` find what is here, from now on."""
    np.seterr(all="ignore")  # as torch: what is not finite is found where it counts
    if "OMP_NUM_THREADS" not in os.environ:
        products.set_num_threads(products.cores())
    hooks = _module("torch.nn.modules.module", _has_any_global_hook=lambda: False)
    inner = _module("torch._C._functorch", peek_interpreter_stack=lambda: None)
    once = _module("torch.autograd.function", once_differentiable=lambda backward: backward)
    _module(
        "torch",
        stands_in=True,
        **_taken(tensor, TYPES),
        **_taken(functions, FUNCTIONS),
        **_taken(products, "get_num_threads set_num_threads"),
        __file__=getattr(importlib.machinery.PathFinder.find_spec("torch"), "origin", None),
        __version__=importlib.metadata.version("torch"),
        bool=tensor.bool_,
        device=tensor.Device,
        dtype=type(tensor.float32),
        pi=math.pi,
        inf=math.inf,
        OutOfMemoryError=MemoryError,
        no_grad=functions.Mode,
        inference_mode=functions.Mode,
        enable_grad=functions.Mode,
        is_grad_enabled=lambda: False,
        get_autocast_dtype=lambda device: tensor.bfloat16,
        manual_seed=random.manual_seed,
        randperm=random.randperm,
        _foreach_add_=functions.foreach_add_,
        _foreach_mul_=functions.foreach_mul_,
        _fused_adamw_=functions.fused_adamw_,
        nn=_module(
            "torch.nn",
            **_taken(nn, LAYERS),
            functional=_module("torch.nn.functional", **_taken(functions, FUNCTIONAL)),
            init=_module("torch.nn.init", **_taken(nn, INITS)),
            modules=_module("torch.nn.modules", module=hooks),
        ),
        amp=_module("torch.amp", is_autocast_available=lambda device: True),
        autograd=_module("torch.autograd", Function=functions.Function, function=once),
        compiler=_module("torch.compiler", is_compiling=lambda: False),
        distributed=_module("torch.distributed"),
        jit=_module("torch.jit", is_tracing=lambda: False),
        linalg=_module("torch.linalg", solve=functions.solve),
        overrides=_module("torch.overrides", TorchFunctionMode=functions.Mode),
        special=_module("torch.special", erfc=functions.erfc),
        _C=_module("torch._C", _len_torch_dispatch_stack=lambda: 0, _functorch=inner),
    )
    _module("safetensors.torch", load_file=files.load_file)


def _taken(source: ModuleType, names: str) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names.split()}


def _module(name: str, **names: Any) -> ModuleType:
    made = ModuleType(name, __doc__)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    made.__path__ = []
    vars(made).update(names)
    sys.modules[name] = made
    return made
