"""Optimizer states of 4 or 8 bits a number, in blocks of 128 with one scale.

A state is x = scale k |k| / L^2 with whole k: the quadratic map puts levels close together near
zero, where most numbers of a state are, as dynamic maps do (Dettmers et al., arXiv 2110.02861),
and needs no table. A mean has |k| <= L, L = 7 or 127. A mean of squares, kept as its root
scale k / L, has 1 <= k <= L, L = 16 or 256: without zero, by which a step would be divided (Li,
Chen and Zhu, arXiv 2309.01507).
Numbers are rounded to one of their two neighbours at random, with the right mean (`rounding`): a
moving average that is rounded to the nearest level never leaves it.

What is here is plain torch; native/states.c does the same, a block at a time.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from i3lm.native import tensor_call, tensor_library
from i3lm.rounding import draws

BLOCK = 128
SMALLEST = 1e-30  # a block with no larger number is all zero
# Numbers that plain torch treats at a time: on a CPU its temporaries stay small, elsewhere a call
# of a kernel costs more than a thousand numbers.
CHUNK, DEVICE_CHUNK = 1 << 16, 1 << 24
SIGNED_LEVELS = {4: 7, 8: 127}
UNSIGNED_LEVELS = {4: 16, 8: 256}


@dataclass
class BlockState:
    """`count` numbers: `codes` (uint8; 4 bits: two a byte), `scales` (float32, one a block)."""

    codes: Tensor
    scales: Tensor
    count: int
    bits: int
    signed: bool

    @classmethod
    def zeros(
        cls, count: int, bits: int, *, signed: bool, device: torch.device | None = None
    ) -> "BlockState":
        """Return a state of zeros: the scales are 0."""
        blocks = -(-count // BLOCK)
        codes = torch.zeros(blocks * BLOCK * bits // 8, dtype=torch.uint8, device=device)
        scales = torch.zeros(blocks, dtype=torch.float32, device=device)
        return cls(codes, scales, count, bits, signed)

    @property
    def levels(self) -> int:
        """The largest k."""
        return (SIGNED_LEVELS if self.signed else UNSIGNED_LEVELS)[self.bits]

    def read(self, out: Tensor) -> None:
        """Write the numbers to `out`, (count,) float32 and contiguous."""
        if self.signed and _compiled(out):
            tensor_call("i3_read_states", self.count, self.bits, self.codes, self.scales, out)
            return
        for begin, end in _chunks(self.count, out):
            out[begin:end] = self._read(begin, end)

    def write(self, x: Tensor, seed: int) -> None:
        """Round `x`, (count,) float32 and contiguous, into the state with draws of `seed`."""
        if self.signed and _compiled(x):
            arguments = (self.count, self.bits, self.codes, self.scales, x, seed)
            tensor_call("i3_write_states", *arguments)
            return
        for begin, end in _chunks(self.count, x):
            self._write(begin, x[begin:end], draws(begin, end, seed, x.device)[0])

    def _read(self, begin: int, end: int) -> Tensor:
        blocks = slice(begin // BLOCK, -(-end // BLOCK))
        codes = self.codes.view(len(self.scales), -1)[blocks]
        if self.bits == 4:
            codes = torch.cat((codes & 15, codes >> 4), 1)
        if self.signed:
            k = codes.float() - self.levels
            x = self.scales[blocks, None] / self.levels**2 * k * k.abs()
        else:
            x = (self.scales[blocks, None] / self.levels * (codes.float() + 1)) ** 2
        return x.flatten()[: end - begin]

    def _write(self, begin: int, x: Tensor, chance: Tensor) -> None:
        blocks = slice(begin // BLOCK, -(-(begin + len(x)) // BLOCK))
        pad = -len(x) % BLOCK
        x, chance = (torch.nn.functional.pad(t, (0, pad)).view(-1, BLOCK) for t in (x, chance))
        roots = x.abs().sqrt() if self.signed else x
        scales = x.abs().amax(1)
        scales = torch.where(scales <= SMALLEST, 0, scales)
        unit = torch.where(scales > 0, self.levels / (scales.sqrt() if self.signed else scales), 0)
        k = quadratic_code(roots * unit[:, None], self.levels, chance)
        codes = self.levels + k * x.sign() if self.signed else k.clamp(min=1) - 1
        codes = codes.to(torch.uint8)
        if self.bits == 4:
            codes = codes[:, : BLOCK // 2] | codes[:, BLOCK // 2 :] << 4
        self.codes.view(len(self.scales), -1)[blocks] = codes
        self.scales[blocks] = scales


def quadratic_code(root: Tensor, levels: int, chance: Tensor) -> Tensor:
    """Return whole k in [0, levels] with E[k^2] = root^2, for draws `chance` from [0, 1)."""
    low = root.floor()
    up = chance * (2 * low + 1) < root * root - low * low
    return (low + up.float()).clamp(max=levels)


class Update(NamedTuple):
    """A contiguous float32 parameter, its gradient and its states, rounded with draws of `seed`."""

    p: Tensor
    grad: Tensor
    states: tuple[BlockState, ...]
    seed: int


def adamw_states(
    updates: Sequence[Update],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
    step: int,
) -> None:
    """One AdamW step of parameters with states in blocks (mean, mean of squares), in place."""
    unbias = (1 / (1 - betas[0] ** step), (1 - betas[1] ** step) ** -0.5)
    if _run_compiled("i3_adamw_states", updates, lr, *betas, weight_decay, eps, *unbias):
        return
    for p, grad, (mean, square), seed in updates:
        flat_p, flat_g = p.view(-1), grad.reshape(-1)
        for begin, end in _chunks(p.numel(), p):
            w, g = flat_p[begin:end], flat_g[begin:end]
            first, second = draws(begin, end, seed, p.device)
            m = mean._read(begin, end).lerp_(g, 1 - betas[0])
            v = square._read(begin, end).lerp_(g * g, 1 - betas[1]).sqrt_()
            change = unbias[0] * m / (v * unbias[1] + eps)
            w.sub_(lr * (weight_decay * w + change))
            mean._write(begin, m, first)
            square._write(begin, v, second)


def lion_states(
    updates: Sequence[Update], *, lr: float, betas: tuple[float, float], weight_decay: float
) -> None:
    """One Lion step of parameters with a state in blocks (mean), in place."""
    if _run_compiled("i3_lion_states", updates, lr, *betas, weight_decay):
        return
    for p, grad, (mean,), seed in updates:
        flat_p, flat_g = p.view(-1), grad.reshape(-1)
        for begin, end in _chunks(p.numel(), p):
            w, g = flat_p[begin:end], flat_g[begin:end]
            m = mean._read(begin, end)
            w.sub_(lr * (weight_decay * w + m.lerp(g, 1 - betas[0]).sign_()))
            mean._write(begin, m.lerp_(g, 1 - betas[1]), draws(begin, end, seed, p.device)[0])


def _run_compiled(name: str, updates: Sequence[Update], *settings: float) -> bool:
    """Run a compiled step over all parameters, if it fits them; say whether it did.

    It is one call, whose threads share all numbers out: a call a parameter took a sixth of the
    time.
    """
    if not all(_compiled(u.p, u.grad) for u in updates):
        return False
    for bits in {u.states[0].bits for u in updates}:
        some = [u for u in updates if u.states[0].bits == bits]
        tensors = [[u.p for u in some], [u.grad for u in some]]
        for states in zip(*(u.states for u in some), strict=True):
            tensors += [[s.codes for s in states], [s.scales for s in states]]
        tensor_call(
            name,
            len(some),
            bits,
            torch.tensor([u.p.numel() for u in some]),
            torch.tensor([u.seed for u in some]),
            *((ctypes.c_void_p * len(some))(*(x.data_ptr() for x in column)) for column in tensors),
            *(float(x) for x in settings),
        )
    return True


def _chunks(count: int, x: Tensor) -> list[tuple[int, int]]:
    size = CHUNK if x.device.type == "cpu" else DEVICE_CHUNK
    return [(begin, min(count, begin + size)) for begin in range(0, count, size)]


def _compiled(*tensors: Tensor) -> bool:
    fits = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return fits and all(t.is_contiguous() for t in tensors) and tensor_library() is not None
