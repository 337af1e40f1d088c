"""AdamW and Lion with states of 4 or 8 bits, as drop-in `torch.optim.Optimizer`s for any model.

A module of its own, since `torch.optim` imports the compiler, 70 MB; i3lm's training does
without it.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from i3lm.optim.blockwise import BlockState, Update, adamw_states, lion_states
from i3lm.rounding import seed_of


class _LowBit(torch.optim.Optimizer):
    """Holds each state as `NAME.codes` and `NAME.scales`, so that `state_dict` is plain tensors.

    Parameters may be float32, bfloat16, float16 or float64 in any layout; the arithmetic is
    float32. Gradients must be dense. Every parameter of any size has its states in blocks.
    """

    bits: ClassVar[int]
    signed: ClassVar[dict[str, bool]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return the closure's value, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        count = 0
        for group in self.param_groups:
            for p in group["params"]:
                count += 1
                if p.grad is not None and p.numel():
                    self._step_one(p, group, count)
        return loss

    def _step_one(self, p: Tensor, group: dict[str, Any], number: int) -> None:
        if p.grad is None or p.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} needs dense gradients")
        state = self.state[p]
        if not state:
            state["step"] = 0
            for name, signed in self.signed.items():
                empty = BlockState.zeros(p.numel(), self.bits, signed=signed, device=p.device)
                state[f"{name}.codes"], state[f"{name}.scales"] = empty.codes, empty.scales
        state["step"] += 1
        blocks = [
            BlockState(
                state[f"{name}.codes"], state[f"{name}.scales"], p.numel(), self.bits, signed
            )
            for name, signed in self.signed.items()
        ]
        work = p.detach().to(torch.float32).contiguous()
        grad = p.grad.to(torch.float32).contiguous()
        seed = seed_of(state["step"], number)
        self._rule(work, grad, blocks, group, state["step"], seed)
        if work.data_ptr() != p.data_ptr():
            p.copy_(work)

    def _rule(
        self,
        p: Tensor,
        grad: Tensor,
        states: list[BlockState],
        group: dict[str, Any],
        step: int,
        seed: int,
    ) -> None:
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave; codes stay bytes and scales float32, whatever p's type."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        saved = [k for group in state_dict["param_groups"] for k in group["params"]]
        for key, p in zip(saved, parameters, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, Tensor):
                    value = value.detach().clone().to(p.device)
                self.state[p][name] = value


class _AdamW(_LowBit):
    signed: ClassVar[dict[str, bool]] = {"exp_avg": True, "exp_avg_sq": False}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        _check(lr, betas, weight_decay)
        if eps < 0:
            raise ValueError(f"eps {eps} must not be negative")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def _rule(
        self,
        p: Tensor,
        grad: Tensor,
        states: list[BlockState],
        group: dict[str, Any],
        step: int,
        seed: int,
    ) -> None:
        settings = {name: group[name] for name in ("betas", "eps", "weight_decay")}
        update = Update(p, grad, tuple(states), seed)
        adamw_states([update], lr=float(group["lr"]), step=step, **settings)


class _Lion(_LowBit):
    signed: ClassVar[dict[str, bool]] = {"exp_avg": True}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1e-2,
    ) -> None:
        _check(lr, betas, weight_decay)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _rule(
        self,
        p: Tensor,
        grad: Tensor,
        states: list[BlockState],
        group: dict[str, Any],
        step: int,
        seed: int,
    ) -> None:
        settings = {name: group[name] for name in ("betas", "weight_decay")}
        update = Update(p, grad, tuple(states), seed)
        lion_states([update], lr=float(group["lr"]), **settings)


def _check(lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    if not lr >= 0:
        raise ValueError(f"lr {lr} must not be negative")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas {betas} must be in [0, 1)")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay {weight_decay} must not be negative")


class AdamW8bit(_AdamW):
    """AdamW (arXiv 1711.05101) with states of 8 bits a number (`i3lm.optim.blockwise`)."""

    bits = 8


class AdamW4bit(_AdamW):
    """AdamW (arXiv 1711.05101) with states of 4 bits a number (`i3lm.optim.blockwise`)."""

    bits = 4


class Lion8bit(_Lion):
    """Lion (arXiv 2302.06675) with a state of 8 bits a number (`i3lm.optim.blockwise`)."""

    bits = 8


class Lion4bit(_Lion):
    """Lion (arXiv 2302.06675) with a state of 4 bits a number (`i3lm.optim.blockwise`)."""

    bits = 4
