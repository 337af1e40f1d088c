"""Fully sharded training: each process holds a part of weights, gradients and optimizer states.

FSDP2 (Zhao et al., arXiv 2304.11277; `torch.distributed.fsdp.fully_shard`) gathers a layer's
weights when it runs and sums its gradients into the parts. All processes must pass through the
network together, also where one alone has something to do: evaluating, drawing a sample, looking at
the loss before a checkpoint. Between two steps the chief therefore leads: it says what comes, and
the others do the same with nothing of their own.

Checkpoints are those of a lone process, gathered a tensor at a time: torch.distributed.checkpoint
has a format of its own, which no other way of training could go on with.

FSDP2 brings the compiler along, 76 MB and 3 s: nothing imports this module that need not.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from i3lm.errors import UserError
from i3lm.launch import Launch
from i3lm.model.network import I3Network
from i3lm.optim import Optimizer
from i3lm.optim.base import scale_gradients
from i3lm.optim.clip import clip_factor, gradient_norm
from i3lm.tensorfile import Deferred
from i3lm.training.checkpoint import Counters, Found, read_newest, save_tensors
from i3lm.training.parallel import Replicas, talking
from i3lm.training.pieces import MAPS, Pieces

# Their names since torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
GO_ON, PASS, FETCH, CHECK = range(4)  # what the chief says
NONE = 1 << 40  # no tensor's number


class Sharded(Replicas):
    """Processes that hold a part of the model each."""

    def __init__(self, launch: Launch, hosts: list[str]) -> None:
        super().__init__(launch, hosts)
        self._found: Found | None = None

    def prepare(self, network: I3Network) -> Iterable[tuple[str, Tensor]]:
        """Keep this process's part of a network; return its whole parameters without numbers."""
        whole = {}
        for name, p in network.named_parameters():
            with talking():
                dist.broadcast(p.detach(), 0)
            whole[name] = torch.empty(p.shape, device="meta")
            for attribute in MAPS:
                if hasattr(p, attribute):
                    setattr(whole[name], attribute, getattr(p, attribute))
        # The residual stream is never written in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        self._device = next(network.parameters()).device
        mesh = init_device_mesh(self._device.type, (self.launch.size,))
        for layer in network.model.layers:
            layer.sharded = True  # type: ignore[assignment]
            fully_shard(layer, mesh=mesh)
        # What is outside the layers is wanted again at once, when the way back begins.
        self._root = fully_shard(network, mesh=mesh, reshard_after_forward=False)
        gather, scatter = cast(Any, _Gather()), cast(Any, _Scatter())  # torch's classes are private
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                module.set_custom_all_gather(gather)
                module.set_custom_reduce_scatter(scatter)
                module.unshard()  # makes the whole parameters, which inference mode must not
                module.reshard()
        register_fsdp_forward_method(network, "loss")
        network.loss = self._led(network.loss)  # type: ignore[method-assign]
        network.register_forward_pre_hook(lambda *_: self._announce(), prepend=True)
        self._shards: dict[str, Any] = dict(network.named_parameters())
        return whole.items()

    def _led(self, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def led(*arguments: Tensor) -> Tensor:
            self._announce()
            return loss(*arguments)

        return led

    def _announce(self) -> None:
        """Take the others along where the chief passes through the network outside a step."""
        if self.chief and not torch.is_grad_enabled():
            self._say(PASS)

    def adopt(self, network: I3Network, optimizer: Optimizer) -> None:
        """Train these from now on."""
        super().adopt(network, optimizer)
        self._pieces = Pieces(optimizer, self._shard, self.launch.rank, self.launch.size)
        self._parts: list[list[tuple[int, Tensor]]] = []  # of each tensor of a checkpoint
        self._weights: dict[str, Deferred] = {}
        self._states: dict[str, Deferred] = {}
        for name, parameter in self._shards.items():
            parts = [
                (rank, torch.empty(end - begin, device="meta"))
                for rank, (begin, end) in enumerate(self._pieces.borders[name])
            ]
            parts[self.launch.rank] = self.launch.rank, self._shard(name)[0]
            self._weights[name] = self._deferred(parts, parameter.shape)
        shapes = {name: t.shape for name, t in optimizer.state_tensors().items()}
        for name, parts in self._pieces.states().items():
            self._states[name] = self._deferred(parts, shapes[name])

    def _deferred(self, parts: list[tuple[int, Tensor]], shape: torch.Size) -> Deferred:
        number = len(self._parts)
        self._parts.append(parts)
        return Deferred(lambda: self._fetch(number).view(shape), shape, parts[0][1].dtype)

    def _shard(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Return this process's part of a parameter and of its gradient, both flat."""
        parameter = self._shards[name]
        grad = parameter.grad
        flat = parameter.detach().to_local().view(-1)
        return flat, None if grad is None else grad.to_local().view(-1)

    # In a step

    def passes(self, more: bool, stop: bool) -> bool:
        """Say whether this step has another pass, of any process."""
        said = torch.tensor([more, stop], dtype=torch.int32)
        with talking():
            dist.all_reduce(said)
        return bool(said[0]) and not said[1]

    def accompany(self) -> None:
        """Go through a pass, there and back, whose gradient is zero."""
        (self.network.loss(*self._nothing()) * 0.0).backward()

    def _nothing(self) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(1, 2, dtype=torch.long, device=self._device)
        return tokens, tokens

    def add_gradients(self) -> None:
        """Do nothing: the way back has summed them."""

    @torch.no_grad()
    def clip(self, limit: float) -> float:
        """Return the norm of all gradients, which are scaled to at most `limit`."""
        mine = [grad for name in self._shards if (grad := self._shard(name)[1]) is not None]
        mine = [grad for grad in mine if grad.numel()]
        square = torch.tensor(gradient_norm(mine), dtype=torch.float64) ** 2
        with talking():
            dist.all_reduce(square)
        norm = float(square.sqrt())
        scale_gradients(mine, clip_factor(norm, limit))
        return norm

    def update(self, factor: float) -> None:
        """Take the optimizer's step at `factor` of its rates."""
        self._pieces.step(factor)

    # Between two steps

    def attend(self) -> None:
        """Do what the chief says, until it goes on; let the others go on, as the chief."""
        if self.chief:
            self._say(GO_ON)
        while not self.chief:
            said = torch.zeros(2, dtype=torch.int64)
            with talking():
                dist.broadcast(said, 0)
            word, number = said.tolist()
            if word == GO_ON:
                break
            if word == PASS:
                with torch.no_grad():
                    self.network.loss(*self._nothing())
            elif word == FETCH:
                self._send(number)
            else:
                self._first_unsound()
        self._root.reshard()  # after a pass without a way back its weights are gathered still

    def _say(self, word: int, number: int = 0) -> None:
        with talking():
            dist.broadcast(torch.tensor([word, number]), 0)

    def _fetch(self, number: int) -> Tensor:
        """Return the whole of a checkpoint's tensor, flat, as the chief."""
        self._say(FETCH, number)
        parts = self._parts[number]
        whole = torch.empty(
            sum(part.numel() for _, part in parts), dtype=parts[0][1].dtype, device=self._device
        )
        for (rank, part), room in zip(parts, _divided(whole, parts), strict=True):
            if rank == 0:
                room.copy_(part)
            elif part.numel():
                with talking():
                    dist.recv(room, rank)
        return whole

    def _send(self, number: int) -> None:
        """Give the chief this process's parts of a checkpoint's tensor."""
        for rank, part in self._parts[number]:
            if rank == self.launch.rank and part.numel():
                with talking():
                    dist.send(part, 0)

    def _first_unsound(self) -> int:
        """Return the number of the first tensor with a value that is not finite, in any process."""
        first = NONE
        for number, parts in enumerate(self._parts):
            mine = [part for rank, part in parts if rank == self.launch.rank]
            if not all(bool(torch.isfinite(part).all()) for part in mine):
                first = number
                break
        found = torch.tensor(first)
        with talking():
            dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    def save(self, run: Path, counters: Counters) -> None:
        """Write a checkpoint, as the chief; raises as `save_checkpoint`."""
        self._say(CHECK)
        number = self._first_unsound()
        if number < NONE:
            name = [*self._weights, *self._states][number]
            raise UserError(f"{name} holds values that are not finite")
        save_tensors(run, self._weights, self._states, self.optimizer.steps, counters)

    def weights(self) -> Mapping[str, Tensor | Deferred]:
        """Return the weights of a model folder."""
        return self._weights

    def keeps(self, step: int) -> bool:
        """Say whether the chief has by itself what a checkpoint needs: it has a part."""
        return False

    def load(self, run: Path) -> tuple[Counters, list[str]]:
        """Read the newest checkpoint, as the chief, before all spread; as `load_newest`."""
        found, notes = read_newest(run, self.network)
        self.optimizer.require_fit(found.states)
        self._found = found
        return found.counters, notes

    @torch.no_grad()
    def spread(self) -> None:
        """Give all their parts of what the chief has loaded; else begin, with states of zero."""
        found, self._found = self._found, None
        steps, loaded = self.from_chief(found.optimizer_steps if found else 0, found is not None)
        self.optimizer.steps = int(steps)
        self._root.reshard()
        for number, name in enumerate([*self._weights, *self._states]):
            if found:
                whole = (found.weights if name in self._weights else found.states)[name]
                self._deal(number, whole)
            elif loaded:
                self._take(number)
            elif name in self._states:
                for rank, part in self._parts[number]:
                    if rank == self.launch.rank:
                        part.zero_()

    def _deal(self, number: int, whole: Tensor) -> None:
        """Give all their parts of a tensor, as the chief."""
        parts = self._parts[number]
        for (rank, part), numbers in zip(parts, _divided(whole.view(-1), parts), strict=True):
            if rank == 0:
                part.copy_(numbers)
            elif part.numel():
                with talking():
                    dist.send(numbers.to(self._device, part.dtype), rank)

    def _take(self, number: int) -> None:
        """Have this process's parts of a tensor from the chief."""
        for rank, part in self._parts[number]:
            if rank == self.launch.rank and part.numel():
                with talking():
                    dist.recv(part, 0)


def _divided(whole: Tensor, parts: list[tuple[int, Tensor]]) -> tuple[Tensor, ...]:
    return whole.split([part.numel() for _, part in parts])


class _Room:
    """Where FSDP2 has its messages."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return room for a message."""
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Room):
    """FSDP2's gathering of weights, which says who was lost."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, **_: Any) -> None:
        with talking():
            _all_gather(output_tensor, input_tensor, group=group)


class _Scatter(_Room):
    """FSDP2's sums of gradients, which say who was lost."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, **_: Any
    ) -> None:
        with talking():
            _reduce_scatter(output_tensor, input_tensor, op=op, group=group)
