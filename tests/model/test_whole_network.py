"""A network's gradients without autograd, against float64 and against autograd."""

import copy

import pytest
import torch

from i3lm.model import COMPILED, kernels, ops_i3, whole_layer, whole_network
from i3lm.model.dropout import Dropout
from i3lm.model.network import I3Network
from i3lm.presets import Architecture

pytestmark = pytest.mark.skipif(
    not COMPILED or not kernels.multiplies_bfloat16(),
    reason="no compiled kernels, or no bfloat16 products on this processor",
)
SCALE = 0.01
SIZES = {  # vocabulary, width, layers, heads, feed-forward, rank, states; batch, steps
    "one layer": ((50, 32, 1, 2, 32, 32, 32), (1, 32)),
    "short sequences": ((77, 96, 3, 2, 160, 32, 64), (6, 16)),
    "long ones": ((1033, 64, 2, 1, 96, 32, 32), (2, 96)),
}


def network_of(sizes, **more):
    vocabulary, width, layers, heads, inner, rank, states = sizes
    torch.manual_seed(0)
    network = I3Network(
        Architecture(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            max_position_embeddings=96,
            rank=rank,
            state_size=states,
            **more,
        )
    )
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.train()


def drawn(name, **more):
    sizes, shape = SIZES[name]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (2, *shape), generator=generator)
    return network_of(sizes, **more), ids[0], ids[1]


def by_autograd(network, ids, targets, dropout=None, low=True):
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss = network.loss(ids, targets, dropout) * SCALE
    loss.backward()
    return float(loss.detach()), gradients(network)


def gradients(network):
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def whole(network, ids, targets, dropout=None, times=1):
    """Return the loss and gradients, all computed without autograd."""
    network.zero_grad()
    for _ in range(times):
        loss = whole_network.accumulate(network, ids, targets, SCALE, dropout)
        assert loss is not None
    return float(loss), gradients(network)


def error(mine, truth):
    assert mine.isfinite().all()
    return float((mine.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-9))


def drops(network, ids):
    keys = torch.arange(len(ids) * len(network.model.layers) * 2) * 97_531 % 2**32
    return Dropout(0.3, keys.view(len(ids), -1, 2))


@pytest.mark.parametrize("dropped", [False, True], ids=["whole", "dropped"])
@pytest.mark.parametrize("name", SIZES)
def test_as_near_the_truth_as_autograd(instructions, name, dropped):
    network, ids, targets = drawn(name)
    dropout = drops(network, ids) if dropped else None
    loss, mine = whole(network, ids, targets, dropout)
    exact = by_autograd(copy.deepcopy(network).double(), ids, targets, dropout, low=False)
    network.zero_grad()
    other = by_autograd(network, ids, targets, dropout)
    # deepcopy keeps .grad
    exact[1].update({n: g - mine[n] for n, g in exact[1].items()})
    assert loss == pytest.approx(exact[0], rel=3e-3)
    for key, truth in exact[1].items():
        if key.endswith("k_up.bias"):  # which softmax takes away
            assert not mine[key].any()
        else:
            assert error(mine[key], truth) < 1.5 * error(other[1][key], truth) + 4e-3, key


def test_gradients_are_added(instructions):
    network, ids, targets = drawn("short sequences")
    once, twice = whole(network, ids, targets)[1], whole(network, ids, targets, times=2)[1]
    assert all(error(twice[key], 2 * once[key]) < 1e-6 for key in once if once[key].any())


def test_gradients_are_added_to_those_of_autograd():
    network, ids, targets = drawn("short sequences")
    once = whole(network, ids, targets)[1]
    network.zero_grad()
    network.model.layers[1].ffn.up.A.grad = torch.ones_like(network.model.layers[1].ffn.up.A)
    assert whole_network.accumulate(network, ids, targets, SCALE, None) is not None
    both = gradients(network)
    assert error(both.pop("model.layers.1.ffn.up.A") - 1, once["model.layers.1.ffn.up.A"]) < 1e-3
    assert all(error(both[key], once[key]) < 1e-6 for key in both)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_computed_again_is_the_same(instructions, mode):
    network, ids, targets = drawn("long ones")
    dropout = drops(network, ids)
    once = whole(network, ids, targets, dropout)
    network.model.set_gradient_checkpointing(mode)
    again = whole(network, ids, targets, dropout)
    assert once[0] == again[0]
    assert all(torch.equal(once[1][key], again[1][key]) for key in once[1])


def test_threads_change_no_bit(instructions):
    network, ids, targets = drawn("long ones")
    had, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(whole(network, ids, targets))
    finally:
        torch.set_num_threads(had)
    assert len({loss for loss, _ in found}) == 1
    assert all(torch.equal(found[0][1][k], other[k]) for _, other in found[1:] for k in other)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_matrices_stored_in_few_bits(mode):
    network, ids, targets = drawn("short sequences")
    network.model.store(4, seed=0)
    network.model.set_gradient_checkpointing(mode)
    matrix = network.model.layers[0].ffn.up.A
    mine = whole(network, ids, targets)
    assert matrix.numel() == 0
    assert matrix.grad.shape == matrix.stored.shape
    network.zero_grad()
    other = by_autograd(network, ids, targets)
    assert mine[0] == pytest.approx(other[0], rel=1e-3)
    assert all(error(mine[1][k], other[1][k]) < 0.03 for k in mine[1] if mine[1][k].any())


def test_rows_that_no_token_has_get_no_gradient():
    network, ids, targets = drawn("one layer", used_vocab_size=45)
    _, grads = whole(network, ids.clamp(max=44), targets.clamp(max=44))
    assert not grads["lm_head.A"][45:].any()
    assert not grads["lm_head.bias"][45:].any()
    assert grads["lm_head.A"][:45].any()


def test_a_nan_reaches_the_loss():
    network, ids, targets = drawn("one layer")
    network.model.norm.weight.data[3] = torch.nan
    network.zero_grad()
    assert whole_network.accumulate(network, ids, targets, SCALE, None).isnan()


def test_training_takes_it(monkeypatch):
    network, ids, targets = drawn("one layer")
    calls, run = [], whole_layer.run_backward
    monkeypatch.setattr(whole_layer, "run_backward", lambda *a: calls.append(1) or run(*a))
    monkeypatch.setattr(network, "loss", None)
    network.accumulate(ids, targets, SCALE, None, True)
    assert calls


def hooked(network):
    network.model.layers[0].ffn.register_forward_hook(lambda *_: None)


def frozen(network):
    network.model.embed_tokens.weight.requires_grad_(False)


def replaced(network):
    network.model.layers[0].attention.q_up = torch.nn.Sequential(
        network.model.layers[0].attention.q_up
    )


def turned(network):
    matrix = network.model.layers[0].ffn.up.A
    matrix.data = matrix.data.t().contiguous().t()


def narrow(network):
    network.lm_head.B.data = network.lm_head.B.data.double()


def watched(network):
    network.model.norm.register_forward_pre_hook(lambda *_: None)


@pytest.mark.parametrize("change", [hooked, frozen, replaced, turned, narrow, watched])
@pytest.mark.parametrize("before", [False, True], ids=["at first", "later"])
def test_what_is_not_plain_is_left_to_autograd(change, before):
    """Also where the network was plain at the pass before."""
    network, ids, targets = drawn("one layer")
    if before:
        assert whole_network.accumulate(network, ids, targets, SCALE, None) is not None
    network.zero_grad()
    change(network)
    assert whole_network.accumulate(network, ids, targets, SCALE, None) is None
    assert all(p.grad is None for p in network.parameters())


def test_a_new_parameter_is_taken():
    network, ids, targets = drawn("one layer")
    whole(network, ids, targets)
    old = network.model.layers[0].ffn.up.A
    network.model.layers[0].ffn.up.A = torch.nn.Parameter(old.detach().clone())
    whole(network, ids, targets)
    assert network.model.layers[0].ffn.up.A.grad.any()


@pytest.mark.parametrize("shape", [(1, 33), (2, 24)])
def test_other_sizes_are_left_to_autograd(shape):
    network, _, _ = drawn("one layer")
    ids = torch.ones(shape, dtype=torch.int64)
    assert whole_network.accumulate(network, ids, ids, SCALE, None) is None
    assert float(network.accumulate(ids, ids, SCALE, bf16=True)) > 0
    assert network.model.norm.weight.grad.any()


def test_without_kernels_autograd_does_it(monkeypatch):
    monkeypatch.setattr(ops_i3, "fused_layer", None)
    network, ids, targets = drawn("one layer")
    assert whole_network.accumulate(network, ids, targets, SCALE, None) is None


def test_float32_training_is_autograds(monkeypatch):
    network, ids, targets = drawn("one layer")
    monkeypatch.setattr(whole_layer, "run_forward", None)
    loss = network.accumulate(ids, targets, SCALE)
    exact = copy.deepcopy(network).double().loss(ids, targets) * SCALE
    assert float(loss) == pytest.approx(float(exact.detach()), rel=1e-5)


def test_a_copy_is_a_network_of_its_own():
    network, ids, targets = drawn("one layer")
    whole(network, ids, targets)
    copied = copy.deepcopy(network)
    copied.zero_grad()
    before = gradients(network)
    assert whole_network.accumulate(copied, ids, targets, SCALE, None) is not None
    assert all(torch.equal(before[n], p.grad) for n, p in network.named_parameters())
    assert all(torch.equal(before[n], p.grad) for n, p in copied.named_parameters())
