"""Stopped at a random step and resumed: every optimizer, states and weights in every precision."""

import contextlib
import random
from itertools import product

import pytest
import torch

from i3lm.data import open_source, prepare
from i3lm.model.network import I3Network
from i3lm.model.stored import state_of
from i3lm.optim.groups import OPTIMIZERS
from i3lm.training.config import STATE_BITS
from i3lm.training.loop import Trainer

STEPS = 5


@pytest.fixture(scope="module")
def corpus(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume") / "data"
    return prepare(open_source(text_file), folder, vocab_size=400, threads=1)


@pytest.mark.parametrize(
    ("optimizer", "states", "weights", "dropout"),
    [*product(OPTIMIZERS, STATE_BITS, STATE_BITS, (0.0,)), ("muon", 32, 32, 0.3)],
)
def test_bit_for_bit(small_config, corpus, tmp_path, optimizer, states, weights, dropout):
    """Weights, states, their random rounding, loader position, schedule, metrics file."""

    def start(name: str) -> Trainer:
        config = small_config(
            preset="i3-mini",
            out=str(tmp_path / name),
            optimizer=optimizer,
            state_bits=states,
            weight_bits=weights,
            dropout=dropout,
            steps=STEPS,
            warmup_steps=2,
        )
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(config.seed)
        network = I3Network(config.architecture(len(corpus.tokenizer)))
        return Trainer(config, corpus, network, "fp32", torch.device("cpu"))

    def go(trainer: Trainer, until: int) -> None:
        while trainer.counters.step < until:
            row = trainer.step(trainer.progress)
            same = ("step", "tokens", "progress", "loss", "learning_rate", "gradient_norm")
            trainer.metrics.write({name: row[name] for name in same})

    with contextlib.closing(start("whole")) as whole:
        go(whole, STEPS)
        whole.metrics.flush()
    stop = random.Random(f"{optimizer} {states} {weights}").randint(1, STEPS - 1)
    with contextlib.closing(start("parts")) as first:
        go(first, stop)
        first.save()
        if stop % 2:  # killed a little later: what came after the checkpoint is done again
            go(first, stop + 1)
    with contextlib.closing(start("parts")) as second:
        assert second.resume() == []
        assert second.counters.step == stop
        go(second, STEPS)
        second.metrics.flush()
    for expected, actual in (
        (state_of(whole.network), state_of(second.network)),
        (whole.optimizer.state_tensors(), second.optimizer.state_tensors()),
    ):
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[name], actual[name]) for name in expected)
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
