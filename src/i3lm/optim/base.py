"""What all our optimizers share: named parameters in, flat state tensors out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from i3lm.errors import UserError


@dataclass
class ParameterGroup:
    """Parameters that share their settings. `lr` is the peak; a schedule scales it at each step."""

    names: list[str]
    parameters: list[Tensor]
    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    state: dict[str, list[Tensor]] = field(default_factory=dict)


class Optimizer:
    """Base of the optimizers. Parameters and gradients are float32; updates are in place."""

    state_names: tuple[str, ...] = ()

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        self.groups = list(groups)
        self.steps = 0
        for group in self.groups:
            group.state = {
                name: [torch.zeros_like(p) for p in group.parameters] for name in self.state_names
            }

    def step(self, factor: float = 1.0) -> None:
        """Update all parameters from their `.grad` with learning rates `factor * group.lr`."""
        self.steps += 1
        for group in self.groups:
            self.update(group, [_gradient(p) for p in group.parameters], factor * group.lr)

    def update(self, group: ParameterGroup, grads: list[Tensor], lr: float) -> None:
        """Update one group; `self.steps` counts from 1."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state as flat tensors, named `state.parameter`."""
        return {
            f"{state}.{name}": tensor
            for group in self.groups
            for state, tensors in group.state.items()
            for name, tensor in zip(group.names, tensors, strict=True)
        }

    def load_state(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore what `state_tensors` gave; UserError for those of another optimizer."""
        own = self.state_tensors()
        if own.keys() != tensors.keys() or any(own[k].shape != tensors[k].shape for k in own):
            raise UserError(
                "the checkpoint's optimizer states do not fit; resume with the run's own "
                "--optimizer and --preset, or start anew from its model"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.steps = steps


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
