"""DiLoCo: training over slow links (Douillard et al., arXiv 2311.08105).

Each process steps by itself on its share of each step's sequences. Every so many steps all add up
how far they came, in 4 or 8 bits a number, and take one outer step of Nesterov momentum along the
mean. What rounding leaves out goes into the process's next exchange (error feedback, Seide et al.,
Interspeech 2014). The matrices are low-rank factors already, so few numbers go over the link.

torchft's DiLoCo was tried: it wants optimizers of torch.optim, a server of its own, and rounds in
Triton on GPUs only.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from i3lm.launch import Launch
from i3lm.model.network import I3Network
from i3lm.model.stored import state_of
from i3lm.optim import Optimizer
from i3lm.optim.blockwise import BlockState
from i3lm.rounding import seed_of
from i3lm.training.checkpoint import OUTER
from i3lm.training.parallel import Diverged, Interrupted, Replicas, talking

OUTER_RATE, OUTER_MOMENTUM = 0.7, 0.9  # the paper's


class LocalSteps(Replicas):
    """Processes that meet every `every` steps, and after step `last`."""

    def __init__(
        self, launch: Launch, hosts: list[str], every: int, last: int | None, bits: int
    ) -> None:
        super().__init__(launch, hosts)
        self.every, self.last, self.bits = every, last, bits
        self._seconds = 0.0
        self._trouble: str | None = None

    def adopt(self, network: I3Network, optimizer: Optimizer) -> None:
        """Train these from now on."""
        super().adopt(network, optimizer)
        self._weights = list(state_of(network).values())
        self._anchor = _flat(self._weights)
        self._momentum = torch.zeros_like(self._anchor)
        self._owed = torch.zeros_like(self._anchor)  # by this process: what rounding left out

    def spread(self) -> None:
        """Give the chief's weights and states to all."""
        super().spread()
        self._anchor.copy_(_flat(self._weights))
        self._owed.zero_()
        self._seconds, self._trouble = 0.0, None

    def state(self) -> dict[str, Tensor]:
        """Return the outer momentum, for a checkpoint."""
        return {f"{OUTER}momentum": self._momentum}

    def divisor(self, sequences: int) -> int:
        """Return how many sequences a step's gradient is the mean of: this process's."""
        return self.share(sequences)[1]

    def together(self, step: int) -> bool:
        """Say whether all processes hold the same weights after `step` steps."""
        return step % self.every == 0 or step == self.last

    def settle(self, step: int, loss: float, stop: bool, seconds: float) -> float:
        """Return the loss, of this process's sequences unless all meet after this step.

        One that was told to stop waits here for the others; all then meet, and Interrupted ends
        them.
        """
        self._seconds += seconds
        if not (stop or self.together(step)):
            return loss
        seconds, self._seconds = self._seconds, 0.0
        try:
            return super().settle(step, loss / self.launch.size, stop, seconds)
        except Interrupted:
            self._meet(step)
            raise

    def add_gradients(self) -> None:
        """Leave each process its own."""

    def defer(self, error: Diverged) -> None:
        """Keep what went wrong until all meet."""
        self._trouble = self._trouble or str(error)

    def stepped(self, step: int) -> None:
        """Meet the others where it is time; Diverged where one of them has."""
        if self.together(step):
            self._meet(step)

    @torch.no_grad()
    def _meet(self, step: int) -> None:
        """Take the outer step: all end at the same weights."""
        trouble = torch.tensor([float(self._trouble is not None)])
        with talking():
            dist.all_reduce(trouble)
        if trouble:
            text = self._trouble or "the loss exploded in another process"
            raise Diverged(text)
        self._owed += self._anchor - _flat(self._weights)
        # Meetings are some steps apart, which may be no even sequence: each has a draw of its own.
        mean = self._mean_of_all(seed_of(0, step * self.launch.size + self.launch.rank))
        self._momentum.mul_(OUTER_MOMENTUM).add_(mean)
        self._anchor.sub_(mean.add_(self._momentum, alpha=OUTER_MOMENTUM), alpha=OUTER_RATE)
        parts = self._anchor.split([w.numel() for w in self._weights])
        for weight, part in zip(self._weights, parts, strict=True):
            weight.copy_(part.view_as(weight))

    def _mean_of_all(self, seed: int) -> Tensor:
        """Return the mean of what all owe, as rounded; keep what rounding left out of this one's.

        Everybody reads the same bytes in the same order, so all have the same mean.
        """
        if self.bits == 32:
            mean, self._owed = self._owed, torch.zeros_like(self._owed)
            with talking():
                dist.all_reduce(mean)
            return mean / self.launch.size
        state = BlockState.zeros(len(self._owed), self.bits, signed=True)
        state.write(self._owed, seed)
        message = torch.cat((state.codes, state.scales.view(torch.uint8)))
        messages = [torch.empty_like(message) for _ in range(self.launch.size)]
        with talking():
            dist.all_gather(messages, message)
        mean, numbers = torch.zeros_like(self._owed), torch.empty_like(self._owed)
        for rank, received in enumerate(messages):
            codes, scales = received.split([len(state.codes), 4 * len(state.scales)])
            state.codes.copy_(codes)
            state.scales.copy_(scales.clone().view(torch.float32))
            state.read(numbers)
            mean += numbers
            if rank == self.launch.rank:
                self._owed -= numbers
        return mean / self.launch.size


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
