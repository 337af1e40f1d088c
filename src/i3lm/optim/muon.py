"""Muon: momentum whose matrix updates are orthogonalised, with AdamW for all else."""

from collections import defaultdict

import torch
from torch import Tensor

from i3lm.optim.base import Optimizer, ParameterGroup
from i3lm.optim.elementwise import adamw_update

# Quintic Newton-Schulz coefficients a, b, c of the published method (Jordan et al., 2024,
# kellerjordan.github.io/posts/muon): p(x) = a x + b x^3 + c x^5 drives singular values towards 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def orthogonalise(batch: Tensor, low: torch.dtype = torch.float32) -> Tensor:
    """Return the nearly orthogonal factors of matrices (N, rows, columns) with rows <= columns.

    All singular values move to about 1 (0.7 to 1.2). Matrices much wider than high are touched
    twice only: the rounds run on the Gram matrix G = X X^T, where X <- Q X with
    Q = a + b G + c G^2 means G <- Q G Q. Nearly square ones are iterated as they are, in the
    precision `low`, where bfloat16 is known to do.
    """
    x = batch / (batch.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    a, b, c = COEFFICIENTS
    if 3 * x.shape[1] > x.shape[2]:
        x = x.to(low)
        for _ in range(ROUNDS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.float()
    gram = x @ x.mT
    eye = torch.eye(x.shape[1], device=x.device)
    product = eye.expand_as(gram)
    for _ in range(ROUNDS):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * eye
        product = q @ product
        gram = q @ gram @ q
    return product @ x


class Muon(Optimizer):
    """Muon for one group of matrices, AdamW for the other groups.

    A matrix update has the root-mean-square of an orthogonal matrix, scaled by
    sqrt(max(1, rows / columns)), so one rate serves all shapes. `betas[0]` is the momentum.
    """

    def __init__(
        self,
        matrices: ParameterGroup,
        others: list[ParameterGroup],
        low: torch.dtype = torch.float32,
    ) -> None:
        super().__init__([matrices, *others])
        self.low = low
        matrices.state = {"momentum": [torch.zeros_like(p) for p in matrices.parameters]}
        for group in others:
            group.state = {
                name: [torch.zeros_like(p) for p in group.parameters]
                for name in ("exp_avg", "exp_avg_sq")
            }

    @torch.no_grad()
    def update(self, group: ParameterGroup, grads: list[Tensor], lr: float) -> None:
        """Update one group; matrices of equal size are orthogonalised together."""
        if "momentum" not in group.state:
            adamw_update(group, grads, lr, self.steps)
            return
        beta = group.betas[0]
        by_size: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p, g, m in zip(group.parameters, grads, group.state["momentum"], strict=True):
            m.lerp_(g, 1 - beta)
            nesterov = torch.lerp(g, m, beta)
            maps = getattr(p, "stacked_maps", 1)  # q, k, v in one matrix: an update for each
            for part, update in zip(p.chunk(maps), nesterov.chunk(maps), strict=True):
                by_size[min(part.shape), max(part.shape)].append((part, update))
        for pairs in by_size.values():
            wide = [u.t() if u.shape[0] > u.shape[1] else u for _, u in pairs]
            orthogonal = orthogonalise(torch.stack(wide), self.low)
            for (part, _), ortho in zip(pairs, orthogonal, strict=True):
                rows, columns = part.shape
                direction = ortho.t() if rows > columns else ortho
                part.mul_(1 - lr * group.weight_decay)
                part.sub_(direction, alpha=lr * max(1.0, rows / columns) ** 0.5)
