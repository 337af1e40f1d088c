"""Two threads with half of a step each: the same step, whoever is faster, and the same end."""

import contextlib
import time

import pytest
import torch

from i3lm.data import open_source, prepare
from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.training.halves import Halves
from i3lm.training.loop import Interrupted, Trainer


@pytest.fixture(scope="module")
def corpus(text_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("halves") / "data"
    return prepare(open_source(text_file), folder, vocab_size=400, threads=1)


@pytest.fixture
def start(small_config, corpus, tmp_path):
    """Make trainers with two threads; five sequences a step, three at once, none of it even."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with contextlib.ExitStack() as stack:

        def make(name: str = "run", precision: str = "fp32", **changes) -> Trainer:
            settings = {"out": str(tmp_path / name), "batch_tokens": 160, "microbatch": 3}
            config = small_config(**{**settings, **changes})
            (tmp_path / name).mkdir(exist_ok=True)
            torch.manual_seed(config.seed)
            network = I3Network(config.architecture(len(corpus.tokenizer)))
            trainer = Trainer(config, corpus, network, precision, torch.device("cpu"))
            return stack.enter_context(contextlib.closing(trainer))

        yield make
    torch.set_num_threads(before)


def gradients(trainer: Trainer) -> tuple[float, dict[str, torch.Tensor]]:
    loss = trainer._accumulate_gradients()
    found = {n: p.grad for n, p in trainer.network.named_parameters() if p.grad is not None}
    trainer.optimizer.zero_grad()
    return loss, found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_the_gradients_are_those_of_the_whole(start, precision, checkpointing):
    trainer = start(precision=precision, gradient_checkpointing=checkpointing)
    trainer._halves = trainer._halves or Halves(trainer.network, 2)
    loss, halves = gradients(trainer)
    trainer._join_halves()
    whole_loss, whole = gradients(trainer)
    assert loss == pytest.approx(whole_loss, rel=1e-5 if precision == "fp32" else 1e-3)
    assert halves.keys() == whole.keys()
    near = 1e-5 if precision == "fp32" else 2e-2
    for name, gradient in whole.items():
        error = float((halves[name] - gradient).norm() / (gradient.norm() + 1e-6))
        assert error < near, name


def test_the_slower_half_changes_nothing(start, monkeypatch):
    found = []
    for late in (None, 0, 1):
        trainer = start(f"late-{late}")
        own = Trainer._gradients

        def gradients_of(self, network, part, parts, late=late, own=own):
            if part == late:
                time.sleep(0.05)
            total = own(self, network, part, parts)
            if part != late:
                time.sleep(0.02)
            return total

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_gradients", gradients_of)
            rows = [trainer.step(trainer.progress) for _ in range(2)]
        weights = torch.cat([p.detach().flatten() for p in trainer.network.parameters()])
        found.append(([row["loss"] for row in rows], weights))
    for losses, weights in found[1:]:
        assert losses == found[0][0]
        assert torch.equal(weights, found[0][1])


def test_resumed_bit_for_bit(start):
    whole = start("whole")
    for _ in range(4):
        whole.step(whole.progress)
    first = start("parts")
    for _ in range(2):
        first.step(first.progress)
    first.save()
    second = start("parts")
    assert second.resume() == []
    assert second._halves is not None
    for _ in range(2):
        second.step(second.progress)
    for mine, other in zip(second.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("half", [0, 1])
def test_an_error_in_one_half_is_the_steps(start, monkeypatch, half):
    trainer = start()
    _, sound = gradients(trainer)
    own = Trainer._gradients

    def fail(self, network, part, parts):
        own(self, network, part, parts)
        if part == half:
            raise UserError("no such half")
        return torch.zeros(())

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_gradients", fail)
        with pytest.raises(UserError, match="no such half"):
            trainer.step(0.0)
    _, again = gradients(trainer)  # nothing is left of the failed step
    assert all(torch.equal(again[name], sound[name]) for name in sound)


def test_a_signal_ends_both(start):
    trainer = start()
    trainer._stop = True
    with pytest.raises(Interrupted):
        trainer.step(0.0)
    assert all(p.grad is None for p in trainer.network.parameters())


def test_not_where_memory_is_short(start):
    """A second set of gradients costs memory that no plan has counted."""
    assert start("limit", memory=10**9)._halves is None
    assert start("stored", weight_bits=4)._halves is None
    assert start("states", state_bits=4)._halves is None
    assert start("again", gradient_checkpointing="full")._halves is None
    assert start("one", microbatch=1)._halves is None
    trainer = start("less")
    trainer._take_less("too much")
    assert trainer._halves is None
    trainer.step(trainer.progress)
