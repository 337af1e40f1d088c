"""AdamW and Lion: rules that treat each number by itself."""

from typing import cast

import torch
from torch import Tensor

from i3lm.optim.base import Optimizer, ParameterGroup, scale_gradients
from i3lm.optim.blockwise import BlockState, Update, adamw_states, lion_states
from i3lm.rounding import seed_of

EPS = 1e-8


@torch.no_grad()
def adamw_update(group: ParameterGroup, grads: list[Tensor], lr: float, steps: int) -> None:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) of a group, `steps` counting from 1.

    float32 states go through torch's fused kernel, called directly: `torch.optim` would import
    the compiler, 70 MB.
    """
    whole: list[tuple[Tensor, ...]] = []
    updates: list[Update] = []
    means, squares = group.state["exp_avg"], group.state["exp_avg_sq"]
    columns = (group.parameters, grads, means, squares, group.numbers)
    for p, g, m, v, number in zip(*columns, strict=True):
        if isinstance(m, BlockState):
            states = m, cast(BlockState, v)
            updates.append(Update(p, g.contiguous(), states, seed_of(steps, number)))
        else:
            whole.append((p, g, m, cast(Tensor, v)))
    settings = {"betas": group.betas, "weight_decay": group.weight_decay, "eps": EPS}
    adamw_states(updates, lr=lr, step=steps, **settings)  # type: ignore[arg-type]
    if not whole:
        return
    p_s, g_s, m_s, v_s = map(list, zip(*whole, strict=True))
    count = torch.tensor(float(steps), device=p_s[0].device)  # where the fused kernel reads it
    torch._fused_adamw_(
        p_s,
        g_s,
        m_s,
        v_s,
        [],
        [count for _ in whole],
        amsgrad=False,
        lr=lr,
        beta1=group.betas[0],
        beta2=group.betas[1],
        weight_decay=group.weight_decay,
        eps=EPS,
        maximize=False,
    )


class AdamW(Optimizer):
    """AdamW with decoupled weight decay; two states a parameter."""

    state_names = ("exp_avg", "exp_avg_sq")

    def update(
        self, group: ParameterGroup, grads: list[Tensor], lr: float, scale: float = 1.0
    ) -> None:
        """Update one group from `scale` times `grads`."""
        scale_gradients(grads, scale)
        adamw_update(group, grads, lr, self.steps)


class Lion(Optimizer):
    """Lion (Chen et al., arXiv 2302.06675, algorithm 2); one state a parameter.

    c = beta1 m + (1 - beta1) g; p -= lr (sign(c) + decay p); m = beta2 m + (1 - beta2) g.
    """

    state_names = ("exp_avg",)

    @torch.no_grad()
    def update(
        self, group: ParameterGroup, grads: list[Tensor], lr: float, scale: float = 1.0
    ) -> None:
        """Update one group, a parameter at a time so that temporaries stay small."""
        scale_gradients(grads, scale)
        beta1, beta2 = group.betas
        updates: list[Update] = []
        columns = (group.parameters, grads, group.state["exp_avg"], group.numbers)
        for p, g, m, number in zip(*columns, strict=True):
            if isinstance(m, BlockState):
                updates.append(Update(p, g.contiguous(), (m,), seed_of(self.steps, number)))
                continue
            direction = torch.lerp(g, m, beta1).sign_()
            p.mul_(1 - lr * group.weight_decay).sub_(direction, alpha=lr)
            m.lerp_(g, 1 - beta2)
        lion_states(updates, lr=lr, betas=group.betas, weight_decay=group.weight_decay)
