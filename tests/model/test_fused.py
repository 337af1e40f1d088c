"""The compiled passes of a training step against float64, at odd sizes and in both precisions."""

import dataclasses
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from i3lm.model import COMPILED, fused, fused_attention, kernels, ops_i3
from i3lm.model.network import I3Network
from i3lm.presets import Architecture

sys.path.insert(0, str(Path(__file__).parents[1]))
import naive

pytestmark = pytest.mark.skipif(not COMPILED, reason="no compiler built the C kernels here")

# Relative errors, in the norm, of what is rounded once to each precision.
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 4e-3}
LOWS = pytest.mark.parametrize("low", list(TOLERANCES), ids=["fp32", "bf16"])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def error(mine: torch.Tensor, truth: torch.Tensor) -> float:
    assert mine.isfinite().all()
    mine, truth = mine.detach().double(), truth.detach()
    return float((mine - truth).norm() / truth.norm().clamp(min=1e-9))


@LOWS
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (33, 24), (70, 129)])
def test_norm(low, rows, width):
    x, added, gain, shift = (
        draw(rows, width),
        draw(rows, width, seed=1).to(low),
        draw(width),
        draw(width, seed=1),
    )
    beside = draw(width, seed=2)
    y, n, stats = kernels.norm_forward(x, (added, beside), (gain, shift, 1e-5), low)
    written = x + added.float() + beside
    truth = [t.double().requires_grad_() for t in (written, gain, shift)]
    expected = naive.layer_norm(*truth, 1e-5)
    assert torch.equal(y, written)
    kernels.add(x, (added, beside), sums := torch.empty_like(x))
    assert torch.equal(y, sums)
    assert error(n, expected) < TOLERANCES[low]
    grads, beside = (
        (draw(rows, width, seed=2).to(low), draw(rows, width, seed=3).to(low)),
        draw(rows, width, seed=4),
    )
    expected.backward(sum(g.double() for g in grads))
    again = torch.empty_like(n)
    grad, grad_low, sums = kernels.norm_backward(
        y, stats, (gain, shift, 1e-5), grads, beside, again
    )
    total = truth[0].grad + beside
    assert torch.equal(n, again)
    assert error(grad, total) < 3e-6
    assert error(grad_low, total) < TOLERANCES[low]
    for mine, t in zip(sums, (truth[1].grad, truth[2].grad, total.sum(0)), strict=True):
        assert error(mine, t) < 1e-5


@LOWS
def test_gelu(low):
    x = torch.cat([draw(37, 50) * 3, torch.tensor([[-30.0, -5.0, -0.0, 0.0, 5.0] * 10])]).to(low)
    shift = draw(50, seed=1)
    truth = x.double().requires_grad_()
    expected = naive.gelu(truth + shift)
    grad = draw(38, 50, seed=1).to(low)
    expected.backward(grad.double())
    assert error(kernels.gelu(x, shift), expected) < TOLERANCES[low]
    y, sums = kernels.gelu_backward(x, shift, grad)
    assert error(y, expected) < TOLERANCES[low]
    assert error(grad, truth.grad) < TOLERANCES[low]
    assert error(sums, truth.grad.sum(0)) < (1e-5 if low == torch.float32 else 4e-5)


@pytest.mark.parametrize("table", [True, False])
def test_gelu_in_bfloat16_errs_by_its_rounding(monkeypatch, table):
    if not table:
        monkeypatch.setattr(kernels, "multiplies_bfloat16", lambda: False)
    x = torch.linspace(-40, 40, 50_001).bfloat16().view(-1, 3)
    x = torch.cat([x, draw(2000, 3).bfloat16()])
    truth = x.double().requires_grad_()
    expected = naive.gelu(truth)
    expected.sum().backward()
    y, grad = kernels.gelu(x, torch.zeros(3)), torch.ones_like(x)
    again, _ = kernels.gelu_backward(x, torch.zeros(3), grad)
    assert torch.equal(y, again)
    for mine, t in ((y, expected), (grad, truth.grad)):
        assert ((mine.double() - t).abs() <= t.abs() / 256 + 4e-5).all()


def test_the_table_of_gelu_is_as_near_as_it_says():
    a = torch.linspace(0, 32 / 6, 100_001, dtype=torch.float64)[:-1]
    segment = (a * 6).long()
    t = a * 6 - segment
    truth = (-a).requires_grad_()
    naive.gelu(truth).sum().backward()
    for table, f in zip(
        kernels.gelu_tables().double(), (naive.gelu(-a) / -a, truth.grad), strict=True
    ):
        mine = table[0, segment] + t * (table[1, segment] + t * table[2, segment])
        assert (mine - f)[1:].abs().max() < 4e-5


@LOWS
@pytest.mark.parametrize(
    ("batch", "steps", "heads", "size"),
    [
        (1, 1, 1, 16),
        (2, 5, 3, 32),
        (1, 64, 2, 16),
        (2, 65, 1, 48),
        (1, 130, 2, 64),
        (1, 600, 1, 80),
        (1, 70, 2, 7),
    ],
)
@pytest.mark.parametrize("kernel", [True, False])
def test_attention(monkeypatch, low, batch, steps, heads, size, kernel):
    if not kernel:
        monkeypatch.setattr(kernels, "attention_supported", lambda q, heads: False)
    inputs = [draw(batch * steps, heads * size, seed=i).to(low) for i in range(4)]

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.view(batch, steps, heads, size).transpose(1, 2)

    biases = draw(heads * size, seed=5), draw(heads * size, seed=6)
    truth = [t.double().requires_grad_() for t in inputs[:3]]
    q, k, v = truth[0] + biases[0], truth[1], truth[2] + biases[1]
    expected = F.scaled_dot_product_attention(*map(split, (q, k, v)), is_causal=True)
    expected.backward(split(inputs[3].double()))
    out, kept = fused_attention.attend(*inputs[:3], biases, batch, heads)
    grads = fused_attention.attend_backward(*inputs[:3], biases[0], kept, inputs[3], batch, heads)
    assert error(split(out), expected) < 2 * TOLERANCES[low]
    if steps > 1:  # one key: the gradients of q and k are zero
        for mine, t in zip(grads, truth, strict=True):
            assert error(mine, t.grad) < 3 * TOLERANCES[low]


@LOWS
def test_cross_entropy(low):
    logits, bias, targets = (5 * draw(41, 77)).to(low), draw(77), torch.arange(41) % 77
    truth = [logits.double().requires_grad_(), bias.double().requires_grad_()]
    expected = F.cross_entropy(truth[0] + truth[1], targets, reduction="sum")
    expected.backward()
    loss, nothing = kernels.cross_entropy(logits, bias, targets, False)
    assert nothing is None
    assert error(loss, expected) < 1e-6
    loss, grad_bias = kernels.cross_entropy(logits, bias, targets, True)
    assert error(loss, expected) < 1e-6
    assert error(logits, truth[0].grad) < TOLERANCES[low]
    assert error(grad_bias, truth[1].grad) < 1e-5


def test_nan_stays_nan():
    x = draw(3, 8)
    x[1, 2] = torch.nan
    _, n, _ = kernels.norm_forward(x, None, (draw(8), draw(8), 1e-5), torch.bfloat16)
    assert n[1].isnan().all()
    assert n[0].isfinite().all()
    assert kernels.gelu(x.bfloat16(), torch.zeros(8))[1, 2].isnan()
    loss, _ = kernels.cross_entropy(x, torch.zeros(8), torch.tensor([0, 1, 2]), True)
    assert loss.isnan()
    q, zeros = draw(9, 16).bfloat16(), torch.zeros(16)
    q[3, 5] = torch.nan
    y, kept = fused_attention.attend(q, draw(9, 16).bfloat16(), q, (zeros, zeros), 1, 1)
    assert y[3:].isnan().any(1).all()
    grads = fused_attention.attend_backward(q, q, q, zeros, kept, q, 1, 1)
    assert all(grad.isnan().any() for grad in grads)


SIZES = Architecture(
    vocab_size=50,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=70,
    max_position_embeddings=80,
    rank=5,
    state_size=6,
)


def gradients(network: I3Network, inputs: torch.Tensor, low: bool = False) -> dict:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss = network.loss(inputs, inputs.roll(1, 1))
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def random_network(**changes: int) -> I3Network:
    torch.manual_seed(3)
    network = I3Network(dataclasses.replace(SIZES, **changes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def test_a_step_in_bfloat16_is_as_near_the_truth_as_autocast(monkeypatch):
    network, inputs = random_network(), torch.randint(0, 50, (3, 77))
    mine = gradients(network, inputs, low=True)
    monkeypatch.setattr(ops_i3, "fused_layer", None)
    monkeypatch.setattr(ops_i3, "cross_entropy_kernel", None)
    monkeypatch.setattr(ops_i3, "head_kernel", None)
    plain = gradients(network, inputs, low=True)
    truth = gradients(network.double(), inputs)
    for name in truth:
        if not name.endswith("k_up.bias"):  # zero but for rounding
            assert error(mine[name], truth[name]) < 1.5 * error(plain[name], truth[name]) + 0.005, (
                name
            )


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_more_states_than_the_kernel_holds(low):
    """256 states fit; with more torch goes on, and gradients are near the truth."""
    states = kernels.MAX_STATES + 1
    network, inputs = random_network(state_size=states), torch.randint(0, 50, (2, 45))
    mine = gradients(network, inputs, low)
    truth = gradients(network.double(), inputs)
    for name in truth:
        if not name.endswith("k_up.bias"):
            assert error(mine[name], truth[name]) < (0.05 if low else 1e-4), name


def test_a_second_way_back_gives_the_same():
    network, inputs = random_network(), torch.randint(0, 50, (2, 9))
    loss = network.loss(inputs, inputs)
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    loss.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(first, network.parameters(), strict=True))


def test_hooks_and_foreign_parts_are_called():
    layer, x = random_network().model.layers[0], draw(1, 4, 48)
    assert fused.fused_layer(layer, x) is not None
    called = []
    handle = layer.ffn.up.register_forward_hook(lambda *_: called.append(1))
    layer(x)
    assert called
    handle.remove()
    assert fused.fused_layer(layer, x) is not None

    class Adapter(type(layer.ffn.up)):
        pass

    layer.ffn.up.__class__ = Adapter
    assert fused.fused_layer(layer, x) is None


def test_frozen_parts_get_no_gradient():
    network, inputs = random_network(), torch.randint(0, 50, (2, 9))
    network.model.layers[0].attention.requires_grad_(False)
    network.loss(inputs, inputs).backward()
    assert network.model.layers[0].attention.q_up.weight.grad is None
    assert network.model.layers[0].ffn.up.A.grad is not None


@settings(deadline=None, max_examples=25)
@given(x=st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_rounding_to_bfloat16_is_torchs(x):
    values = torch.tensor([x])
    zeros = torch.zeros_like(values)
    kernels.add(zeros, (values.bfloat16(), zeros[0]), mine := torch.empty_like(zeros))
    assert torch.equal(mine.nan_to_num(7.0), values.bfloat16().float().nan_to_num(7.0))


@LOWS
def test_what_is_computed_again_gives_the_same_gradients(low):
    network = I3Network(SIZES)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    inputs = torch.randint(0, SIZES.vocab_size, (2, 37))
    gradients = []
    for mode in ("none", "selective", "full"):
        network.model.set_gradient_checkpointing(mode)
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low == torch.bfloat16):
            network.loss(inputs, inputs).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for name, grads in zip(
        dict(network.named_parameters()), zip(*gradients, strict=True), strict=True
    ):
        assert all(torch.equal(grads[0], other) for other in grads[1:]), name


@pytest.mark.parametrize("size", [1, 3, 32, 100])
@pytest.mark.parametrize("factor", [0.0, 1e-3, 1.0, 40.0])
def test_the_scale_of_a_transition(size, factor):
    A = factor * draw(size, size)
    mine, truth = kernels.transition_scale(A), ops_i3._transition_scale(A)
    assert mine.shape == truth.shape
    assert torch.allclose(mine, truth, rtol=1e-6, atol=0)


def test_what_follows_operations_sees_them_all():
    A = 3 * draw(8, 8)
    truth = ops_i3.stable_transition(A)
    assert torch.allclose(torch.func.vmap(ops_i3.stable_transition)(A[None])[0], truth)
    graph = make_fx(ops_i3.stable_transition)(draw(8, 8, seed=1))
    assert torch.allclose(graph(A), truth)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        traced = torch.jit.trace(ops_i3.stable_transition, draw(8, 8, seed=1))
    assert torch.allclose(traced(A), truth)
    with FakeTensorMode() as mode:
        assert ops_i3.stable_transition(mode.from_tensor(A)).shape == A.shape
