"""A layer in one call, against float64 and against the passes between torch's products."""

import copy

import pytest
import torch

from i3lm.model import COMPILED, kernels, whole_layer
from i3lm.model.fused import Kept
from networks import noisy_network, relative_error

pytestmark = pytest.mark.skipif(
    not COMPILED or not kernels.multiplies_bfloat16(),
    reason="no compiled kernels, or no bfloat16 products on this processor",
)
SIZES = {  # width, heads, rank, states, feed-forward; batch, steps
    "one block": ((32, 2, 32, 32, 32), (1, 32)),
    "short sequences": ((96, 2, 32, 64, 160), (6, 16)),
    "long ones": ((64, 1, 32, 32, 96), (1, 288)),
    "high rank": ((128, 2, 96, 32, 256), (3, 64)),
}


def layer_of(sizes):
    width, heads, rank, states, inner = sizes
    network = noisy_network(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=32,
        rank=rank,
        state_size=states,
    )
    return network.model.layers[0]


def results(layer, x, grad, mode="none", low=True):
    """Return the output, and the gradients of x and the parameters, by name."""
    layer.checkpointing = mode
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = layer(x) if low else layer._branches(x, None, None, None, None)
    y.backward(grad)
    return {"y": y.detach(), "x": x.grad} | {n: p.grad for n, p in layer.named_parameters()}


def drawn(sizes, batch, steps):
    x = torch.randn(batch, steps, sizes[0], generator=torch.Generator().manual_seed(1))
    return x, torch.randn(x.shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", SIZES)
def test_as_near_the_truth_as_torchs_products(monkeypatch, instructions, name):
    sizes, (batch, steps) = SIZES[name]
    layer, (x, grad) = layer_of(sizes), drawn(sizes, batch, steps)
    called = []
    forward = whole_layer.forward
    monkeypatch.setattr(
        whole_layer, "forward", lambda *a, **k: (called.append(1), forward(*a, **k))
    )
    mine = results(layer, x, grad)
    assert called
    truth = results(copy.deepcopy(layer).double(), x.double(), grad.double(), low=False)
    monkeypatch.setattr(whole_layer, "fits", lambda *_: False)
    other = results(layer, x, grad)
    assert len(called) == 1
    for key, exact in truth.items():
        if key == "attention.k_up.bias":  # which softmax takes away
            assert not mine[key].any()
        else:
            assert (
                relative_error(mine[key], exact) < 1.5 * relative_error(other[key], exact) + 2e-3
            ), key


def test_what_is_kept_lies_in_the_order_of_its_names():
    """C is given addresses alone."""
    names = [name for name in Kept._fields if name not in ("x1", *whole_layer.ABSENT)]
    assert list(whole_layer.kinds_kept(whole_layer.Sizes(1, 32, 32, 32, 32, 32, 1))) == names


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_computed_again_is_the_same(instructions, mode):
    sizes, (batch, steps) = SIZES["high rank"]
    layer, (x, grad) = layer_of(sizes), drawn(sizes, batch, steps)
    once, again = results(layer, x, grad), results(layer, x, grad, mode)
    assert all(torch.equal(once[key], again[key]) for key in once)


@pytest.mark.parametrize("name", ["short sequences", "long ones"])
def test_threads_change_no_bit(instructions, on_threads, name):
    sizes, (batch, steps) = SIZES[name]
    layer, (x, grad) = layer_of(sizes), drawn(sizes, batch, steps)
    found = []
    for threads in (1, 2, 3):
        on_threads(threads)
        found.append(results(layer, x, grad))
    assert all(torch.equal(found[0][key], other[key]) for other in found[1:] for key in other)


def test_a_nan_stays_one_and_stays_in_its_sequence(instructions):
    sizes, (batch, steps) = SIZES["high rank"]
    layer, (x, grad) = layer_of(sizes), drawn(sizes, batch, steps)
    x[1, 5, 3] = torch.nan
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    bad = y.isnan().any(2)
    assert bad[1, 5:].all()
    assert not bad[[0, 2]].any()
    y.backward(grad)
    assert layer.ffn.up.A.grad.isnan().all()


@pytest.mark.parametrize(
    ("sizes", "tokens"), [((32, 2, 32, 32, 32), 33), ((48, 1, 32, 32, 32), 32)]
)
def test_other_sizes_take_the_other_way(monkeypatch, sizes, tokens):
    monkeypatch.setattr(whole_layer, "forward", None)
    layer, (x, grad) = layer_of(sizes), drawn(sizes, 1, tokens)
    assert results(layer, x, grad)["y"].isfinite().all()


def test_parameters_may_lie_as_they_like():
    sizes, (batch, steps) = SIZES["high rank"]
    layer, (x, grad) = layer_of(sizes), drawn(sizes, batch, steps)
    expected = results(layer, x, grad)
    for parameter in (layer.recurrence.A, layer.ffn.up.B):
        parameter.data = parameter.data.t().contiguous().t()
    found = results(layer, x, grad)
    assert all(
        relative_error(found[k], expected[k].double()) < 0.02 for k in expected if "k_up.b" not in k
    )


def test_a_default_device_changes_nothing(instructions):
    sizes, (batch, steps) = SIZES["one block"]
    layer, (x, grad) = layer_of(sizes), drawn(sizes, batch, steps)
    expected = results(layer, x, grad)
    with torch.device("meta"):
        found = results(layer, x, grad)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
