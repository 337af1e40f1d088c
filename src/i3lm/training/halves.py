"""The gradients of a step by two threads, each with half of the sequences and of the cores.

A product that all cores share waits at its end for the slowest of them, and what torch, autograd
and Python do between the products keeps one core at work while the others wait. Two threads that
each take half of a microbatch wait for each other once a step. They share the
weights and have gradients of their own, which are added in order: the result does not depend on
which of them is faster.
"""

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor, nn

from i3lm.training.config import TrainConfig

# Seconds that a thread waits for the other's Python: between two products it needs but a moment,
# and Python's own 5 ms cost 4 % of a step.
TURN = 1e-4
# Adds up the gradients of one half of the step's sequences in a network; returns the half's loss.
Work = Callable[[Any, int], Tensor]


class Halves:
    """Two threads for the halves of a network's steps; `threads`: of torch, both together."""

    def __init__(self, network: nn.Module, threads: int) -> None:
        self._networks = (network, _twin(network))
        self._pools = [ThreadPoolExecutor(1, "i3lm-half") for _ in self._networks]
        for pool in self._pools:
            pool.submit(torch.set_num_threads, threads // 2).result()
        torch.set_num_threads(threads)  # of threads that come later

    def run(self, work: Work) -> Tensor:
        """Run `work` for half 0 and half 1; leave the sum of the gradients in the network.

        Returns the sum of the losses. What `work` raises is raised here, after both have ended.
        """
        mine, other = (network.parameters() for network in self._networks)
        with _short_turns():
            tasks = [
                pool.submit(work, network, number)
                for number, (pool, network) in enumerate(
                    zip(self._pools, self._networks, strict=True)
                )
            ]
            try:
                wait(tasks)
            finally:  # also where a signal's handler raised: nobody may still write gradients
                wait(tasks)
        try:
            total = tasks[0].result() + tasks[1].result()
            _add_gradients(list(mine), list(other))
        finally:
            self._networks[1].zero_grad()
        return total

    def close(self) -> None:
        """End the threads."""
        for pool in self._pools:
            pool.shutdown()


def halves_of(
    network: nn.Module, config: TrainConfig, device: torch.device, microbatch: int
) -> Halves | None:
    """Return halves where they pay."""
    if device.type != "cpu" or not pays(config, microbatch):
        return None
    return Halves(network, torch.get_num_threads())


def pays(config: TrainConfig, microbatch: int) -> bool:
    """Say whether there are cores and sequences for two halves, and none of the means to save
    memory is in use: a second set of gradients takes as much as the first."""
    whole = (config.qat_bits or config.weight_bits, config.state_bits or 32) == (32, 32)
    if not whole or (config.gradient_checkpointing or "none") != "none":
        return False
    if config.memory is not None or config.return_memory or config.compile:
        return False
    return min(torch.get_num_threads(), microbatch) > 1


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(TURN, before))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _twin(network: nn.Module) -> nn.Module:
    """Return the network again: the same weights in memory, gradients of its own."""
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, shared)


@torch.no_grad()
def _add_gradients(mine: list[Tensor], other: list[Tensor]) -> None:
    pairs = [(p, q.grad) for p, q in zip(mine, other, strict=True) if q.grad is not None]
    for p, grad in pairs:
        if p.grad is None:
            p.grad = grad
    sums = [(p.grad, grad) for p, grad in pairs if p.grad is not grad]
    if sums:
        torch._foreach_add_(*map(list, zip(*sums, strict=True)))
