"""The network and its operations against the float64 truth, outputs and gradients."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from i3lm.model import COMPILED, ops_i3
from i3lm.model.network import I3Network
from i3lm.presets import PRESETS, Architecture

sys.path.insert(0, str(Path(__file__).parents[1]))
import naive

SIZES = Architecture(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=80,
    rank=5,
    state_size=6,
)


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    """Run a test with the C kernels and with the torch forms."""
    if request.param == "torch":
        for hook in ("recurrence_forward_kernel", "recurrence_backward_kernel"):
            monkeypatch.setattr(ops_i3, hook, None)
        for hook in ("cross_entropy_kernel", "head_kernel", "fused_layer"):
            monkeypatch.setattr(ops_i3, hook, None)
    elif not COMPILED:
        pytest.skip("no compiler built the C kernels here")
    return request.param


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fill what torch.empty and its kin return with NaN, so that unset memory shows."""
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def fill(*args, original=original, **kwargs):
            tensor = original(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, fill)


def random_network(config: Architecture = SIZES, spread: float = 0.3) -> I3Network:
    """A network in which nothing is zero, and A would grow without its bound."""
    torch.manual_seed(3)
    network = I3Network(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(spread * torch.randn_like(parameter))
            if name.endswith("recurrence.A"):
                parameter.add_(torch.eye(len(parameter)) * 0.5)
    return network


def tokens(batch: int, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SIZES.vocab_size, (batch, steps), generator=generator)


def close(mine: torch.Tensor, truth: torch.Tensor, tolerance: float = 2e-5) -> bool:
    scale = truth.abs().max().clamp(min=0.1)  # some gradients are zero but for rounding
    return bool(((mine.double() - truth).abs().max() / scale) < tolerance)


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (3, 2), (2, 7), (2, 63)])
def test_logits_and_all_gradients(form, poisoned_memory, batch, steps):
    network = random_network()
    inputs, targets = tokens(batch, steps), tokens(batch, steps, 1)
    truth = {n: p.detach().double().requires_grad_() for n, p in network.named_parameters()}
    expected = naive.logits(truth, SIZES, inputs)
    assert close(network(inputs), expected)
    loss = network.loss(inputs, targets)
    expected_loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="sum")
    assert close(loss, expected_loss)
    loss.backward()
    expected_loss.backward()
    for name, parameter in network.named_parameters():
        assert close(parameter.grad, truth[name].grad, 1e-4), name


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_gives_the_same_gradients(form, mode):
    network = random_network()
    gradients = []
    for again in (False, True):
        network.zero_grad()
        network.model.set_gradient_checkpointing(mode if again else "none")
        network.loss(tokens(2, 33), tokens(2, 33, 1)).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(close(a, b.double(), 1e-3) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("pieces", [[63], [1] * 63, [5, 1, 20, 37], [62, 1]])
def test_pieces_and_the_whole_agree(form, pieces):
    network = random_network()
    inputs = tokens(2, 63)
    with torch.no_grad():
        whole = network(inputs)
        states = network.new_states()
        parts = [network(piece, states) for piece in inputs.split(pieces, dim=1)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=2e-5)


def recurrence_inputs(batch: int, steps: int, d: int, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(steps)
    shapes = [(batch, steps, d), (batch, steps, n), (d,), (n, n), (d,), (batch, d), (batch, n)]
    x, u, w, A, D, h, s = (torch.randn(shape, generator=generator) for shape in shapes)
    A = 0.9 * A / torch.linalg.matrix_norm(A, 2)
    return [x, u, torch.sigmoid(w), A, D, h, s]


@pytest.mark.parametrize(
    ("batch", "steps", "d", "n"),
    [
        (2, 63, 70, 5),
        (1, 1, 3, 2),
        (3, 500, 130, 32),
        (1, 1000, 129, 1),
        (5, 2, 1, 7),
        (2, 40, 33, 300),
    ],
)
def test_recurrence_and_its_gradients(form, poisoned_memory, batch, steps, d, n):
    inputs = recurrence_inputs(batch, steps, d, n)
    mine = [t.clone().requires_grad_() for t in inputs]
    truth = [t.double().requires_grad_() for t in inputs]
    outputs, expected = ops_i3.recurrence(*mine), naive.recurrence(*truth)
    gradients = [torch.randn_like(t) for t in outputs]
    torch.autograd.backward(outputs, gradients)
    torch.autograd.backward(expected, [g.double() for g in gradients])
    for a, b in zip((*outputs, *mine), (*expected, *truth), strict=True):
        a, b = (a.grad, b.grad) if a.is_leaf else (a, b)
        assert close(a, b)


@pytest.mark.parametrize("steps", [2, 63, 64, 65, 200])
def test_blocked_attention_is_plain_attention(steps):
    generator = torch.Generator().manual_seed(steps)
    inputs = [torch.randn(2, 3, steps, 8, generator=generator) for _ in range(4)]
    mine = [t.clone().requires_grad_() for t in inputs[:3]]
    truth = [t.double().requires_grad_() for t in inputs[:3]]
    out = ops_i3.causal_attention(*mine)
    expected = F.scaled_dot_product_attention(*truth, is_causal=True)
    assert close(out, expected)
    out.backward(inputs[3])
    expected.backward(inputs[3].double())
    assert all(close(a.grad, b.grad) for a, b in zip(mine, truth, strict=True))


@pytest.mark.parametrize("block", [1, 7, 128])
def test_head_loss_is_cross_entropy(form, block):
    generator = torch.Generator().manual_seed(block)
    shapes = [(33, 12), (50, 4), (4, 12), (50,)]
    mine = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    truth = [t.detach().double().requires_grad_() for t in mine]
    targets = torch.randint(0, 50, (33,), generator=generator)
    loss = ops_i3.head_loss(*mine, targets, block)
    hidden, A, B, bias = truth
    expected = F.cross_entropy(hidden @ (A @ B).T + bias, targets, reduction="sum")
    assert close(loss, expected)
    (0.5 * loss).backward()
    (0.5 * expected).backward()
    assert all(close(a.grad, b.grad) for a, b in zip(mine, truth, strict=True))


def test_unused_rows_have_no_chance_and_no_gradient():
    config = Architecture(**{**vars(SIZES), "used_vocab_size": 41})
    network = random_network(config)
    inputs = tokens(2, 9).clamp(max=40)
    assert torch.isneginf(network(inputs)[..., 41:]).all()
    assert network(inputs)[..., :41].isfinite().all()
    network.loss(inputs, inputs).backward()
    assert not network.lm_head.A.grad[41:].any()
    assert network.lm_head.A.grad[:41].any()


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0, 1e6])
def test_transitions_never_grow(scale):
    A = scale * torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    bounded = ops_i3.stable_transition(A)
    radius = torch.linalg.eigvals(bounded.double()).abs().max()
    assert radius <= 1 + 1e-6
    if scale >= 1:
        assert radius > 0.95
    elif scale < 0.1:
        assert torch.equal(bounded, A)


@pytest.mark.parametrize("name", PRESETS)
def test_parts_sum_to_the_real_modules(name):
    config = PRESETS[name].architecture
    with torch.device("meta"):
        network = I3Network(config)
    assert sum(p.numel() for p in network.parameters()) == config.parameters


def test_published_totals():
    totals = {name: PRESETS[name].architecture.parameters for name in PRESETS}
    assert totals["i3-12m"] == 12_691_186
    assert totals["i3-22m"] == 22_640_626
    assert totals["i3-tiny"] == 711_106


@settings(deadline=None, max_examples=30)
@given(
    heads=st.integers(1, 4),
    size=st.integers(1, 9),
    layers=st.integers(1, 3),
    rank=st.integers(1, 9),
    states=st.integers(1, 9),
    vocabulary=st.integers(1, 99),
    positions=st.integers(1, 99),
    inner=st.integers(1, 99),
)
def test_the_count_is_right_for_any_sizes(
    heads, size, layers, rank, states, vocabulary, positions, inner
):
    config = Architecture(
        vocab_size=vocabulary,
        hidden_size=heads * size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        rank=rank,
        state_size=states,
    )
    with torch.device("meta"):
        network = I3Network(config)
    assert sum(p.numel() for p in network.parameters()) == config.parameters


def test_flops_are_those_of_the_card_sizes():
    assert PRESETS["i3-12m"].architecture.flops_per_token() == pytest.approx(70.4e6, rel=2e-3)


def test_initial_network_predicts_evenly_and_keeps_its_scale():
    torch.manual_seed(0)
    network = I3Network(SIZES)
    loss = network.loss(tokens(4, 64), tokens(4, 64, 1)) / 256
    assert abs(float(loss.detach()) - torch.tensor(50.0).log()) < 1.0
    factor = network.model.layers[0].ffn.up
    x = torch.randn(1000, 24)
    assert 0.5 < float(factor(x).detach().std()) < 1.5


def test_the_first_head_starts_by_looking_for_what_followed_before():
    torch.manual_seed(0)
    network = I3Network(PRESETS["i3-mini"].architecture)
    once = torch.randperm(1000)[:60]
    layer = network.model.layers[1]
    with torch.no_grad():
        x = network.model.embed_tokens(torch.cat([once, once])[None])
        x = x + layer.recurrence(layer.recurrence_norm(x))
        attention = layer.attention
        q, k, _ = attention.qkv_down(layer.attention_norm(x)).chunk(3, dim=-1)
        q, k = attention._heads(attention.q_up(q)), attention._heads(attention.k_up(k))
        scores = (q[0, 0] @ k[0, 0].T).tril() / q.shape[-1] ** 0.5
    found = scores[60:].argmax(-1)
    assert (found == torch.arange(60) + 1).float().mean() > 0.9
