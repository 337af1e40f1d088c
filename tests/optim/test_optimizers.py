"""Each optimizer against a slow, obvious version of its rule."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.optim import (
    AdamW,
    Lion,
    Muon,
    ParameterGroup,
    clip_gradients,
    learning_rate_factor,
    make_optimizer,
    muon,
)
from i3lm.optim.muon import COEFFICIENTS, LEAST, orthogonalise
from i3lm.presets import Architecture

SHAPES = [(7, 5), (3,), (1, 1), (64, 3), (0, 4)]
TINY = Architecture(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    rank=4,
    state_size=4,
)


def group(**settings) -> ParameterGroup:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return ParameterGroup([f"p{i}" for i in range(len(SHAPES))], parameters, **settings)


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def run(optimizer, group: ParameterGroup, steps: int = 10) -> None:
    for step in range(steps):
        for parameter, gradient in zip(group.parameters, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step(1.0 - step / 20)
        optimizer.zero_grad()


def test_adamw_is_torch_adamw():
    ours = group(lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))
    theirs = [p.clone().requires_grad_() for p in ours.parameters]
    run(AdamW([ours]), ours)
    reference = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.2, betas=(0.8, 0.9), fused=True)
    for step in range(10):
        for settings in reference.param_groups:
            settings["lr"] = 0.1 * (1.0 - step / 20)
        for parameter, gradient in zip(theirs, gradients(step), strict=True):
            parameter.grad = gradient
        reference.step()
    for mine, other in zip(ours.parameters, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-6, atol=1e-7)


def test_lion_follows_the_papers_algorithm():
    ours = group(lr=0.01, weight_decay=0.3, betas=(0.9, 0.99))
    truth = [p.double() for p in ours.parameters]
    moments = [torch.zeros_like(p) for p in truth]
    run(Lion([ours]), ours)
    for step in range(10):
        lr = 0.01 * (1.0 - step / 20)
        for p, m, g in zip(truth, moments, gradients(step), strict=True):
            c = 0.9 * m + 0.1 * g
            p -= lr * (torch.sign(c) + 0.3 * p)
            m.mul_(0.99).add_(0.01 * g)
    for mine, other in zip(ours.parameters, truth, strict=True):
        assert torch.allclose(mine.double(), other, rtol=1e-5, atol=1e-6)


def naive_orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The rounds in float64, on the matrix itself."""
    x = matrix.double()
    x = x / (x.norm() + 1e-7)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(3, 5, 40), (2, 8, 9), (1, 1, 7), (4, 16, 16), (1, 64, 2048)])
def test_orthogonalise_is_its_rounds_on_the_matrix_itself(shape):
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for mine, matrix in zip(orthogonalise(batch), batch, strict=True):
        assert torch.allclose(mine.double(), naive_orthogonalise(matrix), atol=2e-4)


def test_no_better_round_exists():
    """Chebyshev: a quintic's error on an interval is least where it turns four times."""
    least, most = LEAST, 1.0
    for a, b, c in COEFFICIENTS:
        values = np.linspace(least, most, 100_001)
        errors = 1 - (a * values + b * values**3 + c * values**5)
        error = abs(errors).max()
        turns = errors[abs(errors) > 0.999 * error] > 0
        assert np.count_nonzero(turns[1:] != turns[:-1]) == 3
        least, most = 1 - error, 1 + error
    assert error < 0.693


def test_orthogonalise_of_zero_is_zero():
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 50)), torch.zeros(2, 3, 50))


def test_muon_gives_each_stacked_map_its_own_update():
    stacked = torch.randn(12, 64, generator=torch.Generator().manual_seed(2))
    stacked.stacked_maps = 3
    parts = [p.clone() for p in stacked.chunk(3)]
    gradient = torch.randn(12, 64, generator=torch.Generator().manual_seed(3))
    apart = Muon(ParameterGroup(["a", "b", "c"], parts, 0.1, 0.1, (0.9, 0.0)), [])
    together = Muon(ParameterGroup(["abc"], [stacked], 0.1, 0.1, (0.9, 0.0)), [])
    stacked.grad = gradient
    for part, piece in zip(parts, gradient.chunk(3), strict=True):
        part.grad = piece.clone()
    apart.step()
    together.step()
    assert torch.allclose(stacked, torch.cat(parts), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "maps", "joined"),
    [
        ((7, 7), 1, 1),
        ((5, 150), 1, 1),
        ((150, 17), 1, 1),
        ((64, 300), 1, 1),
        ((48, 90), 3, 1),
        ((70, 66), 1, 3),
        ((1, 9), 1, 1),
        ((25, 33), 1, 1),
        ((131, 65), 1, 1),
        ((300, 66), 3, 1),
        ((257, 66), 1, 2),
    ],
)
def test_muons_kernel_is_its_definition(monkeypatch, instructions, shape, maps, joined):
    generator = torch.Generator().manual_seed(6)
    start, *grads = torch.randn(4, *shape, generator=generator)
    ends = []
    for kernel, dtype in ((True, torch.float32), (False, torch.float64)):
        matrix = start.to(dtype, copy=True)
        matrix.stacked_maps, matrix.joined_maps = maps, joined
        optimizer = Muon(ParameterGroup(["m"], [matrix], 0.5, 0.1, (0.95, 0.0)), [])
        if not kernel:
            monkeypatch.setattr(muon, "tensor_library", lambda: None)
        for grad in grads:
            matrix.grad = grad.to(dtype)
            optimizer.step()
        ends += [matrix.double(), optimizer.matrices.state["momentum"][0].double()]
    bound = {"tiles": 1.5e-3, "vectors": 2e-4}[instructions]
    assert torch.allclose(ends[0], ends[2], atol=bound)
    assert torch.allclose(ends[1], ends[3], atol=1e-6)


@pytest.mark.parametrize(
    ("least", "bounds"),
    [(1e-2, {"tiles": 1e-3, "vectors": 5e-5}), (1e-3, {"tiles": 1e-3, "vectors": 5e-5})],
)
def test_muon_raises_small_singular_values_as_its_rounds_say(instructions, least, bounds):
    generator = torch.Generator().manual_seed(7)
    left = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(300, 64, generator=generator))[0]
    matrix = torch.zeros(64, 300)
    matrix.grad = left @ torch.logspace(0, math.log10(least), 64).diag() @ right.T
    Muon(ParameterGroup(["m"], [matrix], 1.0, 0.0, (0.0, 0.0)), []).step()
    truth = naive_orthogonalise(matrix.grad)
    assert (matrix.double() + truth).norm() < bounds[instructions] * truth.norm()


@pytest.mark.parametrize("shape", [(64, 512), (256, 256)])
def test_muon_of_few_directions_is_its_rounds(instructions, shape):
    generator = torch.Generator().manual_seed(8)
    matrix = torch.zeros(shape)
    matrix.grad = torch.randn(shape[0], 4, generator=generator) @ torch.randn(
        4, shape[1], generator=generator
    )
    Muon(ParameterGroup(["m"], [matrix], 1.0, 0.0, (0.0, 0.0)), []).step()
    truth = naive_orthogonalise(matrix.grad)
    bound = {"tiles": 1.2e-2, "vectors": 5e-4}[instructions]
    assert (matrix.double() + truth).norm() < bound * truth.norm()


def test_muon_of_no_gradient_stands_still():
    matrix = torch.ones(6, 40)
    matrix.grad = torch.zeros(6, 40)
    Muon(ParameterGroup(["m"], [matrix], 0.5, 0.0, (0.95, 0.0)), []).step()
    assert torch.equal(matrix, torch.ones(6, 40))


def test_muon_steps_by_its_rate_in_every_singular_direction():
    before = torch.randn(32, 8, generator=torch.Generator().manual_seed(4))
    matrix = before.clone()
    optimizer = Muon(ParameterGroup(["m"], [matrix], 0.5, 0.0, (0.95, 0.0)), [])
    matrix.grad = torch.randn(32, 8, generator=torch.Generator().manual_seed(5))
    optimizer.step()
    singular = torch.linalg.svdvals(before - matrix) / (0.5 * 2.0)  # sqrt(32 / 8) = 2
    assert singular.min() > 0.3
    assert singular.max() < 1.7


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("name", ["muon", "adamw", "lion"])
def test_a_step_takes_gradients_times_a_number(monkeypatch, name, bits, kernels):
    if not kernels:
        monkeypatch.setattr(muon, "tensor_library", lambda: None)
    ends = []
    for scale, factor in ((1, 0.5), (0.5, 1)):
        torch.manual_seed(3)
        parameters = {"a": torch.randn(80, 64), "b": torch.randn(64)}
        optimizer = make_optimizer(name, parameters.items(), None, bits)
        for _ in range(2):
            for p in parameters.values():
                p.grad = factor * torch.randn(p.shape)
            optimizer.step(1.0, scale)
        ends.append(torch.cat([p.flatten() for p in parameters.values()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["muon", "adamw", "lion"])
def test_every_parameter_is_in_one_group_and_states_round_trip(name):
    network = I3Network(TINY)
    optimizer = make_optimizer(name, network.named_parameters())
    names = [n for g in optimizer.groups for n in g.names]
    assert sorted(names) == sorted(n for n, _ in network.named_parameters())
    tokens = torch.arange(16)[None]
    network.loss(tokens, tokens).backward()
    optimizer.step()
    copy = make_optimizer(name, network.named_parameters())
    copy.load_state(optimizer.state_tensors(), optimizer.steps)
    assert copy.steps == 1
    for key, tensor in optimizer.state_tensors().items():
        assert torch.equal(tensor, copy.state_tensors()[key])


def test_states_of_another_optimizer_are_refused():
    network = I3Network(TINY)
    lion = make_optimizer("lion", network.named_parameters())
    with pytest.raises(UserError, match="--optimizer"):
        make_optimizer("adamw", network.named_parameters()).load_state(lion.state_tensors(), 1)


@pytest.mark.parametrize(("name", "lr"), [("sgd", None), ("adamw", 0.0), ("adamw", float("nan"))])
def test_unknown_optimizers_and_rates_are_refused(name, lr):
    with pytest.raises(UserError):
        make_optimizer(name, I3Network(TINY).named_parameters(), lr)


def test_a_rate_scales_all_groups_alike():
    default = make_optimizer("muon", I3Network(TINY).named_parameters())
    double = make_optimizer("muon", I3Network(TINY).named_parameters(), 2 * default.groups[0].lr)
    for one, two in zip(default.groups, double.groups, strict=True):
        assert two.lr == pytest.approx(2 * one.lr)


def test_the_schedule_warms_up_stays_and_ends_at_zero():
    def factor(progress: float, step: int) -> float:
        return learning_rate_factor(progress, step, warmup_steps=10, flat=0.5)

    assert factor(0.0, 0) == pytest.approx(0.1)
    assert factor(0.1, 9) == 1.0
    assert factor(0.5, 100) == 1.0
    assert factor(0.75, 150) == pytest.approx(0.5)
    assert factor(1.0, 200) == 0.0
    assert factor(1.5, 300) == 0.0


def test_our_optimizers_do_not_import_the_compiler():
    code = (
        "import torch, sys; from i3lm.optim import AdamW, ParameterGroup\n"
        "p = torch.ones(3); p.grad = torch.ones(3)\n"
        "AdamW([ParameterGroup(['p'], [p], 0.1)]).step()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_clipping_is_torchs(monkeypatch, compiled, limit):
    if not compiled:
        monkeypatch.setattr("i3lm.optim.clip.tensor_library", lambda: None)
    sizes = [(3,), (1,), (70_000,), (5, 7), (131_073,), (0,)]
    mine, theirs = ([torch.nn.Parameter(torch.zeros(s)) for s in sizes] for _ in range(2))
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(i))
        b.grad = a.grad.clone()
    frozen = torch.nn.Parameter(torch.zeros(2))
    norm = clip_gradients([*mine, frozen], limit)
    expected = torch.nn.utils.clip_grad_norm_(theirs, limit)
    assert norm == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert clip_gradients([frozen], limit) == 0.0
