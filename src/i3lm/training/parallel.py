"""What several processes that train one model tell each other, through `torch.distributed`.

Each process takes its share of a step's sequences and all sum their gradients, so a step is the
step of one process but for the order of sums. Rank 0, the chief, decides, speaks and writes.

Gradients are summed after the way back, in buckets, not by DistributedDataParallel: it imports the
compiler (85 MB and 3 s a process, more than i3-mini itself), refuses matrices that are stored in 4
bits, and starts to send before all have agreed whether the step counts.
"""

import contextlib
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from i3lm.launch import Launch
from i3lm.model.network import I3Network
from i3lm.model.stored import state_of
from i3lm.optim import Optimizer
from i3lm.optim.clip import clip_factor, gradient_norm
from i3lm.tensorfile import Deferred
from i3lm.training.checkpoint import Counters, load_newest, save_checkpoint

BUCKET = 25 << 18  # numbers summed at once: 25 MB, as DistributedDataParallel has it
_PLACE = re.compile(r"^\[\S*\] ")  # of gloo's source code
LAG_STEPS = 10  # after so many steps a slow process is named
LAG = 2.0  # times what the fastest takes


class Lost(Exception):
    """Another process did not answer; says what the network said, and what step is `saved`."""

    def __init__(self, text: str, saved: int | None = None) -> None:
        super().__init__(text)
        self.saved = saved


class Diverged(Exception):
    """The loss or its gradient is not finite, or the loss has exploded; says which."""


class Interrupted(Exception):
    """Training was asked to stop; it stands between two steps."""


class Alone:
    """A single process: what `Replicas` does, with nobody to talk to."""

    chief = True
    _scale = 1.0  # of the gradients in the next update

    def __init__(self, launch: Launch | None = None) -> None:
        self.launch = launch or Launch()

    def prepare(self, network: I3Network) -> Iterable[tuple[str, Tensor]]:
        """Make a network ready; return the named parameters that its optimizer is made for."""
        return network.named_parameters()

    def adopt(self, network: I3Network, optimizer: Optimizer) -> None:
        """Train these from now on."""
        self.network, self.optimizer = network, optimizer
        self._parameters = list(network.parameters())  # asking each step takes milliseconds

    def spread(self) -> None:
        """Give the chief's weights and states to all."""

    def share(self, sequences: int) -> tuple[int, int]:
        """Return the first of a step's sequences that this process takes, and how many."""
        return 0, sequences

    def divisor(self, sequences: int) -> int:
        """Return how many sequences a step's gradient is the mean of."""
        return sequences

    def together(self, step: int) -> bool:
        """Say whether all processes hold the same weights after `step` steps."""
        return True

    def from_chief(self, *values: float) -> list[float]:
        """Return the chief's numbers."""
        return list(values)

    def passes(self, more: bool, stop: bool) -> bool:
        """Say whether this step has another pass; `more`: this process has sequences left."""
        return more and not stop

    def accompany(self) -> None:
        """Go through a pass with no sequence, where others need this process for theirs."""

    def settle(self, step: int, loss: float, stop: bool, seconds: float) -> float:
        """Return the loss over all processes' sequences; Interrupted where one was told to stop.

        `loss`: the part of the mean that this process's sequences give; `seconds`: what they took;
        `step`: the steps that will have been made.
        """
        if stop:
            raise Interrupted
        return loss

    def add_gradients(self) -> None:
        """Sum gradients over all processes, in place."""

    def clip(self, limit: float) -> float:
        """Return the norm of all gradients, which `update` scales to at most `limit`."""
        norm = gradient_norm([p.grad for p in self._parameters if p.grad is not None])
        self._scale = clip_factor(norm, limit)
        return norm

    def update(self, factor: float) -> None:
        """Take the optimizer's step at `factor` of its rates."""
        scale, self._scale = self._scale, 1.0
        self.optimizer.step(factor, scale)

    def defer(self, error: Diverged) -> None:
        """Raise what went wrong in a step, or keep it until all meet and drop the step."""
        raise error

    def keeps(self, step: int) -> bool:
        """Say whether the chief has by itself what a checkpoint needs, once others are lost."""
        return self.together(step)

    def stepped(self, step: int) -> None:
        """Do what follows an optimizer's step, `step` counting from 1."""

    def attend(self) -> None:
        """Between two steps: do what the chief needs of this process, until it goes on."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps beside weights and optimizer states."""
        return {}

    def save(self, run: Path, counters: Counters) -> None:
        """Write a checkpoint, as the chief; raises as `save_checkpoint`."""
        save_checkpoint(run, self.network, self.optimizer, counters, self.state())

    def load(self, run: Path) -> tuple[Counters, list[str]]:
        """Read the newest checkpoint, as the chief, before all spread; as `load_newest`."""
        return load_newest(run, self.network, self.optimizer, self.state())

    def weights(self) -> Mapping[str, Tensor | Deferred] | None:
        """Return the weights of a model folder, where they are not those of the network."""
        return None

    def slow(self) -> str | None:
        """Return a sentence on a process that has begun to hold up the others."""
        return None


class Replicas(Alone):
    """Every process holds the whole model and its states; gradients are summed at each step."""

    def __init__(self, launch: Launch, hosts: list[str]) -> None:
        super().__init__(launch)
        self.hosts, self.chief = hosts, launch.rank == 0
        self._times: list[list[float]] = []
        self._named: set[int] = set()

    def spread(self) -> None:
        """Give the chief's weights and states to all."""
        (steps,) = self.from_chief(self.optimizer.steps)
        self.optimizer.steps = int(steps)
        with talking():
            for tensor in state_of(self.network).values():
                dist.broadcast(tensor, 0)
            for tensor in {**self.optimizer.state_tensors(), **self.state()}.values():
                if steps:
                    dist.broadcast(tensor, 0)
                else:
                    tensor.zero_()  # as at every beginning: nothing to send

    def share(self, sequences: int) -> tuple[int, int]:
        """Return this process's stretch of a step's sequences; stretches differ by one at most."""
        rank, size = self.launch.rank, self.launch.size
        begin, end = (sequences * r // size for r in (rank, rank + 1))
        return begin, end - begin

    def from_chief(self, *values: float) -> list[float]:
        """Return the chief's numbers."""
        numbers = torch.tensor(values, dtype=torch.float64)
        with talking():
            dist.broadcast(numbers, 0)
        return numbers.tolist()

    def settle(self, step: int, loss: float, stop: bool, seconds: float) -> float:
        """Return the loss over all processes' sequences; Interrupted where one was told to stop."""
        times = [0.0] * self.launch.size
        times[self.launch.rank] = seconds
        numbers = torch.tensor([loss, float(stop), *times], dtype=torch.float64)
        with talking():
            dist.all_reduce(numbers)
        loss, stops, *times = numbers.tolist()
        if stops:
            raise Interrupted
        self._times = [*self._times[1 - LAG_STEPS :], times]
        return loss

    def add_gradients(self) -> None:
        """Sum gradients over all processes, in place."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        with talking():
            for bucket in _buckets(gradients):
                flat = torch.cat([g.flatten() for g in bucket])
                dist.all_reduce(flat)
                parts = flat.split([g.numel() for g in bucket])
                torch._foreach_copy_(
                    bucket, [p.view_as(g) for p, g in zip(parts, bucket, strict=True)]
                )

    def slow(self) -> str | None:
        """Return a sentence on a process that has begun to hold up the others."""
        if len(self._times) < LAG_STEPS:
            return None
        medians = [statistics.median(column) for column in zip(*self._times, strict=True)]
        fastest = min(medians)
        for rank, seconds in enumerate(medians):
            if seconds > LAG * fastest and rank not in self._named:
                self._named.add(rank)
                return (
                    f"process {rank} on {self.hosts[rank]} is slow: a step's share takes it "
                    f"{seconds:.2g} s, the fastest {fastest:.2g} s; all wait "
                    f"{seconds - fastest:.2g} s a step for it"
                )
        return None


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Turn what a broken or silent connection raises into Lost."""
    try:
        yield
    except RuntimeError as error:  # also torch.distributed's own
        raise Lost(_PLACE.sub("", str(error).splitlines()[0]).partition(". This is")[0]) from None
