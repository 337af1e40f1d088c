"""The compiled step of generation against the network's own."""

import copy

import pytest
import torch
from torch import nn

from i3lm.generation import Decoder
from i3lm.model import COMPILED, decoding
from i3lm.model.decoding import CompiledStep, Pace
from i3lm.model.fused import Factors, parts_of
from i3lm.model.network import I3Network
from i3lm.presets import Architecture

compiled = pytest.mark.skipif(not COMPILED, reason="no compiler built the C kernels here")


def random_network(**sizes) -> I3Network:
    """Its factors are bfloat16 numbers, so that the compiled step has nothing to round."""
    torch.manual_seed(5)
    config = {
        "vocab_size": 50,
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "max_position_embeddings": 24,
        "rank": 7,
        "state_size": 5,
    }
    network = I3Network(Architecture(**{**config, **sizes})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for layer in network.model.layers:
            parts = parts_of(layer)
            for name in Factors._fields:
                factor = getattr(parts, name)
                factor.copy_(factor.bfloat16())
        for factor in (network.lm_head.A, network.lm_head.B):
            factor.copy_(factor.bfloat16())
    return network


@compiled
@pytest.mark.parametrize("streams", [1, 3, 4, 9])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", [{}, {"used_vocab_size": 41, "rank": 1, "state_size": 1}])
@torch.inference_mode()
def test_it_is_the_networks_step(streams, threads, sizes):
    network = random_network(**sizes)
    step, ids = CompiledStep(network), torch.randint(0, 41, (streams, 24))
    mine, truth = network.new_states(), network.new_states()
    for states in (mine, truth):
        network(ids[:, :3], states)
    for i in range(3, 24):
        expected = network(ids[:, i : i + 1], truth)[:, 0]
        got = step(ids[:, i : i + 1], mine, threads)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    for a, b in zip(mine, truth, strict=True):
        assert a.length == b.length == 24
        for x, y in zip(
            a.buffers(streams, network.config), b.buffers(streams, network.config), strict=True
        ):
            assert torch.allclose(x, y, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="24 positions"):
        step(ids[:, :1], mine)


WIDE = {"hidden_size": 96, "num_attention_heads": 2, "rank": 32, "intermediate_size": 160}


@compiled
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize(
    "sizes", [{}, {"state_size": 200}, {**WIDE, "max_position_embeddings": 41}]
)
@pytest.mark.parametrize("lengths", [(1, 1), (2, 1, 20), (7, 6, 11), (18, 3), (19, 5), (24,)])
@torch.inference_mode()
def test_it_reads_prompts_as_the_network_in_float64_does(streams, sizes, lengths):
    """In stretches of any length, each going on from what the ones before have left.

    torch's float32 is off by up to 7e-5 here.
    """
    network = random_network(**sizes)
    step, truth = CompiledStep(network), copy.deepcopy(network).double()
    mine, states = network.new_states(), truth.new_states()
    for length in lengths:
        ids = torch.randint(0, 50, (streams, length))
        expected = truth(ids, states)[:, -1]
        got = step(ids, mine)
        torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)
    for a, b in zip(mine, states, strict=True):
        assert a.length == b.length == sum(lengths)
        pairs = zip(
            a.buffers(streams, network.config), b.buffers(streams, truth.config), strict=True
        )
        for x, y in pairs:
            assert torch.allclose(x.double(), y, atol=1e-4, rtol=1e-4)


@compiled
@torch.inference_mode()
def test_a_prompt_longer_than_a_call_is_read_in_several(monkeypatch):
    network, ids = random_network(), torch.randint(0, 50, (2, 23))
    step, found = CompiledStep(network), []
    for at_once in (256, 5):
        monkeypatch.setattr(decoding, "AT_ONCE", at_once)
        found.append(step(ids, network.new_states()))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
    states = network.new_states()
    step(ids, states)
    with pytest.raises(ValueError, match="24 positions"):
        step(ids[:, :2], states)
    assert states[0].length == 23


@compiled
@torch.inference_mode()
def test_a_call_that_fails_changes_nothing(monkeypatch):
    network, ids = random_network(), torch.randint(0, 50, (2, 5))
    step, states = CompiledStep(network), network.new_states()
    step(ids, states)
    for bad, error, words in [
        (ids[:, :0], ValueError, "no token"),
        (ids.int(), ValueError, "int64"),
        (ids + 50, IndexError, "none of 50"),
        (ids - 50, IndexError, "token -"),
        (ids[:1], ValueError, "hold 2 texts, not 1"),
    ]:
        with pytest.raises(error, match=words):
            step(bad, states)

    def no_memory(*_):
        raise MemoryError

    with monkeypatch.context() as full:
        full.setattr(decoding, "tensor_call", no_memory)
        with pytest.raises(MemoryError):
            step(ids, states)
    assert [state.length for state in states] == [5] * 3
    with pytest.raises(ValueError, match="no token"):
        Decoder(network).feed([])


@compiled
@torch.inference_mode()
def test_states_are_float32_whatever_the_default_is():
    network, ids = random_network(), torch.randint(0, 50, (1, 20))
    expected = CompiledStep(network)(ids, network.new_states())
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = CompiledStep(network)(ids, network.new_states())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@compiled
@torch.inference_mode()
def test_rounded_factors_change_logits_by_a_rounding_alone():
    network = random_network()
    for parameter in network.parameters():
        parameter.mul_(1 + torch.rand_like(parameter) / 100)
    step, states, truth = CompiledStep(network), network.new_states(), network.new_states()
    ids = torch.arange(12)[None]
    for each in (states, truth):
        network(ids, each)
    got, expected = step(ids[:, 3:4], states), network(ids[:, 3:4], truth)[:, 0]
    assert not torch.equal(got, expected)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


@compiled
def test_it_stands_for_plain_float32_networks_only():
    assert CompiledStep.fits(random_network())
    assert not CompiledStep.fits(random_network().double())
    assert not CompiledStep.fits(random_network().bfloat16())
    network = random_network()
    network.model.layers[1].ffn.up.register_forward_hook(lambda *_: None)
    assert not CompiledStep.fits(network)
    network = random_network()
    network.model.layers[0].attention.o_proj = nn.Linear(36, 36)
    assert not CompiledStep.fits(network)
    for name in ("", "model", "model.norm", "model.embed_tokens", "model.layers.1", "lm_head"):
        network = random_network()
        network.get_submodule(name).register_forward_hook(lambda *_: None)
        assert not CompiledStep.fits(network), name


@compiled
@pytest.mark.parametrize("streams", [1, 5])
@pytest.mark.parametrize(
    "sizes", [{}, WIDE, {"hidden_size": 99, "rank": 33, "intermediate_size": 70}]
)
def test_any_number_of_threads_gives_the_same_bits(streams, sizes):
    network, ids = random_network(**sizes), torch.randint(0, 50, (streams, 12))
    step, found = CompiledStep(network), []
    for threads in (1, 2, 3, 7):
        states = network.new_states()
        with torch.inference_mode():
            parts = ids[:, :7], *ids[:, 7:].split(1, dim=1)
            found.append(torch.stack([step(part, states, threads) for part in parts]))
    assert all(torch.equal(found[0], other) for other in found[1:])


@compiled
def test_every_decoder_sees_the_weights_as_they_are_then():
    network = random_network()
    torch.manual_seed(0)
    said = []
    for _ in range(2):
        decoder = Decoder(network)
        decoder.feed([1, 2])
        said.append(decoder.feed([3]))
        for parameter in network.parameters():
            parameter.data.mul_(1.5)  # which no version counts
    assert not torch.allclose(*said, atol=0.1)


def run_pace(most, seconds, steps):
    """Return the numbers of threads of each step; seconds: of a step, by number of threads."""
    pace, found = Pace(most), []
    for _ in range(steps):
        found.append(pace.choose())
        pace.took(found[-1], seconds(found[-1], len(found)))
    return found


def test_the_quickest_number_of_threads_does_nearly_all_steps():
    assert Pace(1).counts == [1]
    assert Pace(6).counts == [1, 2, 4, 6]
    assert set(run_pace(1, lambda count, step: 1.0, 9)) == {1}
    for best in (1, 2, 4, 6):
        found = run_pace(6, lambda count, step, best=best: 1 + abs(count - best) / 10, 2000)
        assert found.count(best) > 0.9 * len(found)
        assert set(found) == {1, 2, 4, 6}


def test_where_a_wait_takes_long_it_is_hardly_tried_and_found_again_once_it_is_quick():
    found = run_pace(2, lambda count, step: 100 if count == 2 else 1, 3000)
    assert found.count(2) < 9
    found = run_pace(64, lambda count, step: 1000**count if count > 2 else 1, 300)
    assert found.count(4) < 7
    assert max(found) <= 8
    found = run_pace(2, lambda count, step: 9 if step in (1, 5) else 1 / count, 40)
    assert found[10:] == [2] * 30  # a single slow step tells nothing
    found = run_pace(2, lambda count, step: (100 if step < 300 else 0.5) if count == 2 else 1, 3000)
    assert found[-1000:].count(2) > 900
    found = run_pace(2, lambda count, step: (100 if step > 300 else 0.5) if count == 2 else 1, 900)
    assert found[301:].count(2) < 9


@compiled
def test_a_decoder_says_the_same_with_and_without_it(monkeypatch):
    ids = list(range(10))
    logits = []
    for fits in (True, False):
        monkeypatch.setattr(CompiledStep, "fits", staticmethod(lambda network, fits=fits: fits))
        decoder = Decoder(random_network())
        steps = [decoder.feed(ids), *(decoder.feed([i]) for i in range(30))]  # past the window
        assert decoder.moved
        logits.append(torch.stack(steps))
    assert torch.allclose(*logits, atol=1e-5, rtol=1e-4)
