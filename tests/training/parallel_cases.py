"""Runs under torchrun, and in the tests' own process: trains many small cases in one launch.

python -m torch.distributed.run ... parallel_cases.py MODE DATA FOLDER FROM: `FOLDER/losses.json`
gets the losses of each case, and FOLDER a run with a checkpoint halfway of each; those of FROM, of
another number of processes, are gone on with. MODE is a key of PLANS.
"""

import contextlib
import dataclasses
import gc
import json
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from i3lm.data import Corpus
from i3lm.model.network import I3Network
from i3lm.optim.groups import OPTIMIZERS
from i3lm.presets import Architecture
from i3lm.training.config import STATE_BITS, TrainConfig
from i3lm.training.joining import joined
from i3lm.training.loop import Trainer
from i3lm.training.parallel import Alone

SIZES = Architecture(
    vocab_size=400,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    rank=16,
    state_size=4,
)


@dataclass(frozen=True)
class Plan:
    """Optimizer, bits of its states and of weights, dropout; which of these are gone on with."""

    cases: tuple[tuple, ...]
    resumed: tuple[tuple, ...]
    steps: int
    sizes: Architecture

    @property
    def half(self) -> int:
        return self.steps // 2


PLANS = {
    "ddp": Plan(
        (*product(OPTIMIZERS, STATE_BITS, (32,)), ("muon", 4, 4), ("muon", 32, 32, 0.3)),
        (("muon", 4, 32), ("adamw", 8, 32), ("lion", 32, 32), ("muon", 4, 4)),
        50,
        SIZES,
    ),
    # A table of 1,101 rows ends within a block of states, and its border is within a piece.
    "fsdp": Plan(
        (
            *((name, 32, 32) for name in OPTIMIZERS),
            *(("adamw", 8, 32), ("adamw", 4, 32), ("muon", 32, 32, 0.3)),
        ),
        (("muon", 32, 32), ("adamw", 8, 32)),
        16,
        dataclasses.replace(SIZES, vocab_size=1101),
    ),
}


def trainer(folder: Path, data: Path, case: tuple, group: Alone, plan: Plan) -> Trainer:
    optimizer, states, weights, *dropout = case
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        out=str(folder),
        optimizer=optimizer,
        state_bits=states,
        weight_bits=weights,
        dropout=dropout[0] if dropout else 0.0,
        steps=plan.steps,
        batch_tokens=5 * 16,  # no number of processes but one divides 5
        microbatch=1,
    )
    torch.manual_seed(7 + group.launch.rank)  # what differs at first is made equal
    network = I3Network(plan.sizes)
    made = Trainer(config, Corpus.open(data), network, "fp32", torch.device("cpu"), group)
    made.spread()
    return made


def go(made: Trainer, until: int) -> list[float]:
    losses = []
    while made.counters.step < until:
        losses.append(made.step(made.progress)["loss"])
    return losses


def held_bytes(network: torch.nn.Module) -> int:
    """Return the bytes of all tensors that are alive, gradients of `network` included."""
    gc.collect()
    _grads = [p.grad for p in network.parameters()]  # now objects of Python too
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    stores = {
        s.data_ptr(): s.nbytes()
        for t in tensors
        if t.device.type == "cpu"
        for s in (t.untyped_storage(),)
    }
    return sum(stores.values())


def run(
    mode: str,
    data: Path,
    folder: Path,
    before: Path | None,
    group: Alone,
    cases: tuple[tuple, ...] | None = None,
) -> None:
    results, plan = {}, PLANS[mode]
    others = held_bytes(torch.nn.Module())
    for case in cases or plan.cases:
        name = "-".join(map(str, case))
        with contextlib.closing(trainer(folder / name, data, case, group, plan)) as made:
            whole = go(made, plan.half)
            if group.chief:
                made.save()
            group.attend()
            made._accumulate_gradients()
            held = held_bytes(made.network) - others
            made.network.zero_grad()
            whole += go(made, plan.steps)
        results[name] = {"whole": whole, "held": held}
        if before is not None and case in plan.resumed:
            with contextlib.closing(trainer(before / name, data, case, group, plan)) as made:
                assert made.resume() == []
                results[name]["resumed"] = go(made, plan.steps)
    (folder / f"losses-{group.launch.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, *words = sys.argv[1:]
    if mode == "fsdp":
        from i3lm.training import pieces

        # Several pieces and rounds, in some of which a process has nothing.
        pieces.PIECE = pieces.ROUND = 1 << 12
    with joined(TrainConfig(parallel=mode), True) as (ours, _):
        run(mode, *map(Path, words), ours)
