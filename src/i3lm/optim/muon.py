"""Muon: momentum whose matrix updates are orthogonalised, with AdamW for all else."""

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from i3lm.native import tensor_call, tensor_library
from i3lm.optim.base import Optimizer, ParameterGroup, State
from i3lm.optim.blockwise import BlockState
from i3lm.optim.elementwise import adamw_update
from i3lm.rounding import seed_of

# Quintic Newton-Schulz coefficients a, b, c of the published method (Jordan et al., 2024,
# kellerjordan.github.io/posts/muon): p(x) = a x + b x^3 + c x^5 drives singular values towards 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
BATCH_NUMBERS = 1 << 20  # of the matrices that are orthogonalised together: 4 MB a copy


def orthogonalise(x: Tensor) -> Tensor:
    """Return the nearly orthogonal factors of matrices (N, rows, columns) with rows <= columns.

    All singular values move to about 1 (0.7 to 1.2). The matrices themselves are touched twice
    only: the rounds run on the Gram matrix G = X X^T over its trace |X|^2, where X <- Q X with
    Q = a + b G + c G^2 means G <- Q G Q.
    """
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt()[:, None, None] + 1e-7
    gram /= norm**2
    eye = a * torch.eye(x.shape[1], device=x.device)
    product = None
    for left in reversed(range(ROUNDS)):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + eye
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
    def update(self, group: ParameterGroup, grads: list[Tensor], lr: float) -> None:
        """Update one group; matrices of equal size are orthogonalised together."""
        if "momentum" not in group.state:
            adamw_update(group, grads, lr, self.steps)
            return
        by_shape = defaultdict(list)
        seeds = [seed_of(self.steps, group.first + i) for i in range(len(grads))]
        momenta = group.state["momentum"]
        for matrix in map(_Matrix, group.parameters, grads, momenta, seeds):
            by_shape[_wide_shape(matrix.p)].append(matrix)
        for shape, matrices in by_shape.items():
            together = max(1, BATCH_NUMBERS // matrices[0].p.numel())
            for i in range(0, len(matrices), together):
                _update_alike(shape, matrices[i : i + together], group, lr)


class _Matrix(NamedTuple):
    p: Tensor
    grad: Tensor
    momentum: State
    seed: int  # of the momentum's rounding


def _wide_shape(p: Tensor) -> tuple[int, int, int]:
    """Return the maps, rows and columns of a matrix, turned so that rows <= columns."""
    rows, columns = p.shape
    if (maps := getattr(p, "joined_maps", 1)) > 1:
        return maps, columns // maps, rows
    maps = getattr(p, "stacked_maps", 1)
    rows //= maps
    return (1, columns, rows) if maps == 1 and rows > columns else (maps, rows, columns)


def _update_alike(
    shape: tuple[int, int, int], matrices: list[_Matrix], group: ParameterGroup, lr: float
) -> None:
    """Update parameters that have one shape."""
    maps, rows, columns = shape
    batch = matrices[0].p.new_empty(len(matrices), maps * rows, columns)
    turned = [tuple(batch.shape[1:]) != tuple(m.p.shape) or _joined(m.p) for m in matrices]
    for matrix, out, turn in zip(matrices, batch, turned, strict=True):
        _advance(matrix, group.betas[0], out, turn)
    directions = orthogonalise(batch.view(-1, rows, columns)).view_as(batch)
    for (p, *_), direction, turn in zip(matrices, directions, turned, strict=True):
        high, wide = p.shape if _joined(p) else (columns, rows) if turn else (rows, columns)
        rate = lr * max(1.0, high / wide) ** 0.5
        _apply(p, direction, 1.0 - lr * group.weight_decay, rate, turn)


def _advance(matrix: _Matrix, beta: float, out: Tensor, turn: bool) -> None:
    """`_gather`, where the momentum may be in blocks: one matrix of it at a time is float32."""
    grad, momentum = matrix.grad.contiguous(), matrix.momentum
    if not isinstance(momentum, BlockState):
        _gather(grad, momentum, beta, out, turn)
        return
    whole = torch.empty_like(grad)
    momentum.read(whole.view(-1))
    _gather(grad, whole, beta, out, turn)
    momentum.write(whole.view(-1), matrix.seed)


def _joined(p: Tensor) -> bool:
    return getattr(p, "joined_maps", 1) > 1


def _compiled(*tensors: Tensor) -> bool:
    fits = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return fits and tensors[0].is_contiguous() and tensor_library() is not None


def _gather(grad: Tensor, momentum: Tensor, beta: float, out: Tensor, turn: bool) -> None:
    """Advance the momentum and write the Nesterov step to `out`, transposed with `turn`."""
    if _compiled(momentum, grad, out):
        tensor_call("i3_muon_gather", *grad.shape, grad, momentum, beta, out, int(turn))
        return
    momentum.lerp_(grad, 1 - beta)
    step = torch.lerp(grad, momentum, beta)
    out.copy_(step.t() if turn else step)


def _apply(p: Tensor, direction: Tensor, keep: float, rate: float, turn: bool) -> None:
    """p <- keep p - rate direction."""
    if _compiled(p, direction):
        tensor_call("i3_muon_apply", *p.shape, p, direction, keep, rate, int(turn))
        return
    p.mul_(keep).sub_(direction.t() if turn else direction, alpha=rate)
