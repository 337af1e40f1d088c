"""What all our optimizers share: named parameters in, flat state tensors out."""

from collections.abc import Iterator, Mapping, Sequence
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
    numbers: list[int] = field(default_factory=list)  # of the parameters, which seed their draws

    def part(self, at: slice) -> "ParameterGroup":
        """Return a stretch of the group, which shares its tensors."""
        states = {name: values[at] for name, values in self.state.items()}
        names, parameters, numbers = self.names[at], self.parameters[at], self.numbers[at]
        return replace(self, names=names, parameters=parameters, state=states, numbers=numbers)


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
            group.numbers = [*range(count, count + len(group.parameters))]
            count += len(group.parameters)
            group.state = {
                name: [new_state(p, name, self.bits_of(p)) for p in group.parameters]
                for name in self.names_of(group)
            }

    def names_of(self, group: ParameterGroup) -> tuple[str, ...]:
        """Return the names of the states that parameters of `group` have."""
        return self.state_names

    def bits_of(self, parameter: Tensor) -> int:
        """Return the size of a number in the states of `parameter`."""
        return self.bits if shape_of(parameter).numel() >= SMALL else 32

    def step(self, factor: float = 1.0, scale: float = 1.0) -> None:
        """Update all parameters from `scale` times their `.grad` at rates `factor * group.lr`.

        The gradients may be overwritten on the way.
        """
        self.steps += 1
        for group in self.groups:
            for part in _portions(group):
                seeds = [seed_of(self.steps, -1 - number) for number in part.numbers]
                with updated(part.parameters, seeds):
                    grads = [_gradient(p) for p in part.parameters]
                    self.update(part, grads, factor * group.lr, scale)

    def update(
        self, group: ParameterGroup, grads: list[Tensor], lr: float, scale: float = 1.0
    ) -> None:
        """Update one group from `scale` times `grads`; `self.steps` counts from 1."""
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
                    tensors |= tensors_of(f"{state}.{name}", value)
        return tensors

    def load_state(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore what `state_tensors` gave; UserError for those of another optimizer."""
        self.require_fit(tensors)
        for name, tensor in self.state_tensors().items():
            tensor.copy_(tensors[name])
        self.steps = steps

    def require_fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise UserError for states of another optimizer or model."""
        own = self.state_tensors()
        if own.keys() != tensors.keys() or any(own[k].shape != tensors[k].shape for k in own):
            raise UserError(
                "the checkpoint's optimizer states do not fit; resume with the run's own "
                "--optimizer, --state-bits and --preset, or start anew from its model"
            )


def _portions(group: ParameterGroup) -> Iterator[ParameterGroup]:
    """Return the group, or parts of it that may be float32 at once where parameters are stored."""
    stored = [stored_in(p) for p in group.parameters]
    if not any(stored):
        yield group
        return
    sizes = [s.shape.numel() if s else 0 for s in stored]
    for part in portions(sizes):
        yield group.part(part)


def tensors_of(key: str, value: State) -> dict[str, Tensor]:
    """Return a state's tensors by the names that they have in a checkpoint."""
    if isinstance(value, BlockState):
        return {f"{key}.codes": value.codes, f"{key}.scales": value.scales}
    return {key: value}


def new_state(p: Tensor, name: str, bits: int, device: torch.device | str | None = None) -> State:
    """Return the state `name` of a parameter, all zero, in `bits` bits a number.

    It is on the parameter's device, if no other is named.
    """
    shape, device = shape_of(p), torch.device(device or p.device)
    if bits == 32:
        return torch.zeros(shape, dtype=p.dtype, device=device)
    return BlockState.zeros(shape.numel(), bits, signed=name != "exp_avg_sq", device=device)


def scale_gradients(grads: list[Tensor], scale: float) -> None:
    """Multiply gradients by a number, in place."""
    if scale != 1.0 and grads:
        torch._foreach_mul_(grads, scale)


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
