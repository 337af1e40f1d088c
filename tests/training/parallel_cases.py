"""Runs under torchrun, and in the tests' own process: trains many small cases in one launch.

python -m torch.distributed.run ... parallel_cases.py DATA FOLDER FROM: `FOLDER/losses.json`
gets the losses of each case, and FOLDER a run with a checkpoint at HALF of each; those of FROM, of
another number of processes, are gone on with.
"""

import contextlib
import json
import sys
from collections.abc import Iterable
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

CASES = [*product(OPTIMIZERS, STATE_BITS, (32,)), ("muon", 4, 4)]
STEPS, HALF = 50, 25
RESUMED = (("muon", 4, 32), ("adamw", 8, 32), ("lion", 32, 32), ("muon", 4, 4))
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


def trainer(folder: Path, data: Path, case: tuple, group: Alone) -> Trainer:
    optimizer, states, weights = case
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        out=str(folder),
        optimizer=optimizer,
        state_bits=states,
        weight_bits=weights,
        steps=STEPS,
        batch_tokens=5 * 16,  # no number of processes but one divides 5
        microbatch=1,
    )
    torch.manual_seed(7 + group.launch.rank)  # what differs at first is made equal
    network = I3Network(SIZES)
    made = Trainer(config, Corpus.open(data), network, "fp32", torch.device("cpu"), group)
    made.spread()
    return made


def go(made: Trainer, until: int) -> list[float]:
    losses = []
    while made.counters.step < until:
        losses.append(made.step(made.progress)["loss"])
    return losses


def run(
    data: Path, folder: Path, before: Path | None, group: Alone, cases: Iterable[tuple] = CASES
) -> None:
    results = {}
    for case in cases:
        name = "-".join(map(str, case))
        with contextlib.closing(trainer(folder / name, data, case, group)) as made:
            whole = go(made, HALF)
            if group.chief:
                made.save()
            whole += go(made, STEPS)
        results[name] = {"whole": whole}
        if before is not None and case in RESUMED:
            with contextlib.closing(trainer(before / name, data, case, group)) as made:
                assert made.resume() == []
                results[name]["resumed"] = go(made, STEPS)
    if group.chief:
        (folder / "losses.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    paths = [Path(argument) for argument in sys.argv[1:]]
    with joined(TrainConfig(), False) as (ours, _):
        run(*paths, ours)
