"""Training without float32 weights: the layers' matrices live in 4 or 8 bits.

Groups of 32 numbers share a bfloat16 scale, x = scale k with whole |k| <= 7 or 127: 4.5 or 8.5
bits a number. A matrix is float32 only while its layer runs or its update is made; the update is
rounded at random (`rounding`). There is no master copy: what is stored is the model.

Quantization-aware training is the other way: a float32 master is updated, and its layer runs with
the master rounded to the nearest, gradients passing straight through. It saves no memory.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from i3lm.model.stored_i3 import GROUP, LEVELS, SMALLEST, nearest, numbers_of
from i3lm.native import tensor_call, tensor_library
from i3lm.rounding import draws, seed_of

SHRUNK = 0.8  # of its range, below which the largest number of a group gets it a new scale
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
        codes = torch.empty(groups * GROUP * bits // 8, dtype=torch.uint8, device="cpu")
        scales = torch.zeros(groups, dtype=torch.bfloat16, device="cpu")
        stored = cls(codes, scales, x.shape, bits)
        stored.write(x, seed)
        return stored

    def exact(self, out: Tensor) -> Tensor:
        """Return what an update starts from, in float32; `out` is room for it."""
        return self.read(out)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, by suffix of the parameter's name."""
        return {".codes": self.codes, ".scales": self.scales}

    def read(self, out: Tensor | None = None) -> Tensor:
        """Return the matrix in float32, in `out` where it is given."""
        x = _room(self.shape) if out is None else out
        if tensor_library() is not None:
            tensor_call("i3_read_groups", x.numel(), self.bits, self.codes, self.scales, x)
        else:
            x.copy_(numbers_of(self.codes, self.scales.float(), self.shape, self.bits))
        return x

    def write(self, x: Tensor, seed: int) -> None:
        """Round a contiguous float32 matrix into the codes with draws of `seed`."""
        if tensor_library() is not None:
            arguments = (x.numel(), self.bits, self.codes, self.scales, x, seed)
            tensor_call("i3_write_groups", *arguments)
            return
        levels = LEVELS[self.bits]
        flat = nn.functional.pad(x.flatten(), (0, -x.numel() % GROUP)).view(-1, GROUP)
        most = flat.abs().amax(1)
        # A new scale rounds all numbers of the group anew, so there is one only where the largest
        # is far within the range or beyond the next level, or is drawn to be at the next level.
        old = self.scales.float()
        fits = (most <= old * (levels + 1)) & (most > old * levels * SHRUNK)
        scales = torch.where(fits, old, _bfloat16(most / levels, 0xFFFF))  # up: none is beyond
        chance = levels + draws(0, flat.numel(), seed)[0].view_as(flat)
        codes = (flat * torch.where(most > 1e-30, 1 / scales, 0)[:, None] + chance).floor()
        beyond = (codes < 0) | (codes > 2 * levels)
        # What is at the next level stays there: it is the last of the new scale.
        grown = _bfloat16(scales * (levels + 1) / levels, 0x8000)
        grows = beyond.any(1)
        again = grows[:, None] & ~beyond
        codes = torch.where(again, (flat / grown[:, None] + chance).floor(), codes)
        scales = torch.where(grows, grown, scales)
        codes = codes.clamp(0, 2 * levels).to(torch.uint8)
        if self.bits == 4:
            codes = codes[:, : GROUP // 2] | codes[:, GROUP // 2 :] << 4
        self.codes.copy_(codes.flatten())
        self.scales.copy_(scales)


def _bfloat16(x: Tensor, added: int) -> Tensor:
    """Return positive float32 numbers rounded to bfloat16: up for 0xFFFF, nearest for 0x8000."""
    return ((x.view(torch.int32) + added) >> 16 << 16).view(torch.float32)


@dataclass
class RoundedMatrix:
    """A float32 `master`, and what its layer sees of it: its numbers in `bits` bits."""

    master: Tensor
    bits: int

    @property
    def shape(self) -> torch.Size:
        """Of the matrix."""
        return self.master.shape

    def exact(self, out: Tensor) -> Tensor:
        """Return what an update starts from, in float32."""
        return self.master

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, by suffix of the parameter's name."""
        return {"": self.master}

    def read(self, out: Tensor | None = None) -> Tensor:
        """Return the rounded matrix in float32, in `out` where it is given."""
        return StoredMatrix(*nearest(self.master, self.bits), self.shape, self.bits).read(out)

    def write(self, x: Tensor, seed: int) -> None:
        """Take the updated master."""
        if x.data_ptr() != self.master.data_ptr():
            self.master.copy_(x)


def _room(shape: torch.Size) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


class _Rooms:
    """Room for float32 matrices, used again and again: freed blocks would leave holes in the heap.

    There is as much of it as was in use at once.
    """

    def __init__(self) -> None:
        self._free: dict[torch.Size, list[Tensor]] = {}

    def take(self, shape: torch.Size) -> Tensor:
        free = self._free.get(shape)
        return free.pop() if free else _room(shape)

    def give(self, room: Tensor) -> None:
        self._free.setdefault(room.shape, []).append(room)


_ROOMS = _Rooms()


def stored_in(parameter: Tensor) -> StoredMatrix | RoundedMatrix | None:
    """Return what a parameter is stored as; None for a plain one."""
    return getattr(parameter, "stored", None)


def shape_of(parameter: Tensor) -> torch.Size:
    """Return a parameter's shape, stored or not."""
    matrix = stored_in(parameter)
    return parameter.shape if matrix is None else matrix.shape


def store(layers: Iterable[nn.Module], bits: int, seed: int, master: bool = False) -> None:
    """Keep the matrices of `layers` in `bits` bits from now on, rounded with draws of `seed`.

    With `master` they stay in float32 and are only seen in `bits` bits. A recurrence's A, whose
    powers reach over the whole window, is left as it is.
    """
    number = 0
    for layer in layers:
        for name, parameter in layer.named_parameters():
            number += 1
            exact = name == "recurrence.A"
            if parameter.ndim == 2 and parameter.numel() >= SMALLEST and not exact:
                rounding, x = seed_of(seed, number), parameter.detach().contiguous()
                matrix = RoundedMatrix(x, bits) if master else StoredMatrix.of(x, bits, rounding)
                parameter.stored = matrix  # type: ignore[attr-defined]
                _drop(parameter)


def _drop(parameter: Tensor) -> None:
    parameter.data = torch.empty(0, device="cpu")


@contextlib.contextmanager
def held(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Give stored parameters the numbers that their layer sees within the block."""
    mine = [(p, s) for p in parameters if (s := stored_in(p)) is not None and p.numel() == 0]
    rooms = [_ROOMS.take(matrix.shape) for _, matrix in mine]
    for (parameter, matrix), room in zip(mine, rooms, strict=True):
        parameter.data = matrix.read(room)
    try:
        yield
    finally:
        for (parameter, _), room in zip(mine, rooms, strict=True):
            _drop(parameter)
            _ROOMS.give(room)


@contextlib.contextmanager
def updated(parameters: Sequence[Tensor], seeds: Sequence[int]) -> Iterator[None]:
    """Give stored parameters their numbers within the block, and keep what they are at its end."""
    mine = [
        (p, s, seed)
        for p, seed in zip(parameters, seeds, strict=True)
        if (s := stored_in(p)) is not None
    ]
    rooms = [_ROOMS.take(matrix.shape) for _, matrix, _ in mine]
    for (parameter, matrix, _), room in zip(mine, rooms, strict=True):
        parameter.data = matrix.exact(room)
    try:
        yield
        for parameter, matrix, seed in mine:
            matrix.write(parameter.detach(), seed)
    finally:
        for (parameter, _, _), room in zip(mine, rooms, strict=True):
            _drop(parameter)
            _ROOMS.give(room)


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
            tensors |= {f"{name}{part}": tensor for part, tensor in matrix.state().items()}
    return tensors
