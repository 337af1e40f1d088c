"""The preset that a run takes where none is named."""

import pytest
import torch

from i3lm.errors import UserError
from i3lm.training import budget
from i3lm.training.config import TrainConfig


@pytest.fixture(autouse=True)
def _rate(monkeypatch):
    """A machine with two cores whose products do 400 GFLOP/s."""
    monkeypatch.setattr(budget, "products_per_second", lambda dtype: [4e11])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def chosen(**settings) -> str:
    config = TrainConfig(precision="fp32", **settings)
    return budget.choose_preset(config)[0].preset


def test_more_time_a_larger_model():
    names = [chosen(time=60.0 * minutes) for minutes in (1, 10, 60, 600)]
    assert names == ["i3-mini", "i3-mini", "i3-small", "i3-12m"]


def test_no_budget_is_ten_minutes():
    assert chosen() == chosen(time=600.0)


def test_steps_count_as_their_tokens_and_the_shorter_of_both_counts():
    assert chosen(steps=100) == "i3-mini"
    assert chosen(steps=10_000_000) == "i3-12m"
    assert chosen(steps=10_000_000, time=60.0) == "i3-mini"


def test_a_slow_machine_takes_a_smaller_model(monkeypatch):
    hour = chosen(time=3600.0)
    monkeypatch.setattr(budget, "products_per_second", lambda dtype: [1e10])
    assert (hour, chosen(time=3600.0)) == ("i3-small", "i3-mini")


def test_products_that_take_no_time_leave_the_rest(monkeypatch):
    monkeypatch.setattr(budget, "products_per_second", lambda dtype: [1e15])
    assert chosen(time=300.0) == "i3-mini"
    assert chosen(time=1800.0) == "i3-small"


def test_what_is_named_stays():
    config, why = budget.choose_preset(TrainConfig(preset="i3-22m", time=1.0))
    assert config.preset == "i3-22m"
    assert why is None


def test_it_fits_the_memory_and_says_so(monkeypatch):
    def plan_run(config, sizes, launch, sure):
        if sizes.hidden_size > 256:
            raise UserError("--memory is too little")

    monkeypatch.setattr(budget, "plan_run", plan_run)
    config, why = budget.choose_preset(TrainConfig(precision="fp32", time=36_000.0))
    assert config.preset == "i3-mini"
    assert why is not None
    assert "fits the memory" in why


def test_memory_that_fits_nothing_is_refused():
    with pytest.raises(UserError, match="--memory"):
        chosen(memory=1_000_000)
