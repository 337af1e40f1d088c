"""Weights of 8 and 4 bits: the format, a network that trains with them, runs that resume."""

import json

import pytest
import torch

from i3lm.folder import load_folder
from i3lm.model.network import I3Network
from i3lm.model.stored import GROUP, LEVELS, SMALLEST, StoredMatrix, portions, state_of, stored_in
from i3lm.native import tensor_library
from i3lm.optim import make_optimizer
from i3lm.presets import Architecture
from i3lm.rounding import seed_of

SIZES = Architecture(
    vocab_size=400,
    hidden_size=72,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=144,
    max_position_embeddings=16,
    rank=60,
    state_size=4,
)
KEY = "model.layers.0.attention.o_proj.weight"
SHAPES = [(1, 1), (5, 7), (32, 4), (33, 31), (257, 129)]
BOTH = pytest.mark.parametrize("compiled", [True, False])


@pytest.fixture
def form(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr("i3lm.model.stored.tensor_library", lambda: None)


def draw(shape, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * (torch.rand(shape, generator=generator) > 0.1)


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_move_by_less_than_a_level(form, compiled, bits, shape):
    x = draw(shape)
    stored = StoredMatrix.of(x, bits, seed=3)
    scale = stored.scales.float().repeat_interleave(GROUP)[: x.numel()].view(shape)
    assert ((stored.read() - x).abs() <= scale * (1 + 1e-5)).all()
    assert stored.codes.numel() == stored.scales.numel() * GROUP * bits // 8
    again = StoredMatrix.of(stored.read(), bits, seed=4).read()
    assert ((again - stored.read()).abs() <= 1.02 * scale).all()
    zero = StoredMatrix.of(torch.zeros(shape), bits, seed=3)
    assert not zero.read().any()


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_has_the_right_mean(form, compiled, bits):
    x, rounds = draw((8, 40)), 1500
    total = sum(StoredMatrix.of(x, bits, seed_of(i, 1)).read().double() for i in range(rounds))
    level = float(x.abs().max()) / LEVELS[bits]
    assert ((total / rounds - x).abs() < 4 * level / rounds + level / 65536).all()


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
def test_small_changes_are_not_lost_and_do_not_wander(form, compiled, bits):
    """200 updates of a hundredth of a level; independent draws would be off by up to 4 or 5."""
    x = draw((8, 40))
    stored, steps = StoredMatrix.of(x, bits, seed_of(0, 1)), 200
    begin, level = stored.read(), stored.scales.float().repeat_interleave(GROUP).view(8, 40)
    k = (begin / level).abs()
    move = (k > 2.5) & (k < 0.8 * LEVELS[bits])  # not through zero; the largest keep the scale
    change = torch.where(move, -0.01 * level * begin.sign(), 0)
    for step in range(1, steps + 1):
        stored.write(stored.read() + change, seed_of(step, 1))
    assert move.sum() > 20
    assert ((stored.read() - begin - steps * change).abs() < 2 * level).all()


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("start", ["nothing", "numbers"])
def test_groups_grow_by_small_changes(form, compiled, bits, start):
    """All numbers move outward by the same, the largest too, which is where the scale ends."""
    x = draw((8, 40)) if start == "numbers" else torch.zeros(8, 40)
    stored, steps = StoredMatrix.of(x, bits, seed_of(0, 1)), 400
    begin, change = stored.read(), 0.005 * torch.where(x < 0, -1, 1)
    for step in range(1, steps + 1):
        stored.write(stored.read() + change, seed_of(step, 1))
    moved = (stored.read() - begin) / (steps * change)
    assert abs(float(moved.mean()) - 1) < 0.2
    largest = begin.abs() >= 0.9 * begin.abs().amax()
    assert abs(float(moved[largest].mean()) - 1) < 0.4


@BOTH
@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_is_kept_while_it_fits(form, compiled, bits):
    x = draw((8, 40))
    stored = StoredMatrix.of(x, bits, seed_of(0, 1))
    scales, codes, numbers = stored.scales.clone(), stored.codes.clone(), stored.read()
    stored.write(numbers, seed_of(1, 1))
    assert torch.equal(stored.scales, scales)
    assert (stored.codes == codes).double().mean() > 0.99
    stored.write(numbers * 0.9, seed_of(2, 1))
    assert torch.equal(stored.scales, scales)
    for share in (0.7, 1.3):
        stored.write(numbers * share, seed_of(3, 1))
        assert torch.allclose(stored.scales.float(), scales.float() * share, rtol=0.02)


@pytest.mark.skipif(tensor_library() is None, reason="the kernels are not built")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_does_what_plain_torch_does(monkeypatch, bits, shape):
    mine = StoredMatrix.of(draw(shape), bits, seed=9)
    monkeypatch.setattr("i3lm.model.stored.tensor_library", lambda: None)
    other = StoredMatrix.of(draw(shape), bits, seed=9)
    assert torch.equal(mine.scales, other.scales)
    assert (mine.codes == other.codes).double().mean() > 0.999
    assert torch.equal(other.read(), StoredMatrix.read(other))
    for step, share in enumerate((1.05, 0.97, 1.02, 0.5, 3.0)):  # scales that stay, and new ones
        other.write(share * draw(shape), seed_of(step, 1))
        with monkeypatch.context() as compiled:
            compiled.setattr("i3lm.model.stored.tensor_library", tensor_library)
            mine.write(share * draw(shape), seed_of(step, 1))
        assert torch.equal(mine.scales, other.scales)
        assert (mine.codes == other.codes).double().mean() > 0.999


def test_portions_cover_all_in_order():
    sizes = [1 << 19, 1 << 19, 1, 3 << 20, 5, 5]
    parts = list(portions(sizes))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(6))
    assert [sum(sizes[part]) for part in parts] == [1 << 20, 1, 3 << 20, 10]


def network(bits: int = 32, fused: bool = True) -> I3Network:
    torch.manual_seed(0)
    net = I3Network(SIZES)
    if bits != 32:
        net.model.store([8, 4][bits == 4], seed=1)
    return net


def whole(net: I3Network) -> dict[str, torch.Tensor]:
    return {
        name: s.read() if (s := stored_in(p)) else p.detach().clone()
        for name, p in net.named_parameters()
    }


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_those_of_the_numbers_stored(monkeypatch, bits, mode, plain):
    if plain:
        monkeypatch.setattr("i3lm.model.ops_i3.fused_layer", None)
    net, twin = network(bits), network()
    twin.load_state_dict(whole(net))
    net.model.set_gradient_checkpointing(mode)
    tokens = torch.arange(32).view(2, 16)
    for model in (net, twin):
        model.loss(tokens, tokens).backward()
        model.loss(tokens + 1, tokens).backward()  # gradients add up
    stored = 0
    for (name, mine), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-5), name
        stored += stored_in(mine) is not None
        assert (mine.numel() == 0) == (stored_in(mine) is not None)
    assert stored == 2 * sum(
        p.ndim == 2 and p.numel() >= SMALLEST for p in twin.model.layers[0].parameters()
    )
    assert torch.allclose(net(tokens), twin(tokens), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["muon", "adamw", "lion"])
def test_updates_reach_what_is_stored(name, bits):
    """With matrices of zero rate nothing but the rounding moves; else the loss goes down."""
    net = network(bits)
    optimizer = make_optimizer(name, net.named_parameters(), None, 32)
    tokens = torch.arange(32).view(2, 16)
    losses = []
    for _ in range(30):
        loss = net.loss(tokens, tokens.flip(1)) / tokens.numel()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step(0.3)
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("weights", "states"), [(4, 4), (8, 32)])
def test_a_runs_folder_is_whole(tmp_path, weights, states):
    from i3lm.training.config import TrainConfig
    from i3lm.training.run import train

    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of some text, again and again\n" for i in range(400)))

    def config(out: str, steps: int) -> TrainConfig:
        return TrainConfig(
            out=str(tmp_path / out), data=(str(text),), preset="i3-tiny", context=32, steps=steps,
            vocab_size=400, batch_tokens=64, weight_bits=weights, state_bits=states,
        )  # fmt: skip

    train(config("straight", 6))
    loaded = load_folder(tmp_path / "straight")
    assert all(p.numel() and p.isfinite().all() for p in loaded.network.parameters())
    saved = json.loads((tmp_path / "straight" / "run.json").read_text())
    assert saved["weight_bits"] == weights


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_aware_training_sees_the_rounded_and_updates_the_master(bits):
    net, twin, free = network(), network(), network()
    for name, p in net.named_parameters():  # branches that are not silent
        torch.nn.init.normal_(p, std=0.1)
        twin.get_parameter(name).data.copy_(p)
    net.model.store(bits, seed=1, master=True)
    free.load_state_dict(twin.state_dict())
    twin.load_state_dict(whole(net))
    assert not torch.equal(whole(net)[KEY], free.get_parameter(KEY))
    tokens = torch.arange(32).view(2, 16)
    for model in (net, twin):
        model.loss(tokens, tokens).backward()
    for (name, mine), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-5), name
        free.get_parameter(name).grad = mine.grad.clone()
    for model in (net, free):
        make_optimizer("adamw", model.named_parameters(), None, 32).step(1e-4)
    for name, master in state_of(net).items():  # no step is lost to the rounding
        assert torch.equal(master, free.get_parameter(name)), name
    assert torch.allclose(net(tokens), twin(tokens), atol=0.3)


def test_resuming_in_other_bits_is_refused_with_the_reason(tmp_path):
    import dataclasses

    from i3lm.errors import UserError
    from i3lm.training.config import TrainConfig
    from i3lm.training.run import train

    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of some text, again and again\n" for i in range(400)))
    config = TrainConfig(
        out=str(tmp_path / "run"), data=(str(text),), preset="i3-mini", context=32, steps=2,
        vocab_size=400, batch_tokens=64, weight_bits=8, state_bits=4,
    )  # fmt: skip
    train(config)
    for change, words in (
        ({"weight_bits": 32}, "--weight-bits"),
        ({"state_bits": 8}, "--state-bits"),
    ):
        with pytest.raises(UserError, match=words):
            train(dataclasses.replace(config, steps=4, **change), resume=True)
    assert train(dataclasses.replace(config, steps=4), resume=True).figures["steps"] == 4


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantization_aware_run_quantizes_without_loss(tmp_path, bits):
    from i3lm.quantizing import quantize
    from i3lm.training.config import TrainConfig
    from i3lm.training.run import train

    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of some text, again and again\n" for i in range(400)))
    run = tmp_path / "run"
    config = TrainConfig(
        out=str(run), data=(str(text),), preset="i3-mini", context=32, steps=4,
        vocab_size=400, batch_tokens=64, qat_bits=bits,
    )  # fmt: skip
    train(config)
    quantize(run, tmp_path / "small", bits)
    before, after = load_folder(run).network, load_folder(tmp_path / "small").network
    for layer, other in zip(before.model.layers, after.model.layers, strict=True):
        for (name, p), q in zip(layer.named_parameters(), other.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=0.01, atol=1e-7), name


def test_state_of_a_plain_network_is_its_state_dict():
    net = network()
    assert state_of(net).keys() == net.state_dict().keys()
