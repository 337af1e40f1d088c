"""Training without torch gives what training with it gives."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from i3lm.bare import carries, functions, nn, random, tensor
from i3lm.memory import is_whole
from i3lm.native import multiplies_bfloat16, tensor_library
from i3lm.presets import find_preset
from i3lm.training.budget import LADDER
from i3lm.training.config import TrainConfig

needs_kernels = pytest.mark.skipif(
    not multiplies_bfloat16(), reason="no kernels for AVX512-BF16, or no processor with it"
)
compiled = pytest.mark.skipif(tensor_library() is None, reason="the kernels are not built")
STEPS = ["--preset", "i3-mini", "--context", "64", "--batch-tokens", "256", "--vocab-size", "500"]
SENTENCE = "The {} cat of number {} sat on the mat and saw {} birds.\n"
TEXT = "".join(SENTENCE.format(["big", "old", "grey"][i % 3], i, 7 * i % 10) for i in range(2000))


@pytest.fixture
def given(tmp_path):
    """The flags of a short run on a small text."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    return [*STEPS, "--data", str(text)]


def train(*arguments, with_torch=False, code=0):
    """Run `i3lm train` in a process of its own; return what it printed last, as JSON."""
    environment = {**os.environ, "I3LM_TORCH": "1" if with_torch else "0"}
    line = [sys.executable, "-m", "i3lm", "train", "--quiet", "--json", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def losses(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@needs_kernels
@pytest.mark.parametrize(
    "settings",
    [
        "",
        "--dropout 0.2 --gradient-checkpointing full --microbatch 1",
        "--optimizer adamw --state-bits 4",
        "--optimizer lion --state-bits 8 --weight-bits 8",
        "--state-bits 4 --weight-bits 4 --return-memory",
        # At its own rate torch differs from itself by 0.2 % after 8 steps, with 1 thread and 2.
        "--optimizer adamw --lr 0.001",
        "--optimizer lion",
        "--stream 1MB",
    ],
)
def test_a_run_is_that_of_torch(tmp_path, given, settings):
    """From the same first weights, but for their last places, to the same losses and text."""
    given = [*given, "--steps", "8", "--eval-every", "4", *settings.split()]
    found = {}
    for name in ("bare", "torch"):
        run = tmp_path / name
        figures = train(*given, "--out", run, with_torch=name == "torch")
        found[name] = losses(run), figures["held_out_bits_per_character"]
    few = "-bits 4" in settings  # one number that is rounded otherwise moves others
    assert found["bare"][0] == pytest.approx(found["torch"][0], rel=2e-2 if few else 2e-3)
    assert found["bare"][1] == pytest.approx(found["torch"][1], rel=2e-2 if few else 2e-3)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in found]
    assert weights[0].keys() == weights[1].keys()
    config = [(tmp_path / name / "config.json").read_text() for name in found]
    assert config[0] == config[1]


@needs_kernels
def test_a_run_goes_on_with_torch_and_without(tmp_path, given):
    """Each resumes what the other has left."""
    few = ["--state-bits", "8", "--weight-bits", "8", "--eval-every", "100"]
    found = []
    for first, second in ((False, False), (False, True), (True, False)):
        run = tmp_path / f"run-{first}-{second}"
        train(*given, *few, "--steps", "3", "--out", run, with_torch=first)
        train("--resume", run, "--steps", "6", with_torch=second)
        found.append(losses(run))
    assert len(found[0]) == 6
    assert found[1:] == [pytest.approx(found[0], rel=1e-3)] * 2


@needs_kernels
def test_a_process_that_trains_loads_no_torch(tmp_path, given):
    run = tmp_path / "run"
    code = f"""
import sys
from i3lm.__main__ import main
arguments = "train --quiet --steps 2 --out {run} " + {" ".join(given)!r}
sys.argv[1:] = arguments.split()
assert main() == 0
from i3lm import bare
assert bare.installed()
from pathlib import Path
maps = Path("/proc/self/maps")
print(maps.exists() and "libtorch" in maps.read_text())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


@needs_kernels
def test_a_program_that_calls_the_command_keeps_its_torch(tmp_path, given):
    code = f"""
from i3lm.__main__ import main
arguments = "train --quiet --steps 2 --out {tmp_path / "run"} " + {" ".join(given)!r}
assert main(arguments.split()) == 0
assert main(["generate", "{tmp_path / "run"}", "--max-new-tokens", "2"]) == 0
import torch
assert torch.optim.SGD and torch.ones(2).sum() == 2"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name, _ in LADDER])
def test_every_size_that_a_budget_chooses_is_carried(name):
    """Before it is chosen, `carries` sees the default's sizes."""
    sizes = find_preset(name).architecture
    assert is_whole(sizes, sizes.max_position_embeddings)


def test_what_needs_torch_keeps_it(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("i3lm.bare.multiplies_bfloat16", lambda: True)
    assert carries(TrainConfig(preset="i3-mini"))
    for settings in (
        {"preset": "i3-tiny"},
        {"context": 100},
        {"device": "cuda"},
        {"precision": "fp32"},
        {"qat_bits": 4},
        {"compile": True},
        {"data": ("starhopp3r/TinyChat",)},
        {"data": ("https://example.com/text.txt",)},
    ):
        assert not carries(TrainConfig(**{"preset": "i3-mini", **settings})), settings
    with monkeypatch.context() as called:
        called.setattr("i3lm.lean_torch.shared", True)
        assert not carries(TrainConfig(preset="i3-mini"))
    monkeypatch.setenv("I3LM_TORCH", "1")
    assert not carries(TrainConfig(preset="i3-mini"))


@pytest.mark.parametrize("count", [16, 17, 31, 1000])
def test_normal_numbers_are_those_of_torch(count):
    torch.manual_seed(7)
    random.manual_seed(7)
    for _ in range(2):
        wanted = torch.nn.init.normal_(torch.empty(count), std=0.5)
        mine = nn.normal_(functions.empty(count), std=0.5)
        assert np.allclose(mine.a, wanted.numpy(), atol=2e-6)
    assert random.randperm(50).tolist() == torch.randperm(50).tolist()


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5)])
def test_orthogonal_factors_are_those_of_torch(shape):
    torch.manual_seed(3)
    random.manual_seed(3)
    wanted = torch.nn.init.orthogonal_(torch.empty(shape), 1.5)
    assert np.allclose(nn.orthogonal_(functions.empty(shape), 1.5).a, wanted.numpy(), atol=1e-4)


def both(rng, *shape):
    a = rng.standard_normal(shape).astype(np.float32)
    return tensor.Tensor(a.copy()), torch.from_numpy(a.copy())


def test_what_is_made_in_bfloat16_has_its_numbers():
    assert functions.ones(2, 3, dtype=tensor.bfloat16).float().tolist() == [[1.0] * 3] * 2


def test_bfloat16_rounds_as_torch_does():
    mine, theirs = both(np.random.default_rng(0), 3 * tensor.IN_CACHE + 7)
    mine.a[:3] = theirs.numpy()[:3] = 1 + 2**-8, 1 + 3 * 2**-8, -0.0
    assert np.array_equal(
        mine.bfloat16().a.view("<u2"), theirs.bfloat16().view(torch.int16).numpy().view("<u2")
    )
    assert np.array_equal(mine.bfloat16().float().a, theirs.bfloat16().float().numpy())


OPERATIONS = {
    "arithmetic": lambda t, x, y: (x + y) * 2 - y / (1 + x * x),
    "matmul": lambda t, x, y: x @ y.t(),
    "low matmul": lambda t, x, y: (x.bfloat16() @ y.bfloat16().mT).float(),
    "views": lambda t, x, y: x.view(2, 3, 8).flatten(0, 1).unflatten(1, (2, 4)).transpose(0, 1),
    "sums": lambda t, x, y: x.sum(0) + y.sum((0, 1)),
    "lerp": lambda t, x, y: t.lerp(x, y, 0.25) + x.clone().lerp_(y, 0.5),
    "in place": lambda t, x, y: x.clone().add_(y, alpha=3).sub_(y).mul_(x),
    "cat": lambda t, x, y: t.cat([t.stack([x, y]).flatten(0, 1), x]),
    "split": lambda t, x, y: x.split([2, 4])[1] - y.chunk(3)[0].sum(0),
    "sigmoid": lambda t, x, y: t.sigmoid(x) + t.exp(y),
    "masked_fill": lambda t, x, y: x.masked_fill(y > 0, -1.0),
    "pad": lambda t, x, y: t.nn.functional.pad(x, (1, 2, 0, 3), value=2.0),
    "linear": lambda t, x, y: t.nn.functional.linear(x, y, y[:, 0]),
    "embedding": lambda t, x, y: t.nn.functional.embedding(t.tensor([[0, 5], [2, 2]]), x),
    "gelu": lambda t, x, y: t.nn.functional.gelu(x),
    "norm": lambda t, x, y: t.nn.LayerNorm(8)(x),
    "attention": lambda t, x, y: t.nn.functional.scaled_dot_product_attention(
        x.view(1, 2, 3, 8), y.view(1, 2, 3, 8), x.view(1, 2, 3, 8), is_causal=True
    ),
    "foreach": lambda t, x, y: (t._foreach_add_([x], [y], alpha=2), t._foreach_mul_([x], 3), x)[2],
    "special": lambda t, x, y: t.special.erfc(x.to(t.float64)) + t.cos(y),
    "diag": lambda t, x, y: t.diag(t.linspace(0.0, 1.0, 6)) + t.eye(6) - 2.0,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_torch(name):
    namespace = stand_in()
    rng = np.random.default_rng(1)
    (x, x2), (y, y2) = both(rng, 6, 8), both(rng, 6, 8)
    with torch.no_grad():
        wanted = OPERATIONS[name](torch, x2, y2)
    found = OPERATIONS[name](namespace, x, y)
    assert found.shape == wanted.shape
    assert np.allclose(found.a, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 5, 127, 128, 300])
@pytest.mark.parametrize("kind", ["causal", "mask", "all"])
def test_attention_in_blocks_is_that_of_float64(steps, kind):
    """Queries, keys and values with strides, as heads are cut out of rows; later queries alone."""
    rng = np.random.default_rng(steps)
    keys = steps if kind == "causal" else steps + 7
    q, k, v = (
        tensor.Tensor(rng.standard_normal((2, n, 3, 8)).astype(np.float32)).transpose(1, 2)
        for n in (steps, keys, keys)
    )
    mask = np.tril(np.ones((steps, keys), bool), keys - steps)
    scores = q.a.astype(np.float64) @ k.a.swapaxes(-1, -2) / 8**0.5
    if kind != "all":
        scores[..., ~mask] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = weights / weights.sum(-1, keepdims=True) @ v.a
    given = {"causal": {"is_causal": True}, "mask": {"attn_mask": tensor.Tensor(mask)}, "all": {}}
    found = functions.scaled_dot_product_attention(q, k, v, **given[kind])
    assert found.shape == wanted.shape
    assert np.allclose(found.a, wanted, rtol=1e-5, atol=1e-5)


def test_a_norm_of_what_overflows_is_no_number():
    x = tensor.Tensor(np.array([[1e30, 2e30, 0], [1, 2, 3]], np.float32))
    with np.errstate(all="ignore"):  # as `install` says
        found = nn.LayerNorm(3)(x)
    assert found.isnan().tolist() == [[True] * 3, [False] * 3]


def stand_in():
    """Return the module that stands in torch's place, without putting it there."""
    from i3lm.bare.modules import install

    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("torch", "safetensors")}
    try:
        with np.errstate():  # which it sets for its process
            install()
        return sys.modules["torch"]
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] in ("torch", "safetensors")]:
            del sys.modules[name]
        sys.modules.update(before)


@needs_kernels
def test_a_run_that_diverges_says_so_and_nothing_else(tmp_path, given):
    """numpy would warn of each number that is not finite."""
    flags = ["--lr", "50", "--steps", "20", "--checkpoint-every", "100", "--out", tmp_path / "run"]
    said = train(*given, *flags, code=2)
    assert said.count("\n") == 1
    assert "start again with --lr" in said


@compiled
def test_rows_are_added_in_their_order():
    rng = np.random.default_rng(2)
    (table, wanted), (x, x2) = both(rng, 7, 100), both(rng, 50, 100)
    rows = rng.integers(7, size=50)
    table.index_add_(0, tensor.Tensor(rows), x)
    wanted.index_add_(0, torch.from_numpy(rows), x2)
    assert np.allclose(table.a, wanted.numpy(), atol=1e-5)


@compiled
@pytest.mark.parametrize("count", [1, 17, 20_000])
def test_adamw_is_that_of_float64(count):
    rng = np.random.default_rng(3)
    p, m, v = (both(rng, count)[0] for _ in range(3))
    v.a[...] = np.abs(v.a)
    exact = [t.a.astype(np.float64) for t in (p, m, v)]
    for step in (1, 2, 3):
        g = both(rng, count)[0]
        functions.fused_adamw_(
            [p], [g], [m], [v], [], [functions.tensor(float(step))],
            lr=0.01, beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        w, first, second = exact
        first += 0.1 * (g.a - first)
        second += 0.05 * (g.a.astype(np.float64) ** 2 - second)
        root = np.sqrt(second / (1 - 0.95**step))
        w -= 0.01 * (0.1 * w + first / (1 - 0.9**step) / (root + 1e-8))
    for mine, wanted in zip((p, m, v), exact, strict=True):
        assert np.allclose(mine.a, wanted, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("sizes", [(32, 32, 32), (64, 96, 160), (256, 512, 512)])
def test_a_product_of_our_own(sizes):
    from i3lm.model import kernels

    rows, columns, depth = sizes
    x = torch.randn(rows, depth).bfloat16()
    w = torch.randn(columns, depth)
    wanted = x.double() @ w.bfloat16().double().t()
    scale = depth**0.5
    assert (kernels.product(x, w).double() - wanted).abs().max() < 2**-7 * 4 * scale
