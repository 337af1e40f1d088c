"""Dropout: which tokens and numbers, how many, and how a run tells of it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.presets import Architecture
from i3lm.tokenizer import UNK
from i3lm.tokenizer.rule import FIRST_BYTE
from i3lm.training.config import TrainConfig, _digest
from i3lm.training.dropping import FORESEEN, FREE, LARGEST_SHARE, SHARE_EACH, Dropping
from i3lm.training.run import train

SIZES = Architecture(num_hidden_layers=3)


def hiding(share, seed=0):
    dropping = Dropping(TrainConfig(dropout=share, seed=seed, steps=1), SIZES, 1000)
    dropping.foresee(0.0, 0)
    return dropping


@given(st.floats(0, 0.99), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_only_text_is_hidden_and_a_sample_always_the_same(share, seed, sample):
    inputs = np.random.default_rng(1).integers(0, 500, (3, 17))
    before = inputs.copy()
    found = hiding(share, seed).hide(inputs, sample)
    assert np.array_equal(inputs, before)  # the loader's own stay as they are
    changed = found != inputs
    assert (found[changed] == UNK).all()
    assert (inputs[changed] >= FIRST_BYTE).all()
    # However a step is divided into microbatches.
    again = [hiding(share, seed).hide(inputs[i : i + 1], sample + i) for i in range(3)]
    assert np.array_equal(np.concatenate(again), found)


def test_the_share_is_kept_and_samples_and_seeds_differ():
    inputs = np.full((64, 256), 300)
    hidden = hiding(0.3).hide(inputs, 0) == UNK
    assert abs(hidden.mean() - 0.3) < 0.01
    assert abs((hidden[0] & hidden[1]).mean() - 0.09) < 0.06
    assert not np.array_equal(hidden, hiding(0.3, seed=1).hide(inputs, 0) == UNK)
    assert hiding(0.0).hide(inputs, 0) is inputs


def test_a_sample_always_drops_the_same_of_its_layers():
    together = hiding(0.3).of_layers(5, 4)
    assert together.share == 0.3
    assert together.keys.shape == (4, 3, 2)
    alone = [hiding(0.3).of_layers(5 + i, 1).keys for i in range(4)]
    assert torch.equal(torch.cat(alone), together.keys)
    assert len(together.keys.unique()) == together.keys.numel()
    assert not torch.equal(hiding(0.3, seed=1).of_layers(5, 4).keys, together.keys)
    assert hiding(0.0).of_layers(5, 4) is None


def test_it_fits_the_passes_to_come_and_the_size_of_the_model():
    def share(sizes=SIZES, at=(0.0, 0), corpus=SIZES.parameters // 2, **settings):
        dropping = Dropping(TrainConfig(**settings), sizes, corpus)
        dropping.foresee(*at)
        return dropping.share

    once = SIZES.parameters // 2 // 1024  # steps of a pass, with two parameters a token
    few = round(FREE / 2)
    assert share(steps=once * few) == 0
    wanted = share(steps=once * (few + 50))
    assert wanted == pytest.approx((2 * (few + 49) - FREE) * SHARE_EACH, rel=1e-3)
    # However small the text, one pass is free.
    assert share(corpus=2048, steps=2) == 0
    assert share(corpus=2048, steps=3) == LARGEST_SHARE
    # A step reads whole windows.
    assert share(corpus=2048, steps=2, batch_tokens=1100) == 0
    half = dataclasses.replace(SIZES, hidden_size=256)
    assert 0 < share(half, steps=once * (few + 50)) < wanted
    assert share(steps=10**6) == LARGEST_SHARE
    assert share(steps=10**6, dropout=0.0) == 0
    assert share(steps=1, dropout=0.7) == 0.7
    # A time's tokens are known once some of it has passed.
    assert share(time=60.0) == 0
    assert share(time=60.0, at=(FORESEEN / 2, 10**9)) == 0
    tokens = 1024 * once * (few + 50)
    assert share(time=60.0, at=(0.1, tokens // 10)) == pytest.approx(wanted, rel=1e-3)
    # With both, whichever ends first, progress tells.
    assert share(time=60.0, steps=10**6) == 0
    assert share(time=60.0, steps=10**6, at=(0.1, tokens // 10)) == pytest.approx(wanted, rel=1e-3)


def test_a_text_without_end_hides_none():
    dropping = Dropping(TrainConfig(steps=10**9), SIZES, None)
    assert dropping.foresee(0.5, 10**9) is None
    assert dropping.share == 0


def test_it_is_told_once():
    dropping = Dropping(TrainConfig(steps=10**6, batch_tokens=50), SIZES, 1000)
    note = dropping.foresee(0.0, 0)
    assert note is not None
    assert "256000 times" in note
    assert "--dropout 0" in note
    assert dropping.foresee(0.1, 1000) is None


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan"), "much"])
def test_no_other_share_can_be_asked_for(share):
    with pytest.raises(UserError, match="dropout"):
        TrainConfig(dropout=share)


def test_a_run_hides_what_it_is_told_to(small_config, monkeypatch):
    seen = []
    loss = I3Network.loss

    def watched(network, inputs, targets, dropout=None):
        hidden = (inputs == UNK).float().mean().item()
        seen.append((hidden, (targets == UNK).sum().item(), dropout))
        return loss(network, inputs, targets, dropout)

    monkeypatch.setattr(I3Network, "loss", watched)
    notes = []
    train(
        small_config(dropout=0.5, steps=3),
        listener=lambda event, row: notes.append(row) if event == "note" else None,
    )
    training = [(hidden, dropout) for hidden, _, dropout in seen if dropout is not None]
    assert len(training) == 3 * 2  # microbatches; what scores held-out text drops nothing
    assert all(0.3 < hidden < 0.7 and dropout.share == 0.5 for hidden, dropout in training)
    assert all(hidden == 0 for hidden, _, dropout in seen if dropout is None)
    assert all(count == 0 for _, count, _ in seen)
    assert not any("dropout" in note["text"] for note in notes)


def test_microbatches_change_nothing(small_config, tmp_path):
    losses = []
    for microbatch in (1, 4):
        out = str(tmp_path / f"run-{microbatch}")
        rows = []
        train(
            small_config(out=out, dropout=0.3, microbatch=microbatch),
            listener=lambda event, row, rows=rows: rows.append(row) if event == "step" else None,
        )
        losses.append([row["loss"] for row in rows])
    assert np.allclose(*losses, rtol=1e-4)


def test_a_run_from_before_there_was_dropout_goes_on_without():
    values = json.loads(TrainConfig().to_json())
    del values["check"], values["dropout"]
    old = json.dumps({**values, "check": _digest(values)})
    assert TrainConfig.parse(old).dropout == 0.0
    assert TrainConfig.parse(TrainConfig().to_json()).dropout is None
