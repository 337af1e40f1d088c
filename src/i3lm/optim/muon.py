"""Muon: momentum whose matrix updates are orthogonalised, with AdamW for all else."""

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from i3lm.model.stored import portions
from i3lm.native import tensor_call, tensor_library
from i3lm.optim.base import Optimizer, ParameterGroup, State, scale_gradients
from i3lm.optim.blockwise import BlockState
from i3lm.optim.elementwise import adamw_update
from i3lm.rounding import seed_of

# A round is p(x) = a x + b x^3 + c x^5 of every singular value x of X / |X|, which lie in [0, 1].
# Each of these three brings what the last one left of those from LEAST on as near to 1 as a quintic
# can, in the end to between 0.31 and 1.69 (a minimax problem, solved by Remez' algorithm as in "The
# Polar Express", Amsel et al., 2025, arXiv:2505.16932). To come nearer learns less: docs/log.md.
LEAST = 0.0025
COEFFICIENTS = (
    (8.405178, -24.850807, 18.424617),
    (4.077174, -3.035042, 0.572207),
    (3.605791, -2.699633, 0.534012),
)


def orthogonalise(x: Tensor) -> Tensor:
    """Return the nearly orthogonal factors of matrices (N, rows, columns) with rows <= columns.

    Singular values from LEAST |X| on move to about 1 (0.3 to 1.7), smaller ones towards it. The
    matrices themselves are touched twice only: the rounds run on the Gram matrix G = X X^T over its
    trace |X|^2, where X <- Q X with Q = a + b G + c G^2 means G <- Q G Q. native/muon.c does the
    same, with the rest of a step.
    """
    gram = x @ x.mT
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt()[:, None, None] + 1e-7
    gram /= norm**2
    eye = torch.eye(x.shape[1], device=x.device)
    product = None
    for left, (a, b, c) in zip(reversed(range(len(COEFFICIENTS))), COEFFICIENTS, strict=True):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * eye
        product = q if product is None else q @ product
        if left:
            gram = q @ gram @ q
    assert product is not None
    return (product / norm) @ x


class Muon(Optimizer):
    """Muon for one group of matrices, AdamW for the other groups.

    A matrix update has the root-mean-square of an orthogonal matrix, scaled by
    sqrt(max(1, rows / columns)), so one rate serves all shapes. `betas[0]` is the momentum.
    Where several maps share a matrix, each is orthogonalised by itself: `stacked_maps` blocks of
    rows, as the down-projections of queries, keys and values, or `joined_maps` blocks of columns,
    as the heads of the output projection, which together have the scale of the whole.
    """

    def __init__(
        self, matrices: ParameterGroup, others: list[ParameterGroup], bits: int = 32
    ) -> None:
        self.matrices = matrices
        super().__init__([matrices, *others], bits)

    def names_of(self, group: ParameterGroup) -> tuple[str, ...]:
        """Return the names of the states that parameters of `group` have."""
        return ("momentum",) if group is self.matrices else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def update(
        self, group: ParameterGroup, grads: list[Tensor], lr: float, scale: float = 1.0
    ) -> None:
        """Update one group. Momenta in blocks are float32 for a few matrices at a time."""
        if "momentum" not in group.state:
            scale_gradients(grads, scale)
            adamw_update(group, grads, lr, self.steps)
            return
        seeds = [seed_of(self.steps, number) for number in group.numbers]
        triples = zip(group.parameters, grads, group.state["momentum"], strict=True)
        matrices = [_matrix(*triple, group, lr) for triple in triples]
        if not any(isinstance(momentum, BlockState) for momentum in group.state["momentum"]):
            _advance(matrices, group.betas[0], scale)
            return
        for part in portions([m.p.numel() for m in matrices]):
            whole = [_read(m.momentum) for m in matrices[part]]
            together = [m._replace(momentum=w) for m, w in zip(matrices[part], whole, strict=True)]
            _advance(together, group.betas[0], scale)
            for matrix, state, seed in zip(matrices[part], whole, seeds[part], strict=True):
                if isinstance(matrix.momentum, BlockState):
                    matrix.momentum.write(state.view(-1), seed)


class _Matrix(NamedTuple):
    """A parameter and what its update needs: p <- keep p - rate direction."""

    p: Tensor
    grad: Tensor
    momentum: State
    maps: int
    joined: bool  # the maps are blocks of columns, else of rows
    keep: float
    rate: float


def _matrix(p: Tensor, grad: Tensor, momentum: State, group: ParameterGroup, lr: float) -> _Matrix:
    joined = getattr(p, "joined_maps", 1)
    maps = joined if joined > 1 else getattr(p, "stacked_maps", 1)
    rows = p.shape[0] // (maps if joined == 1 else 1)
    rate = lr * max(1.0, rows / p.shape[1]) ** 0.5
    keep = 1.0 - lr * group.weight_decay
    return _Matrix(p, grad.contiguous(), momentum, maps, joined > 1, keep, rate)


def _read(momentum: State) -> Tensor:
    """Return a momentum as float32 numbers, flat where it is in blocks."""
    if not isinstance(momentum, BlockState):
        return momentum
    whole = torch.empty(momentum.count, dtype=torch.float32, device=momentum.scales.device)
    momentum.read(whole)
    return whole


def _advance(matrices: list[_Matrix], beta: float, scale: float) -> None:
    """Advance the momenta, which are tensors, and update the parameters."""
    if all(_compiled(m.p, m.grad, m.momentum) for m in matrices):
        _advance_compiled(matrices, beta, scale)
        return
    scale_gradients([m.grad for m in matrices], scale)
    alike: dict[tuple, list[_Matrix]] = {}  # one product serves all maps of a shape
    for m in matrices:
        alike.setdefault((m.p.shape, m.maps, m.joined, m.p.device), []).append(m)
    for group in alike.values():
        _advance_alike(group, beta)


def _advance_alike(matrices: list[_Matrix], beta: float) -> None:
    """Advance matrices of one shape, whose maps are as many and lie in the same way."""
    steps = []
    for m in matrices:
        momentum = m.momentum.view_as(m.p)  # type: ignore[union-attr]
        momentum.lerp_(m.grad, 1 - beta)
        steps.append(torch.lerp(m.grad, momentum, beta))
    maps, side = matrices[0].maps, 2 if matrices[0].joined else 1
    parts = torch.cat(torch.stack(steps).chunk(maps, side))
    tall = parts.shape[1] > parts.shape[2]
    x = orthogonalise(parts.mT if tall else parts)
    directions = torch.cat((x.mT if tall else x).chunk(maps), side)
    for m, direction in zip(matrices, directions, strict=True):
        m.p.mul_(m.keep).sub_(direction, alpha=m.rate)


def _compiled(*tensors: Tensor | BlockState) -> bool:
    return tensor_library() is not None and all(
        isinstance(t, Tensor)
        and t.dtype == torch.float32
        and t.device.type == "cpu"
        and t.is_contiguous()
        for t in tensors
    )


def _advance_compiled(matrices: list[_Matrix], beta: float, scale: float) -> None:
    def addresses(tensors: Iterable[State]) -> ctypes.Array:
        return (ctypes.c_void_p * len(matrices))(*(t.data_ptr() for t in tensors))  # type: ignore[union-attr]

    sizes = [(*m.p.shape, m.maps, int(m.joined)) for m in matrices]
    tensor_call(
        "i3_muon",
        len(matrices),
        *(addresses(tensors) for tensors in list(zip(*matrices, strict=True))[:3]),
        torch.tensor(sizes),
        torch.tensor([(m.keep, m.rate) for m in matrices]),
        float(scale),
        float(beta),
        len(COEFFICIENTS),
        torch.tensor(COEFFICIENTS),
    )
