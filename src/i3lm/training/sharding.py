"""Fully sharded training: each process keeps a piece of each weight and gradient (FSDP2).

A layer is whole only while it runs, by `torch.distributed.fsdp.fully_shard`. An update takes a few
parameters at a time, whole on all processes, which then keep their pieces: Muon needs whole
matrices, and states in blocks keep their blocks. The optimizer's states are whole everywhere; in 4
bits they are an eighth of what weights and gradients were. FSDP2 imports the compiler, 100 MB a
process: it pays from about 25 million parameters on.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from i3lm.launch import Launch
from i3lm.model.network import I3Network
from i3lm.optim.clip import gradient_norm
from i3lm.training.parallel import Replicas, talking


class Piece:
    """A parameter of which this process has some rows, in the form of `model.stored`."""

    def __init__(self, sharded: Any) -> None:
        self.sharded, self.shape = sharded, sharded.shape

    def exact(self, out: Tensor) -> Tensor:
        """Return the whole parameter; all processes ask for the same at the same time."""
        with talking():
            return out.copy_(self.sharded.detach().full_tensor())

    def gradient(self) -> Tensor:
        """Return the whole gradient, and let the piece of it go."""
        with talking():
            whole = self.sharded.grad.full_tensor()
        self.sharded.grad = None
        return whole

    def write(self, x: Tensor, seed: int) -> None:
        """Keep this process's rows of `x`."""
        rank, size = dist.get_rank(), dist.get_world_size()
        rows = -(-x.shape[0] // size)  # as FSDP2 divides
        self.sharded.detach().to_local().copy_(x[rank * rows : (rank + 1) * rows])


class Shards(Replicas):
    """Processes that share out weights and gradients."""

    lockstep = True

    def __init__(self, launch: Launch, hosts: list[str]) -> None:
        super().__init__(launch, hosts)
        self._depth = 0

    def shard(self, network: I3Network) -> Iterable[tuple[str, Tensor]]:
        """Share out the network; return what stands for its parameters in an optimizer."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        # It warns of views, which must not be written to in place; nothing here does so.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
        with talking():  # the chief's numbers, before each keeps a piece
            for parameter in network.parameters():
                dist.broadcast(parameter.detach(), 0)
        attributes = {name: dict(p.__dict__) for name, p in network.named_parameters()}
        self._parts: list[Any] = [*network.model.layers, network]
        for part in self._parts:
            fully_shard(part)
            part.set_gradient_divide_factor(1.0)  # sums, as the loss is a share of the mean
            part.set_force_sum_reduction_for_comms(True)  # gloo has nothing else
        register_fsdp_forward_method(network, "loss")
        self._names: dict[str, Any] = dict(network.named_parameters())
        for name, sharded in self._names.items():
            proxy = torch.empty(0, dtype=sharded.dtype, device=sharded.device)
            proxy.__dict__.update(attributes[name])  # which maps share a matrix
            proxy.stored = Piece(sharded)  # type: ignore[attr-defined]
            yield name, proxy

    def microbatch(self, wanted: int) -> int:
        """Return the chief's: all go through the layers together."""
        return int(self.from_chief(wanted)[0])

    def passes(self, sequences: int) -> int:
        """Return the longest share of a step's sequences."""
        return -(-sequences // self.launch.size)

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Do nothing: the way back has summed them."""

    def clip(self, network: nn.Module, limit: float) -> float:
        """Scale the pieces of all gradients so that their norm is at most `limit`."""
        pieces = [p.grad.to_local() for p in self._names.values() if p.grad is not None]
        squares = torch.tensor(gradient_norm(pieces) ** 2, dtype=torch.float64)
        with talking():
            dist.all_reduce(squares)
        norm = float(squares.sqrt())
        if norm > limit:
            torch._foreach_mul_(pieces, limit / norm)
        return norm

    @contextlib.contextmanager
    def whole(self, keep: bool = False) -> Iterator[None]:
        """Hold all weights in the network within the block, which all processes enter.

        With `keep`, what they are at its end is what they are from then on.
        """
        self._depth += 1
        try:
            if self._depth == 1:
                for part in self._parts:
                    part.set_reshard_after_forward(False, recurse=False)
                    with talking():
                        part.unshard()
            yield
            if keep:
                for name, whole in self.network.named_parameters():
                    Piece(self._names[name]).write(whole.detach(), 0)
        finally:
            self._depth -= 1
            if not self._depth:
                for part in self._parts:
                    part.reshard()
                for layer in self._parts[:-1]:
                    layer.set_reshard_after_forward(True, recurse=False)

    def spread(self) -> None:
        """Give the chief's weights and states to all."""
        for sharded in self._names.values():
            sharded.grad = None  # of a step that was given up
        with self.whole(keep=True):
            super().spread()
