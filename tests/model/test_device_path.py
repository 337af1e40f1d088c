"""What a GPU runs, on a CPU: torch forms at odd lengths, devices that never mix, compiled layers.

The meta device stands for one that is not a CPU: it has shapes and devices and no numbers, and
refuses to mix its tensors with those of another.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from i3lm.model import ops_i3
from i3lm.model.network import I3Network
from i3lm.optim import blockwise, make_optimizer, muon
from i3lm.presets import Architecture
from i3lm.training.hardware import to_device

sys.path.insert(0, str(Path(__file__).parents[1]))
import naive

SIZES = Architecture(
    vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
    intermediate_size=40, max_position_embeddings=300, rank=5, state_size=6,
)  # fmt: skip
HOOKS = ("recurrence_forward_kernel", "recurrence_backward_kernel", "cross_entropy_kernel")


@pytest.fixture
def torch_forms(monkeypatch):
    for hook in (*HOOKS, "head_kernel", "fused_layer"):
        monkeypatch.setattr(ops_i3, hook, None)
    monkeypatch.setattr(ops_i3, "chunks_on_cpu", True)


def network() -> I3Network:
    torch.manual_seed(3)
    made = I3Network(SIZES)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 63, 64, 65, 127, 300])
@pytest.mark.parametrize("chunks", [True, False])
def test_scans_are_the_loop(steps, chunks, monkeypatch):
    monkeypatch.setattr(ops_i3, "chunks_on_cpu", chunks)
    generator = torch.Generator().manual_seed(steps)
    x, u, h, s = (torch.randn(shape, generator=generator, dtype=torch.float64)
                  for shape in ((2, steps, 7), (2, steps, 5), (2, 7), (2, 5)))  # fmt: skip
    w = torch.rand(7, generator=generator, dtype=torch.float64)
    A = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    A = A / torch.linalg.matrix_norm(A, 2)
    ones = torch.ones_like(w)
    hs, ss, *_ = naive.recurrence(x / (1 - w), u, w, A, ones, h, s)
    torch.testing.assert_close(ops_i3.scan_channels(x, w, h), hs)
    torch.testing.assert_close(ops_i3.scan_states(u, A, s), ss)


def test_decays_of_nearly_0_and_1_and_a_long_time(torch_forms):
    steps = 8192
    x, u = torch.randn(1, steps, 4), torch.randn(1, steps, 3) / 100
    w = torch.tensor([0.0, 1e-30, 0.5, 1 - 1e-6])
    A = torch.diag(torch.tensor([0.0, 0.9, 0.9999]))
    h, s = torch.zeros(1, 4), torch.zeros(1, 3)
    mine = ops_i3.recurrence(x, u, w, A, torch.ones(4), h, s)
    truth = naive.recurrence(*(t.double() for t in (x, u, w, A, torch.ones(4), h, s)))
    for a, b in zip(mine, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_the_recurrence_stays_exact_under_autocast(torch_forms):
    inputs = [torch.randn(2, 70, 8), torch.randn(2, 70, 4), torch.rand(8), torch.eye(4) * 0.9,
              torch.randn(8), torch.zeros(2, 8), torch.zeros(2, 4)]  # fmt: skip
    results = []
    for enabled in (False, True):
        mine = [t.clone().requires_grad_() for t in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y, states, *_ = ops_i3.recurrence(*mine)
        assert y.dtype == torch.float32
        (y.sum() + states.square().sum()).backward()
        results.append([y, states, *(t.grad for t in mine)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("steps", [2, 65, 200])
def test_all_gradients_in_chunks(torch_forms, steps):
    net, ids = network(), torch.randint(0, 50, (2, steps + 1))
    truth = {n: p.detach().double().requires_grad_() for n, p in net.named_parameters()}
    loss = net.loss(ids[:, :-1], ids[:, 1:])
    logits = naive.logits(truth, SIZES, ids[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    loss.backward()
    expected.backward()
    for name, parameter in net.named_parameters():
        scale = truth[name].grad.abs().max().clamp(min=0.1)
        assert (parameter.grad - truth[name].grad).abs().max() / scale < 2e-4, name


@pytest.mark.parametrize("mode", ["none", "full"])
@pytest.mark.parametrize(
    ("optimizer", "bits"), [("muon", 32), ("muon", 4), ("adamw", 8), ("lion", 32), ("lion", 4)]
)
def test_no_tensor_of_a_step_is_made_on_another_device(optimizer, bits, mode, monkeypatch):
    monkeypatch.setattr(blockwise, "DEVICE_CHUNK", 1 << 11)
    # The fused kernel has no form without numbers; its arguments are held to be on one device.
    seen = []

    def fused_adamw(*lists, **settings):
        seen.extend(t.device.type for tensors in lists for t in tensors)

    monkeypatch.setattr(torch, "_fused_adamw_", fused_adamw)
    with torch.device("meta"):
        made = I3Network(SIZES)
    made.model.set_gradient_checkpointing(mode)
    ids = torch.zeros(2, 33, dtype=torch.int64, device="meta")
    rule = make_optimizer(optimizer, made.named_parameters(), state_bits=bits)
    assert {t.device.type for t in rule.state_tensors().values()} == {"meta"}
    made.loss(ids, ids).backward()
    assert {p.grad.device.type for p in made.parameters()} == {"meta"}
    rule.step()
    assert set(seen) <= {"meta"}
    with pytest.raises((RuntimeError, NotImplementedError)):
        made.loss(ids, ids.cpu() * 0)  # it does tell


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "lion"])
def test_states_in_few_bits_in_torch_are_the_compiled_ones(optimizer, bits, monkeypatch):
    made = []
    for compiled in (True, False):
        if not compiled:
            for module in (blockwise, muon):
                monkeypatch.setattr(module, "tensor_library", lambda: None)
        net = network()
        rule = make_optimizer(optimizer, net.named_parameters(), state_bits=bits)
        for step in range(4):
            generator = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            rule.step()
        made.append([p.detach() for p in net.parameters()])
    for mine, truth in zip(*made, strict=True):
        assert torch.allclose(mine, truth, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize(("mode", "autocast"), [("none", True), ("full", False)])
def test_compiled_layers_are_the_plain_ones(torch_forms, mode, autocast):
    """In one graph each, traced with its backward; the code generator is another's."""
    net, ids = network(), torch.randint(0, 50, (2, 33))
    net.model.layers = net.model.layers[:1]
    net.model.set_gradient_checkpointing(mode)
    results = []
    for compiled in (False, True):
        if compiled:
            net.model.compile_layers(backend="aot_eager", fullgraph=True)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = net.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in net.parameters())])
    for mine, truth in zip(*results, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-4, atol=1e-4)


def test_rows_reach_a_cpu_as_they_are():
    rows = np.arange(12).reshape(2, 6)[:, :-1]
    assert torch.equal(to_device(rows, torch.device("cpu")), torch.from_numpy(rows))
