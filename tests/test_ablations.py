"""Ablations of `benchmarks.quality`: each changes what it names, and wrong ones are refused."""

import pytest
import torch
from benchmarks.quality import ablations
from benchmarks.quality.contenders import Budget, build

from i3lm.data import open_source, prepare
from i3lm.errors import UserError
from i3lm.training import loop

CHANGED = """
heads=2 state_bits=8 weight_bits=8 optimizer=lion dropout=0.5 matrix=0.1 table=0.1 vector=0.1
momentum=0.5 beta1=0.5 beta2=0.5 decay=9 table_decay=9 product_decay=9 flat=0.01 clip=0.01 warmup=1
loud=1 normal=0.02 gauss=1 induction=0 radius=0.5 tau=3 w=0.5 embeddings=0.5 anywhere=1 short=0.5
"""
VALUES = dict(change.split("=") for change in CHANGED.split())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text.inst.txt"
    line = "[INST] where is the {} cat [/INST] on the {} mat [INST] thanks [/INST] bye\n"
    text.write_text("".join(line.format(n, n * 7) for n in range(400)))
    return prepare(open_source([str(text)]), folder / "data", vocab_size=400, held_out=0.05)


@pytest.fixture(autouse=True)
def schedule(monkeypatch):
    """Put the schedule back that `flat` replaces."""
    monkeypatch.setattr(loop, "learning_rate_factor", loop.learning_rate_factor)


def trained(name: str, corpus) -> torch.Tensor:
    """Return all weights after four steps, as one vector."""
    contender = build(name, corpus, "i3-tiny", 256, seed=0, context=64)
    for _ in contender.steps(Budget(4 * 256, None)):
        pass
    return torch.cat([p.detach().float().flatten() for p in contender.network.parameters()])


@pytest.fixture(scope="module")
def as_it_is(corpus):
    return trained("i3lm", corpus)


def test_a_run_is_the_same_again(corpus, as_it_is):
    assert torch.equal(trained("i3lm", corpus), as_it_is)


def test_all_changes_have_a_value_here():
    assert {*VALUES} == {*ablations.SIZES, *ablations.SETTINGS, *ablations.CHANGES}


@pytest.mark.parametrize("name", VALUES)
def test_a_change_changes_what_is_learned(corpus, as_it_is, name):
    changed = trained(f"i3lm+{name}={VALUES[name]}", corpus)
    assert changed.isfinite().all()
    assert changed.shape != as_it_is.shape or (changed - as_it_is).abs().max() > 1e-6


def test_changes_that_name_what_is_there_change_nothing(corpus, as_it_is):
    same = "i3lm+heads=4+momentum=0.95+flat=0.4+induction=1+anywhere=0+short=0"
    assert torch.equal(trained(same, corpus), as_it_is)


@pytest.mark.parametrize("change", ["speed=1", "flat", "flat="])
def test_unknown_changes(corpus, change):
    with pytest.raises(UserError, match=r"no change is written .*NAME=NUMBER"):
        build(f"i3lm+{change}", corpus, "i3-tiny", 256, seed=0, context=64)
