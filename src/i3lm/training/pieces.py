"""The optimizer of a model whose weights are divided: every number has one process that updates it.

A rule that treats each number by itself (AdamW, Lion) works on stretches of PIECE numbers, by the
process that holds them anyway. Muon needs whole matrices: each is gathered, weights and gradient,
by the one process that keeps its momentum, which sends the new weights back. States stand for the
same numbers and blocks as in a lone process, so a checkpoint is the same; where a parameter is in
several pieces, each rounds with draws of its own.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from i3lm.optim import Optimizer, ParameterGroup
from i3lm.optim.base import State, new_state, tensors_of
from i3lm.training.parallel import talking

PIECE = 1 << 16  # numbers: whole blocks of states
ROUND = 1 << 18  # numbers that a process has of others at once, or one matrix
MAPS = ("stacked_maps", "joined_maps")  # what Muon reads of a parameter


@dataclass(frozen=True, eq=False)
class Piece:
    """The numbers `begin` to `end` of a parameter, flat; `owner` is the rank that updates them."""

    name: str
    group: int
    at: int  # the parameter's place within its group
    begin: int
    end: int
    owner: int
    whole: bool  # a matrix that must not be divided
    state: dict[str, State]  # without numbers (meta) but in its owner

    def within(self, border: tuple[int, int]) -> slice:
        """Return which of the numbers between two borders are the piece's, counted from there."""
        first, last = border
        begin = min(max(self.begin, first), last)
        return slice(begin - first, max(begin, min(self.end, last)) - first)


def borders(shape: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Return which flat numbers of a parameter each of `size` ranks holds: FSDP2 deals out rows."""
    total = torch.Size(shape).numel()
    chunk = -(-shape[0] // size) * (total // shape[0])
    return [(min(total, r * chunk), min(total, (r + 1) * chunk)) for r in range(size)]


class Pieces:
    """All pieces of a model's parameters, and what this rank does with them.

    `optimizer` is made for parameters on the meta device. `shard(name)` returns this rank's numbers
    of a parameter and their gradient, both flat.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        shard: Callable[[str], tuple[Tensor, Tensor | None]],
        rank: int,
        size: int,
    ) -> None:
        self.optimizer, self.shard, self.rank, self.size = optimizer, shard, rank, size
        self.borders: dict[str, list[tuple[int, int]]] = {}
        self.pieces: list[Piece] = []
        self._ranks = range(size)
        self._nothing = shard(optimizer.groups[0].names[0])[0][:0]
        self._load = [0] * size  # numbers of each rank
        for number, group in enumerate(optimizer.groups):
            for at, (name, p) in enumerate(zip(group.names, group.parameters, strict=True)):
                self.borders[name] = borders(p.shape, size)
                if "momentum" not in group.state:
                    self._divide(number, at)
        for number, group in enumerate(optimizer.groups):  # where there is room
            if "momentum" in group.state:
                order = range(len(group.names))
                for at in sorted(order, key=lambda i: -group.parameters[i].numel()):
                    self._add(number, at, (0, group.parameters[at].numel()), None)
        self._local = [p for p in self.pieces if p.owner == rank and self._is_local(p)]
        self._rounds = list(self._make_rounds())

    def _divide(self, number: int, at: int) -> None:
        group = self.optimizer.groups[number]
        name, total = group.names[at], group.parameters[at].numel()
        for begin in range(0, total, PIECE):
            end = min(total, begin + PIECE)
            middle = (begin + end) // 2
            owner = next(r for r, (_, last) in enumerate(self.borders[name]) if middle < last)
            self._add(number, at, (begin, end), owner)

    def _add(self, number: int, at: int, span: tuple[int, int], owner: int | None) -> None:
        group, whole = self.optimizer.groups[number], owner is None
        if owner is None:
            owner = self._load.index(min(self._load))
        name, p = group.names[at], group.parameters[at]
        count = (span[1] - span[0]) * len(group.state)
        self._load[owner] += count
        device = self.shard(name)[0].device if owner == self.rank else "meta"
        like = torch.empty(p.shape if whole else span[1] - span[0], device="meta")
        bits = self.optimizer.bits_of(p)
        state = {key: new_state(like, key, bits, device) for key in group.state}
        self.pieces.append(Piece(name, number, at, *span, owner, whole, state))

    def _is_local(self, piece: Piece) -> bool:
        first, last = self.borders[piece.name][piece.owner]
        return first <= piece.begin and piece.end <= last

    def _make_rounds(self) -> Iterator[list[Piece]]:
        """Yield the pieces that are gathered at once; every rank yields the same."""
        queues: list[list[Piece]] = [[] for _ in range(self.size)]
        for piece in self.pieces:
            if not self._is_local(piece):
                queues[piece.owner].append(piece)
        while any(queues):
            taken: list[Piece] = []
            for queue in queues:
                count = 0
                while queue and (not count or count + queue[0].end - queue[0].begin <= ROUND):
                    count += queue[0].end - queue[0].begin
                    taken.append(queue.pop(0))
            yield taken

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Take the optimizer's step at `factor` of its rates; raises Lost."""
        self.optimizer.steps += 1
        self._update({piece: self._mine(piece) for piece in self._local}, factor)
        for taken in self._rounds:
            whole = self._gather(taken)
            self._update(whole, factor)
            self._send_back(taken, whole)

    def _update(self, held: Mapping[Piece, tuple[Tensor, Tensor]], factor: float) -> None:
        for number, group in enumerate(self.optimizer.groups):
            mine = [piece for piece in held if piece.group == number]
            if mine:
                part = self._part(group, mine, [held[piece][0] for piece in mine])
                grads = [held[p][1].view_as(w) for p, w in zip(mine, part.parameters, strict=True)]
                self.optimizer.update(part, grads, factor * group.lr)

    def _part(
        self, group: ParameterGroup, pieces: list[Piece], numbers: list[Tensor]
    ) -> ParameterGroup:
        """Return a group of these pieces alone."""
        every = sum(len(g.names) for g in self.optimizer.groups)
        parameters = []
        for piece, flat in zip(pieces, numbers, strict=True):
            whole = group.parameters[piece.at]
            parameters.append(flat.view(whole.shape) if piece.whole else flat)
            for name in MAPS:
                if hasattr(whole, name):
                    setattr(parameters[-1], name, getattr(whole, name))
        return dataclasses.replace(
            group,
            names=[piece.name for piece in pieces],
            parameters=parameters,
            numbers=[group.numbers[p.at] + every * (p.begin // PIECE) for p in pieces],
            state={key: [piece.state[key] for piece in pieces] for key in group.state},
        )

    def _gather(self, taken: list[Piece]) -> dict[Piece, tuple[Tensor, Tensor]]:
        """Give each piece's owner its numbers and their gradient; return this rank's."""
        mine = [piece for piece in taken if piece.owner == self.rank]
        sent = [
            [part for piece in taken if piece.owner == rank for part in self._mine(piece)]
            for rank in self._ranks
        ]
        counts = [[self._count(p, rank) for p in mine for _ in range(2)] for rank in self._ranks]
        received = _exchange(sent, counts, self._nothing)
        parts = [torch.cat(column) for column in zip(*received, strict=True)]
        return dict(zip(mine, zip(parts[::2], parts[1::2], strict=True), strict=True))

    def _send_back(self, taken: list[Piece], whole: dict[Piece, tuple[Tensor, Tensor]]) -> None:
        """Give all ranks their numbers of the updated pieces."""
        divided = [
            numbers.split([self._count(piece, rank) for rank in self._ranks])
            for piece, (numbers, _) in whole.items()
        ]
        sent = [[parts[rank] for parts in divided] for rank in self._ranks]
        owned = [[piece for piece in taken if piece.owner == rank] for rank in self._ranks]
        counts = [[self._count(piece, self.rank) for piece in pieces] for pieces in owned]
        for pieces, parts in zip(owned, _exchange(sent, counts, self._nothing), strict=True):
            for piece, numbers in zip(pieces, parts, strict=True):
                self._mine(piece)[0].copy_(numbers)

    def _mine(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """Return what this rank holds of a piece: numbers and gradient, both flat."""
        numbers, grad = self.shard(piece.name)
        assert grad is not None
        at = piece.within(self.borders[piece.name][self.rank])
        return numbers[at], grad[at]

    def _count(self, piece: Piece, rank: int) -> int:
        """Return how many numbers of a piece a rank holds."""
        at = piece.within(self.borders[piece.name][rank])
        return at.stop - at.start

    def states(self) -> dict[str, list[tuple[int, Tensor]]]:
        """Return for each state tensor of a checkpoint its parts, in order, and their owners."""
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for piece in self.pieces:
            for key, state in piece.state.items():
                for name, tensor in tensors_of(f"{key}.{piece.name}", state).items():
                    found.setdefault(name, []).append((piece.owner, tensor.view(-1)))
        return found


def _exchange(
    sent: list[list[Tensor]], counts: list[list[int]], nothing: Tensor
) -> list[list[Tensor]]:
    """Send each rank a list of flat tensors; return those of `counts` numbers from each rank.

    `nothing`: no numbers, on their device.
    """
    message = torch.cat([nothing, *(part for parts in sent for part in parts)])
    received = message.new_empty(sum(map(sum, counts)))
    lengths = [sum(map(len, parts)) for parts in sent]
    with talking():
        dist.all_to_all_single(received, message, [sum(c) for c in counts], lengths)
    return [
        list(part.split(c))
        for part, c in zip(received.split([*map(sum, counts)]), counts, strict=True)
    ]
