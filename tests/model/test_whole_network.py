"""A network's gradients without autograd, against float64 and against autograd."""

import copy

import pytest
import torch

from i3lm.model import COMPILED, kernels, ops_i3, whole_layer, whole_network
from i3lm.model.dropout import Dropout
from networks import noisy_network, relative_error

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
    network = noisy_network(
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


def drops(network, ids):
    keys = torch.arange(len(ids) * len(network.model.layers) * 2) * 97_531 % 2**32
    return Dropout(0.3, keys.view(len(ids), -1, 2))


@pytest.mark.parametrize("dropped", [False, True], ids=["whole", "dropped"])
@pytest.mark.parametrize("name", SIZES)
def test_as_near_the_truth_as_autograd(instructions, name, dropped):
    network, ids, targets = drawn(name)
    dropout = drops(network, ids) if dropped else None
    loss, mine = whole(network, ids, targets, dropout)
    network.zero_grad()
    exact = by_autograd(copy.deepcopy(network).double(), ids, targets, dropout, low=False)
    other = by_autograd(network, ids, targets, dropout)
    assert loss == pytest.approx(exact[0], rel=3e-3)
    for key, truth in exact[1].items():
        if key.endswith("k_up.bias"):  # which softmax takes away
            assert not mine[key].any()
        else:
            assert (
                relative_error(mine[key], truth) < 1.5 * relative_error(other[1][key], truth) + 4e-3
            ), key


def test_gradients_are_added(instructions):
    network, ids, targets = drawn("short sequences")
    once, twice = whole(network, ids, targets)[1], whole(network, ids, targets, times=2)[1]
    assert all(relative_error(twice[key], 2 * once[key]) < 1e-6 for key in once if once[key].any())


@pytest.mark.parametrize("order", ["da", "ad", "dad", "aad"], ids=str)
def test_gradients_are_added_to_those_of_autograd(order):
    """d: direct, a: by autograd."""
    network, ids, targets = drawn("short sequences")
    once = whole(network, ids, targets)[1]
    network.zero_grad()
    by = by_autograd(network, ids, targets)[1]
    network.zero_grad()
    for way in order:
        if way == "a":
            by_autograd(network, ids, targets)
        else:
            assert whole_network.accumulate(network, ids, targets, SCALE, None) is not None
    for key, found in gradients(network).items():
        expected = order.count("d") * once[key] + order.count("a") * by[key]
        assert relative_error(found, expected) < 1e-5 or not expected.any(), key


def test_gradients_that_some_parameters_have_are_kept():
    network, ids, targets = drawn("short sequences")
    once = whole(network, ids, targets)[1]
    network.zero_grad()
    network.model.layers[1].ffn.up.A.grad = torch.ones_like(network.model.layers[1].ffn.up.A)
    assert whole_network.accumulate(network, ids, targets, SCALE, None) is not None
    both = gradients(network)
    assert (
        relative_error(both.pop("model.layers.1.ffn.up.A") - 1, once["model.layers.1.ffn.up.A"])
        < 1e-3
    )
    assert all(relative_error(both[key], once[key]) < 1e-6 for key in both)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_computed_again_is_the_same(instructions, mode):
    network, ids, targets = drawn("long ones")
    dropout = drops(network, ids)
    once = whole(network, ids, targets, dropout)
    network.model.set_gradient_checkpointing(mode)
    again = whole(network, ids, targets, dropout)
    assert once[0] == again[0]
    assert all(torch.equal(once[1][key], again[1][key]) for key in once[1])


def test_threads_change_no_bit(instructions, on_threads):
    network, ids, targets = drawn("long ones")
    found = []
    for threads in (1, 2, 3):
        on_threads(threads)
        found.append(whole(network, ids, targets))
    assert len({loss for loss, _ in found}) == 1
    assert all(torch.equal(found[0][1][k], other[k]) for _, other in found[1:] for k in other)


@pytest.mark.parametrize("master", [False, True], ids=["stored", "rounded"])
@pytest.mark.parametrize("mode", ["none", "full"])
def test_matrices_stored_in_few_bits(mode, master):
    network, ids, targets = drawn("short sequences")
    network.model.store(4, seed=0, master=master)
    network.model.set_gradient_checkpointing(mode)
    matrix = network.model.layers[0].ffn.up.A
    mine = whole(network, ids, targets)
    assert matrix.numel() == 0
    assert matrix.grad.shape == matrix.stored.shape
    network.zero_grad()
    other = by_autograd(network, ids, targets)
    assert mine[0] == pytest.approx(other[0], rel=1e-3)
    assert all(relative_error(mine[1][k], other[1][k]) < 0.03 for k in mine[1] if mine[1][k].any())


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


def patched(network):
    network.model.layers[0].forward = lambda x, *_, **__: x


def tied(network):
    attention = network.model.layers[0].attention
    attention.k_up.weight = attention.q_up.weight


def other_norm(network):
    network.model.norm = torch.nn.RMSNorm(32)


def hooked_parameter(network):
    network.model.norm.weight.register_hook(lambda grad: grad)


def hooked_after(network):
    network.model.norm.weight.register_post_accumulate_grad_hook(lambda p: None)


def hooked_back(network):
    network.model.layers[0].register_full_backward_pre_hook(lambda *_: None)


def pruned(network):
    up, down = network.model.layers[1].ffn.up, network.model.layers[1].ffn.down
    up.A, up.bias = (torch.nn.Parameter(p.detach()[:64]) for p in (up.A, up.bias))
    down.B = torch.nn.Parameter(down.B.detach()[:, :64].contiguous())


def pruned_in_place(network):
    up, down = network.model.layers[1].ffn.up, network.model.layers[1].ffn.down
    up.A.data, up.bias.data = up.A.data[:64], up.bias.data[:64]
    down.B.data = down.B.data[:, :64].contiguous()


def watched(network):
    network.model.norm.register_forward_pre_hook(lambda *_: None)


CHANGES = [
    *(hooked, frozen, replaced, turned, narrow, watched, patched, tied, other_norm),
    *(hooked_parameter, hooked_after, hooked_back, pruned, pruned_in_place),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", [False, True], ids=["at first", "later"])
def test_what_is_not_plain_is_left_to_autograd(change, before):
    """Also where the network was plain at the pass before."""
    network, ids, targets = drawn("long ones" if "pruned" in change.__name__ else "one layer")
    if before:
        assert whole_network.accumulate(network, ids, targets, SCALE, None) is not None
    network.zero_grad()
    change(network)
    assert whole_network.accumulate(network, ids, targets, SCALE, None) is None
    assert all(p.grad is None for p in network.parameters())


def test_gradients_that_lie_otherwise_are_left_to_autograd():
    network, ids, targets = drawn("one layer")
    matrix = network.model.layers[0].attention.o_proj.weight
    matrix.grad = torch.zeros_like(matrix).t()
    assert whole_network.accumulate(network, ids, targets, SCALE, None) is None


@pytest.mark.parametrize("before", [False, True], ids=["at first", "later"])
def test_hooks_of_all_modules_are_heeded(before):
    network, ids, targets = drawn("one layer")
    if before:
        assert whole_network.accumulate(network, ids, targets, SCALE, None) is not None
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        for _ in range(2):
            assert whole_network.accumulate(network, ids, targets, SCALE, None) is None
    finally:
        hook.remove()


def test_a_hook_that_is_gone_is_forgotten():
    network, ids, targets = drawn("one layer")
    hook = network.model.layers[0].register_forward_hook(lambda *_: None)
    assert whole_network.accumulate(network, ids, targets, SCALE, None) is None
    hook.remove()
    assert whole_network.accumulate(network, ids, targets, SCALE, None) is not None


def test_a_new_layer_is_seen():
    network, ids, targets = drawn("one layer")
    whole(network, ids, targets)
    network.model.layers.append(copy.deepcopy(network.model.layers[0]))
    loss, grads = whole(network, ids, targets)
    assert grads["model.layers.1.ffn.up.A"].any()
    network.zero_grad()
    assert loss == pytest.approx(by_autograd(network, ids, targets)[0], rel=1e-4)


def test_an_empty_microbatch_has_no_loss():
    network, ids, targets = drawn("one layer")
    assert whole_network.accumulate(network, ids[:0], targets[:0], SCALE, None) is None


def test_memory_that_runs_out_leaves_nothing_held(monkeypatch):
    network, ids, targets = drawn("short sequences")
    network.model.store(4, seed=0)
    expected = whole(network, ids, targets)
    calls, run = [], whole_layer.run_backward

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return run(*arguments)

    monkeypatch.setattr(whole_layer, "run_backward", fail)
    network.zero_grad()
    with pytest.raises(MemoryError):
        whole_network.accumulate(network, ids, targets, SCALE, None)
    assert network.model.layers[1].ffn.up.A.numel() == 0
    again = whole(network, ids, targets)
    assert again[0] == expected[0]
    assert all(torch.equal(again[1][key], expected[1][key]) for key in again[1])


def test_a_default_device_changes_nothing():
    network, ids, targets = drawn("one layer")
    expected = whole(network, ids, targets)
    with torch.device("meta"):
        found = whole(network, ids, targets)
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][key], expected[1][key]) for key in found[1])


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


@pytest.mark.parametrize(
    ("steps", "scored", "padded"), [(45, 45, 64), (33, 10, 64), (70, 7, 96), (96, 5, 96)]
)
@torch.no_grad()
def test_what_is_left_of_a_text_is_scored_in_whole_blocks(monkeypatch, steps, scored, padded):
    """The zeros that fill it up are neither seen nor scored."""
    sizes, _ = SIZES["long ones"]
    network = network_of(sizes).eval()
    ids = torch.randint(sizes[0], (2, steps))
    targets = torch.randint(sizes[0], (2, scored))
    truth = copy.deepcopy(network).double().loss(ids, targets)
    shapes = []
    room = whole_layer.room
    monkeypatch.setattr(
        whole_layer, "room", lambda p, shape, heads: shapes.append(shape) or room(p, shape, heads)
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = network.loss(ids, targets)
    assert [shape[1] for shape in shapes] == [padded] * sizes[2]
    assert loss == pytest.approx(float(truth), rel=5e-3)
