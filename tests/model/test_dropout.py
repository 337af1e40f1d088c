"""Dropout of what layers add: the kernel against the mask, and the mask against chance."""

import pytest
import torch

from i3lm.model import COMPILED, ops_i3
from i3lm.model.dropout import Dropout, kept
from i3lm.model.network import I3Network
from i3lm.presets import Architecture


def keys_of(batch, layers=1, seed=0):
    generator = torch.default_generator.clone_state().manual_seed(seed)
    return torch.randint(2**32, (batch, layers, 2), generator=generator)


def truth(x, y, keys, share):
    """The definition, in float64."""
    stay = kept(keys, x.shape[1] * x.shape[2], share).view(x.shape)
    return x + torch.where(stay, (y - x) / (1 - share), 0)


@pytest.mark.skipif(not COMPILED, reason="no compiler built the C kernels here")
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 13), (2, 130, 129), (0, 4, 4)])
@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 0.999999])
def test_the_kernel_and_its_gradients_against_float64(shape, share):
    torch.manual_seed(1)
    x, y, weights = (torch.randn(shape) for _ in range(3))
    keys = keys_of(shape[0], 2)
    pair = x.clone().requires_grad_(), y.clone().requires_grad_()
    got = Dropout(share, keys)(*pair, 1)
    (got * weights).sum().backward()
    exact = x.double().requires_grad_(), y.double().requires_grad_()
    expected = truth(*exact, keys[:, 1], share)
    (expected * weights).sum().backward()
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5 / (1 - share))
    for mine, other in zip(pair, exact, strict=True):
        torch.testing.assert_close(
            mine.grad, other.grad.float(), rtol=1e-5, atol=1e-5 / (1 - share)
        )


@pytest.mark.skipif(not COMPILED, reason="no compiler built the C kernels here")
def test_any_number_of_threads_drops_the_same(on_threads):
    x, y, found = torch.zeros(3, 100, 99), torch.ones(3, 100, 99), []
    for threads in (1, 2, 3):
        on_threads(threads)
        found.append(Dropout(0.2, keys_of(3))(x, y, 0))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_where_the_kernel_does_not_fit_the_same_numbers_go():
    x, y, keys = torch.zeros(2, 9, 11), torch.ones(2, 9, 11), keys_of(2)
    narrow = Dropout(0.25, keys)(x.bfloat16(), y.bfloat16(), 0)
    assert torch.equal(narrow != 0, Dropout(0.25, keys)(x, y, 0) != 0)


def test_numbers_fall_by_chance_and_apart():
    count = 1 << 18
    for share in (0.1, 0.4):
        stay = kept(keys_of(6).flatten(0, 1), count, share)
        deviation = (share * (1 - share) / count) ** 0.5
        assert ((~stay).double().mean(1) - share).abs().max() < 4 * deviation
        centred = stay.double() - stay.double().mean(1, keepdim=True)
        rows = torch.corrcoef(centred)
        assert (rows - torch.eye(6)).abs().max() < 5 / count**0.5
        for distance in (1, 2, 64, 256, 1024):  # neighbours, channels, time steps
            product = (centred[:, distance:] * centred[:, :-distance]).mean(1)
            assert (product / (share * (1 - share))).abs().max() < 5 / count**0.5
    assert kept(keys_of(1)[0], 100, 0.0).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_network_drops_of_every_layer_alone(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(ops_i3, "fused_layer", None)
    torch.manual_seed(0)
    sizes = Architecture(
        vocab_size=50, hidden_size=12, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=20, max_position_embeddings=8, rank=3, state_size=4,
    )  # fmt: skip
    network, ids = I3Network(sizes), torch.randint(0, 50, (2, 8))
    keys = keys_of(2, 3)
    x = network.model.embed_tokens.weight[ids] + network.model.embed_positions.weight[:8]
    for i, layer in enumerate(network.model.layers):
        x = truth(x, layer(x, None), keys[:, i], 0.3)
    expected = network.head_loss(network.model.norm(x), ids)
    got = network.loss(ids, ids, Dropout(0.3, keys))
    torch.testing.assert_close(got, expected)
    grads = []
    for loss in (got, expected):
        network.zero_grad()
        loss.backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-5, msg=name)
