"""Optimizer states of 8 and 4 bits: the map, the kernels, the drop-in optimizers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i3lm import optim
from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.native import tensor_library
from i3lm.optim import make_optimizer
from i3lm.optim.blockwise import BLOCK, BlockState, Update, adamw_states, lion_states
from i3lm.presets import Architecture
from i3lm.rounding import draws, seed_of

SIZES = [1, 2, 127, 128, 129, 1000, 70_001]
SMALL = Architecture(
    vocab_size=400,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    max_position_embeddings=16,
    rank=64,
    state_size=4,
)
compiled_only = pytest.mark.skipif(tensor_library() is None, reason="the kernels are not built")


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    """Values over many orders of magnitude, with zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    x = x * torch.exp(4 * torch.randn(count, generator=generator))
    return torch.where(torch.rand(count, generator=generator) < 0.1, 0, x)


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i3lm.optim.blockwise.tensor_library", lambda: None)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", SIZES)
def test_numbers_move_by_less_than_the_distance_of_levels(monkeypatch, compiled, bits, count):
    """Stated bounds: one level of the quadratic map, which is (2 k + 1) / L^2 of the scale."""
    if not compiled:
        plain(monkeypatch)
    x = numbers(count)
    state = BlockState.zeros(count, bits, signed=True)
    state.write(x, seed=7)
    back = torch.empty(count)
    state.read(back)
    scale = state.scales.repeat_interleave(BLOCK)[:count]
    k = (x.abs() / scale).nan_to_num().sqrt().double() * state.levels
    step = scale * (2 * k.floor() + 1) / state.levels**2
    assert ((x - back).abs() <= step * (1 + 1e-5) + 1e-30).all()
    assert (back * x >= 0).all()
    largest = x.abs().argmax()
    assert back[largest] == pytest.approx(float(x[largest]), rel=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_rounding_has_the_right_mean(bits, signed):
    x = numbers(BLOCK, seed=1)
    x = x if signed else x.abs()
    total = torch.zeros(BLOCK, dtype=torch.float64)
    rounds = 2000
    for step in range(rounds):
        state = BlockState.zeros(BLOCK, bits, signed=signed)
        state.write(x if signed else x.sqrt(), seed=seed_of(step, 3))
        total += state._read(0, BLOCK)
    largest = float(x.abs().max())
    # Below the smallest level a mean of squares is that level.
    wanted = x if signed else x.clamp(min=largest / state.levels**2)
    # Independent draws would leave half a level over the root of their number, ten times this.
    level = largest * 2 / state.levels
    assert ((total / rounds - wanted).abs() < 4 * level / rounds + level / 65536).all()


@compiled_only
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("rule", ["adamw", "lion"])
def test_kernels_do_what_plain_torch_does(monkeypatch, bits, count, rule):
    runs, kept = [], 2 if rule == "adamw" else 1
    for compiled in (True, False):
        with monkeypatch.context() as patch:
            if not compiled:
                plain(patch)
            # Two parameters: their numbers are shared out together.
            parameters = [numbers(count, seed=2), numbers(3 * count + 5, seed=3)]
            states = [
                tuple(BlockState.zeros(len(p), bits, signed=s) for s in (True, False)[:kept])
                for p in parameters
            ]
            for step in range(1, 4):
                settings = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
                updates = [
                    Update(p, numbers(len(p), seed=10 * i + step), state, seed_of(step, i))
                    for i, (p, state) in enumerate(zip(parameters, states, strict=True), 3)
                ]
                if rule == "adamw":
                    adamw_states(updates, eps=1e-8, step=step, **settings)
                else:
                    lion_states(updates, **settings)
            runs.append((torch.cat(parameters), [s for state in states for s in state]))
    (p, states), (q, others) = runs
    # A number at the edge of two levels may fall on either side by the last bit of a sum.
    assert torch.isclose(p, q, rtol=1e-4, atol=1e-6).double().mean() > 0.999
    for mine, other in zip(states, others, strict=True):
        assert (mine.codes == other.codes).double().mean() > 0.999
        torch.testing.assert_close(mine.scales, other.scales, rtol=1e-4, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_one_step_from_nothing_is_exact(bits):
    """States matter from the second step on: the first is torch's own."""
    p = numbers(5000, seed=3)
    reference = torch.nn.Parameter(p.clone())
    reference.grad = numbers(5000, seed=4)
    torch.optim.AdamW([reference], lr=0.1, weight_decay=0.2).step()
    states = tuple(BlockState.zeros(5000, bits, signed=s) for s in (True, False))
    settings = {"betas": (0.9, 0.999), "weight_decay": 0.2, "eps": 1e-8}
    adamw_states([Update(p, reference.grad, states, 1)], lr=0.1, step=1, **settings)
    torch.testing.assert_close(p, reference.detach(), rtol=1e-5, atol=1e-6)


def test_draws_are_even_and_not_alike():
    one, two = draws(0, 1 << 16, seed_of(1, 0))
    for draw in (one, two):
        assert abs(float(draw.mean()) - 0.5) < 0.01
        assert float(draw.min()) >= 0
        assert float(draw.max()) < 1
        assert (torch.histc(draw, 16, 0, 1) / 4096 - 1).abs().max() < 0.1
    for a, b in ((one, two), (one[1:], one[:-1])):
        assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 0.02


@given(st.integers(0, 2**40), st.integers(0, 10_000), st.integers(1, 300), st.floats(0, 1))
def test_draws_of_a_position_fill_the_interval_evenly_over_the_steps(first, tensor, steps, share):
    """Of any stretch of steps: within two or three of what the length of an interval says."""
    seeds = [seed_of(step, tensor) for step in range(first, first + steps)]
    for both in zip(*[draws(7, 8, seed) for seed in seeds], strict=True):
        below = sum(float(draw) < share for draw in both)
        assert abs(below - share * steps) < 4


@given(st.integers(0, 2**40), st.integers(0, 10_000))
def test_seeds_are_32_bits(step, tensor):
    assert 0 <= seed_of(step, tensor) < 2**32


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["muon", "adamw", "lion"])
def test_states_round_trip_and_the_next_step_is_the_same(name, bits):
    torch.manual_seed(0)
    network = I3Network(SMALL)
    optimizer = make_optimizer(name, network.named_parameters(), None, bits)
    tokens = torch.arange(16)[None]

    def step(network: I3Network, optimizer) -> None:
        network.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(network, optimizer)
    twin = I3Network(SMALL)
    twin.load_state_dict(network.state_dict())
    copy = make_optimizer(name, twin.named_parameters(), None, bits)
    states = {k: t.clone() for k, t in optimizer.state_tensors().items()}
    assert any(k.endswith(".codes") for k in states)
    copy.load_state(states, optimizer.steps)
    step(network, optimizer)
    step(twin, copy)
    for (key, mine), other in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other), key
    whole = make_optimizer(name, twin.named_parameters())
    with pytest.raises(UserError, match="--state-bits"):
        whole.load_state(states, 1)


def test_other_widths_are_refused():
    with pytest.raises(UserError, match="32, 8 or 4"):
        make_optimizer("adamw", I3Network(SMALL).named_parameters(), None, 5)


STYLES = ["AdamW8bit", "AdamW4bit", "Lion8bit", "Lion4bit"]


def regression(style: str, dtype: torch.dtype = torch.float32) -> float:
    """Fit a small network; return the loss at the end over that at the start."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(64, 20, generator=generator).to(dtype)
    y = (x[:, :3].sum(1, keepdim=True) ** 2).sqrt()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 33), torch.nn.ReLU(), torch.nn.Linear(33, 1)
    ).to(dtype)
    rate = 5e-3 if "Lion" in style else 1e-2
    optimizer = getattr(optim, style)(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 150)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses[-1] / losses[0]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_in_optimizers_train(style, dtype):
    assert regression(style, dtype) < 0.15


@pytest.mark.parametrize("style", STYLES)
def test_drop_in_optimizers_resume_exactly(style):
    def build():
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(7, 300).t())  # not contiguous
        empty = torch.nn.Parameter(torch.zeros(0, 4))
        idle = torch.nn.Parameter(torch.ones(3))
        groups = [{"params": [p, empty]}, {"params": [idle], "lr": 0.5}]
        return p, getattr(optim, style)(groups, lr=0.01)

    def step(p, optimizer, number):
        p.grad = torch.randn(300, 7, generator=torch.Generator().manual_seed(number))
        optimizer.step()

    p, optimizer = build()
    for number in range(3):
        step(p, optimizer, number)
    q, copy = build()
    q.data.copy_(p)
    copy.load_state_dict(optimizer.state_dict())
    step(p, optimizer, 3)
    step(q, copy, 3)
    assert torch.equal(p, q)
    assert not p.is_contiguous()


def test_drop_in_optimizers_refuse_what_they_cannot_do():
    p = torch.nn.Parameter(torch.zeros(3, 3))
    for settings in ({"lr": -1}, {"betas": (1.0, 0.9)}, {"weight_decay": -1}, {"eps": -1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            optim.AdamW4bit([p], **settings)
    p.grad = torch.zeros(3, 3).to_sparse()
    with pytest.raises(RuntimeError, match="dense"):
        optim.AdamW4bit([p]).step()
    with pytest.raises(AttributeError):
        _ = optim.AdamW3bit
