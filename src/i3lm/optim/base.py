"""What all our optimizers share: named parameters in, flat state tensors out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from i3lm.errors import UserError
from i3lm.model.stored import portions, shape_of, stored_in, updated
from i3lm.optim.blockwise import SIGNED_LEVELS, BlockState
from i3lm.rounding import seed_of

SMALL = 4096  # numbers of a parameter whose states stay in float32: they are next to nothing
State = Tensor | BlockState


@dataclass
class ParameterGroup:
    """Parameters that share their settings. `lr` is the peak; a schedule scales it at each step."""

    names: list[str]
    parameters: list[Tensor]
    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    state: dict[str, list[State]] = field(default_factory=dict)
    first: int = 0  # the number of the group's first parameter within the optimizer


class Optimizer:
    """Base of the optimizers. Parameters and gradients are float32; updates are in place.

    `bits` is the size of a number in the states: 32 (float32), 8 or 4 (`BlockState`).
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, groups: Sequence[ParameterGroup], bits: int = 32) -> None:
        if bits != 32 and bits not in SIGNED_LEVELS:
            raise UserError(f"optimizer states of {bits} bits do not exist; choose 32, 8 or 4")
        self.groups, self.bits, self.steps = list(groups), bits, 0
        count = 0
        for group in self.groups:
            group.first, count = count, count + len(group.parameters)
            group.state = {
                name: [_new_state(p, name, bits) for p in group.parameters]
                for name in self.names_of(group)
            }

    def names_of(self, group: ParameterGroup) -> tuple[str, ...]:
        """Return the names of the states that parameters of `group` have."""
        return self.state_names

    def step(self, factor: float = 1.0) -> None:
        """Update all parameters from their `.grad` with learning rates `factor * group.lr`."""
        self.steps += 1
        for group in self.groups:
            for part in _portions(group):
                seeds = [seed_of(self.steps, -1 - part.first - i) for i in range(len(part.names))]
                with updated(part.parameters, seeds):
                    grads = [_gradient(p) for p in part.parameters]
                    self.update(part, grads, factor * group.lr)

    def update(self, group: ParameterGroup, grads: list[Tensor], lr: float) -> None:
        """Update one group; `self.steps` counts from 1."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state as flat tensors, named `state.parameter`, or in low bits its parts."""
        tensors: dict[str, Tensor] = {}
        for group in self.groups:
            for state, values in group.state.items():
                for name, value in zip(group.names, values, strict=True):
                    key = f"{state}.{name}"
                    if isinstance(value, BlockState):
                        tensors |= {f"{key}.codes": value.codes, f"{key}.scales": value.scales}
                    else:
                        tensors[key] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore what `state_tensors` gave; UserError for those of another optimizer."""
        own = self.state_tensors()
        if own.keys() != tensors.keys() or any(own[k].shape != tensors[k].shape for k in own):
            raise UserError(
                "the checkpoint's optimizer states do not fit; resume with the run's own "
                "--optimizer, --state-bits and --preset, or start anew from its model"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.steps = steps


def _portions(group: ParameterGroup) -> Iterator[ParameterGroup]:
    """Return the group, or parts of it that may be float32 at once where parameters are stored."""
    stored = [stored_in(p) for p in group.parameters]
    if not any(stored):
        yield group
        return
    sizes = [s.shape.numel() if s else 0 for s in stored]
    for part in portions(sizes):
        states = {name: values[part] for name, values in group.state.items()}
        names, parameters = group.names[part], group.parameters[part]
        first = group.first + part.start
        yield replace(group, names=names, parameters=parameters, state=states, first=first)


def _new_state(p: Tensor, name: str, bits: int) -> State:
    shape = shape_of(p)
    if bits == 32 or shape.numel() < SMALL:
        return torch.zeros(shape, dtype=p.dtype, device=p.device)
    return BlockState.zeros(shape.numel(), bits, signed=name != "exp_avg_sq")


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
