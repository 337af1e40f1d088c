"""Modules, by torch's names."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from i3lm.bare import functions
from i3lm.bare.random import default_generator
from i3lm.bare.tensor import Tensor


class Parameter(Tensor):
    """A tensor that is trained."""

    requires_grad = True

    def __init__(self, data: Tensor, requires_grad: bool = True) -> None:
        super().__init__(data.a)
        self.device, self.is_cpu, self.is_meta = data.device, data.is_cpu, data.is_meta


_KINDS = ("_parameters", "_modules", "_buffers")


class Module:
    """A part of a network: parameters and other parts."""

    training = True

    def __init__(self) -> None:
        parts: dict[str, Any] = {
            "_parameters": {}, "_modules": {}, "_buffers": {}, "_forward_hooks": {},
            "_forward_pre_hooks": {}, "_backward_hooks": {}, "_backward_pre_hooks": {},
        }  # fmt: skip
        for name, value in parts.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self._parameters[name] = value
        elif isinstance(value, Module):
            self._modules[name] = value
        else:
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        for kind in _KINDS:
            found = self.__dict__.get(kind, {})
            if name in found:
                return found[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __delattr__(self, name: str) -> None:
        for kind in _KINDS:
            self.__dict__[kind].pop(name, None)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Return what the part gives for these."""
        return self.forward(*arguments, **settings)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Yield this part and all within it, by their paths."""
        yield prefix, self
        for name, child in self._modules.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator["Module"]:
        """Yield this part and all within it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self, recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Yield parameters by their paths."""
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                yield (f"{path}.{name}" if path else name), parameter
            if not recurse:
                return

    def parameters(self) -> Iterator[Parameter]:
        """Yield parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def register_buffer(self, name: str, x: Tensor) -> None:
        """Keep a tensor that is saved and not trained."""
        self._buffers[name] = x

    def register_forward_pre_hook(self, hook: Callable) -> None:
        """Keep a function that is told of each call. Nothing calls it: what has one has a shape."""
        self._forward_pre_hooks[len(self._forward_pre_hooks)] = hook

    def register_forward_hook(self, hook: Callable, **_: Any) -> None:
        """The same, for after the call."""
        self._forward_hooks[len(self._forward_hooks)] = hook

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameters and buffers by their paths."""
        return {
            f"{path}.{name}" if path else name: x
            for path, module in self.named_modules()
            for name, x in (module._parameters | module._buffers).items()
        }

    def load_state_dict(self, state: dict[str, Tensor], assign: bool) -> None:
        """Take numbers for all parameters, whose own are gone."""
        assert assign
        for name, parameter in self.named_parameters():
            x = state[name]
            parameter.a = x.a
            parameter.device, parameter.is_cpu, parameter.is_meta = x.device, x.is_cpu, x.is_meta

    def apply(self, function: Callable[["Module"], Any]) -> "Module":
        """Call a function with each part, the smallest first."""
        for child in self._modules.values():
            child.apply(function)
        function(self)
        return self

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device: Any) -> "Module":
        """Return itself, which is in memory."""
        return self

    def train(self, mode: bool = True) -> "Module":
        """Say that it is trained."""
        for module in self.modules():
            object.__setattr__(module, "training", mode)
        return self

    def eval(self) -> "Module":
        """Say that it is not trained."""
        return self.train(False)


class ModuleList(Module):
    """Parts in their order."""

    def __init__(self, modules: Any) -> None:
        super().__init__()
        for number, module in enumerate(modules):
            setattr(self, str(number), module)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, at: int) -> Module:
        return list(self)[at]


class Linear(Module):
    """x W^T + bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(functions.empty(out_features, in_features))
        self.bias = Parameter(functions.empty(out_features))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return functions.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = Parameter(functions.empty(rows, width))
        normal_(self.weight)


class LayerNorm(Module):
    """Rows with mean 0 and variance 1, times a gain, plus a bias."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps, self.normalized_shape = eps, (width,)
        self.weight, self.bias = Parameter(functions.ones(width)), Parameter(functions.zeros(width))

    def reset_parameters(self) -> None:
        """Begin at gain 1 and bias 0."""
        ones_(self.weight)
        zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D)."""
        return functions.layer_norm(x, self.weight, self.bias, self.eps)


# torch.nn.init. What has nothing but a shape stays as it is.
def zeros_(x: Tensor) -> Tensor:
    """Fill with 0."""
    return x if x.is_meta else x.zero_()


def ones_(x: Tensor) -> Tensor:
    """Fill with 1."""
    if not x.is_meta:
        x.a.fill(1)
    return x


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill with normal numbers."""
    if x.is_meta:
        return x
    x.a[...] = default_generator.normal(x.numel()).reshape(x.shape) * np.float32(std) + mean
    return x


def orthogonal_(x: Tensor, gain: float = 1.0) -> Tensor:
    """Fill with orthogonal rows, or columns, times `gain`."""
    rows, columns = x.shape
    draws = default_generator.normal(x.numel()).reshape(rows, columns)
    q, r = np.linalg.qr(draws.T if rows < columns else draws)
    q *= np.sign(np.diag(r))
    x.a[...] = np.float32(gain) * (q.T if rows < columns else q)
    return x
