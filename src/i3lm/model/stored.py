"""Training without float32 weights: the layers' matrices live in 4 or 8 bits.

Groups of 32 numbers share a bfloat16 scale, x = scale k with whole |k| <= 7 or 127: 4.5 or 8.5
bits a number. A matrix is float32 only while its layer runs or its update is made; the update is
rounded at random (`rounding`). There is no master copy: what is stored is the model.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from i3lm.model.stored_i3 import GROUP, LEVELS, SMALLEST, numbers_of
from i3lm.native import tensor_call, tensor_library
from i3lm.rounding import draws

UPDATED = 1 << 20  # numbers that are float32 at once during an update


@dataclass
class StoredMatrix:
    """A matrix of `shape` as `codes` (uint8; 4 bits: two a byte) and `scales` (bfloat16)."""

    codes: Tensor
    scales: Tensor
    shape: torch.Size
    bits: int

    @classmethod
    def of(cls, x: Tensor, bits: int, seed: int) -> "StoredMatrix":
        """Store a contiguous float32 matrix, rounded with draws of `seed`."""
        groups = -(-x.numel() // GROUP)
        codes = torch.empty(groups * GROUP * bits // 8, dtype=torch.uint8)
        stored = cls(codes, torch.empty(groups, dtype=torch.bfloat16), x.shape, bits)
        stored.write(x, seed)
        return stored

    def read(self) -> Tensor:
        """Return the matrix in float32."""
        if tensor_library() is not None:
            x = torch.empty(self.shape)
            tensor_call("i3_read_groups", x.numel(), self.bits, self.codes, self.scales, x)
            return x
        return numbers_of(self.codes, self.scales.float(), self.shape, self.bits)

    def write(self, x: Tensor, seed: int) -> None:
        """Round a contiguous float32 matrix into the codes with draws of `seed`."""
        if tensor_library() is not None:
            arguments = (x.numel(), self.bits, self.codes, self.scales, x, seed)
            tensor_call("i3_write_groups", *arguments)
            return
        levels = LEVELS[self.bits]
        flat = nn.functional.pad(x.flatten(), (0, -x.numel() % GROUP)).view(-1, GROUP)
        most = flat.abs().amax(1)
        # Rounded up, so that the largest number stays within the levels.
        up = ((most / levels).view(torch.int32) + 0xFFFF) >> 16 << 16
        scales = up.view(torch.float32)
        inverse = torch.where(most > 1e-30, 1 / scales, 0)[:, None]
        chance = draws(0, flat.numel(), seed)[0].view_as(flat)
        codes = (flat * inverse + levels + chance).floor().clamp(max=2 * levels).to(torch.uint8)
        if self.bits == 4:
            codes = codes[:, : GROUP // 2] | codes[:, GROUP // 2 :] << 4
        self.codes.copy_(codes.flatten())
        self.scales.copy_(scales)


def stored_in(parameter: Tensor) -> StoredMatrix | None:
    """Return what a parameter is stored as; None for a plain one."""
    return getattr(parameter, "stored", None)


def shape_of(parameter: Tensor) -> torch.Size:
    """Return a parameter's shape, stored or not."""
    matrix = stored_in(parameter)
    return parameter.shape if matrix is None else matrix.shape


def store(layers: Iterable[nn.Module], bits: int, seed: int) -> None:
    """Keep the matrices of `layers` in `bits` bits from now on, rounded with draws of `seed`."""
    number = 0
    for layer in layers:
        for parameter in layer.parameters():
            number += 1
            if parameter.ndim == 2 and parameter.numel() >= SMALLEST:
                rounding = (seed + number * 0x9E3779B1) & 0xFFFFFFFF
                matrix = StoredMatrix.of(parameter.detach().contiguous(), bits, rounding)
                parameter.stored = matrix  # type: ignore[attr-defined]
                _drop(parameter)


def _drop(parameter: Tensor) -> None:
    parameter.data = torch.empty(0)


@contextlib.contextmanager
def held(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Give stored parameters their numbers within the block."""
    mine = [(p, s) for p in parameters if (s := stored_in(p)) is not None and p.numel() == 0]
    for parameter, matrix in mine:
        parameter.data = matrix.read()
    try:
        yield
    finally:
        for parameter, _ in mine:
            _drop(parameter)


@contextlib.contextmanager
def updated(parameters: Sequence[Tensor], seeds: Sequence[int]) -> Iterator[None]:
    """Give stored parameters their numbers within the block, and keep what they are at its end."""
    with held(parameters):
        yield
        for parameter, seed in zip(parameters, seeds, strict=True):
            matrix = stored_in(parameter)
            if matrix is not None:
                matrix.write(parameter.detach(), seed)


def portions(sizes: Sequence[int]) -> Iterator[slice]:
    """Divide parameters of these sizes so that each part has at most UPDATED numbers, or is one."""
    begin = total = 0
    for i, size in enumerate(sizes):
        if total and total + size > UPDATED:
            yield slice(begin, i)
            begin, total = i, 0
        total += size
    yield slice(begin, len(sizes))


def load_state(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Take what `state_of` gave; the network must have the same tensors."""
    for name, tensor in state_of(network).items():
        tensor.copy_(tensors[name])


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors by name; a stored matrix gives NAME.codes and NAME.scales."""
    tensors = {}
    for name, parameter in network.named_parameters():
        matrix = stored_in(parameter)
        if matrix is None:
            tensors[name] = parameter.detach()
        else:
            tensors |= {f"{name}.codes": matrix.codes, f"{name}.scales": matrix.scales}
    return tensors
