"""AdamW and Lion: rules that treat each number by itself."""

import torch
from torch import Tensor

from i3lm.optim.base import Optimizer, ParameterGroup


def adamw_update(
    group: ParameterGroup, grads: list[Tensor], lr: float, steps: int, eps: float = 1e-8
) -> None:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) through torch's fused kernel.

    The kernel is called directly: `torch.optim` would import the compiler, 70 MB.
    """
    count = torch.tensor(float(steps))
    torch._fused_adamw_(
        group.parameters,
        grads,
        group.state["exp_avg"],
        group.state["exp_avg_sq"],
        [],
        [count for _ in grads],
        amsgrad=False,
        lr=lr,
        beta1=group.betas[0],
        beta2=group.betas[1],
        weight_decay=group.weight_decay,
        eps=eps,
        maximize=False,
    )


class AdamW(Optimizer):
    """AdamW with decoupled weight decay; two float32 states a parameter."""

    state_names = ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def update(self, group: ParameterGroup, grads: list[Tensor], lr: float) -> None:
        """Update one group."""
        adamw_update(group, grads, lr, self.steps)


class Lion(Optimizer):
    """Lion (Chen et al., arXiv 2302.06675, algorithm 2); one float32 state a parameter.

    c = beta1 m + (1 - beta1) g; p -= lr (sign(c) + decay p); m = beta2 m + (1 - beta2) g.
    """

    state_names = ("exp_avg",)

    @torch.no_grad()
    def update(self, group: ParameterGroup, grads: list[Tensor], lr: float) -> None:
        """Update one group, a parameter at a time so that temporaries stay small."""
        beta1, beta2 = group.betas
        for p, g, m in zip(group.parameters, grads, group.state["exp_avg"], strict=True):
            direction = torch.lerp(g, m, beta1).sign_()
            p.mul_(1 - lr * group.weight_decay).sub_(direction, alpha=lr)
            m.lerp_(g, 1 - beta2)
