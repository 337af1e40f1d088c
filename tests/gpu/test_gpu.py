"""On a CUDA device: training as on a CPU, long sequences, resumed runs, states in few bits.

Without a device these skip; tests/model/test_device_path.py runs the same code on a CPU.
"""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from i3lm.folder import load_folder
from i3lm.model.network import I3Network
from i3lm.optim import make_optimizer
from i3lm.presets import find_preset
from i3lm.training.config import TrainConfig
from i3lm.training.metrics import read_metrics
from i3lm.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
LENGTH = 8192


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "talk.txt"
    line = "[INST] I am number {0}. What is {1} and 1? [/INST] Number {0}, it is {2}.\n"
    path.write_text("".join(line.format(i, i % 9, i % 9 + 1) for i in range(3000)))
    return path


def losses(text: Path, out: Path, **changes) -> list[float]:
    settings = {"preset": "i3-mini", "vocab_size": 600, "steps": 12, "batch_tokens": 1024,
                "precision": "fp32", "compile": False}  # fmt: skip
    config = TrainConfig(data=(str(text),), out=str(out), **{**settings, **changes})
    train(config, resume=out.exists())
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "lion"])
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_losses_are_those_of_a_cpu(text, tmp_path, optimizer, bits):
    options = {"optimizer": optimizer, "state_bits": bits}
    cpu = losses(text, tmp_path / "cpu", **options)
    cuda = losses(text, tmp_path / "cuda", device="cuda", **options)
    assert cuda == pytest.approx(cpu, rel=2e-3 if bits == 32 else 2e-2)


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_and_compiled_layers_learn_the_same(text, tmp_path, compiled):
    exact = losses(text, tmp_path / "exact", device="cuda", steps=30)
    fast = losses(text, tmp_path / "fast", device="cuda", steps=30, precision="bf16",
                  compile=compiled)  # fmt: skip
    assert fast[-1] == pytest.approx(exact[-1], rel=0.03)


def test_gradients_at_8192_tokens_are_those_of_a_cpu():
    sizes = dataclasses.replace(find_preset("i3-mini").architecture, max_position_embeddings=LENGTH)
    torch.manual_seed(0)
    network = I3Network(sizes)
    ids = torch.randint(6, sizes.vocab_size, (1, LENGTH + 1))
    gradients = []
    for device in ("cpu", "cuda"):
        network.zero_grad()
        network.to(device)
        network.loss(ids[:, :-1].to(device), ids[:, 1:].to(device)).backward()
        gradients.append({n: p.grad.cpu().double() for n, p in network.named_parameters()})
    for name, truth in gradients[0].items():
        scale = truth.abs().max().clamp(min=1e-3)
        assert (gradients[1][name] - truth).abs().max() / scale < 2e-3, name


def test_8192_tokens_in_bf16_fit_and_learn(text, tmp_path):
    options = {"context": LENGTH, "batch_tokens": 2 * LENGTH, "gradient_checkpointing": "full"}
    out = losses(text, tmp_path / "run", device="cuda", precision="bf16", compile=None, **options)
    assert all(map(math.isfinite, out))
    assert out[-1] < out[0]


def test_a_run_that_is_resumed_goes_on_as_it_was(text, tmp_path):
    whole = losses(text, tmp_path / "whole", device="cuda", steps=16, time=None)
    losses(text, tmp_path / "part", device="cuda", steps=8)
    parts = losses(text, tmp_path / "part", device="cuda", steps=16)
    # The schedule follows the share of the steps, so the first halves differ in their decay only.
    assert parts[8:] == pytest.approx(whole[8:], rel=0.1)
    assert load_folder(tmp_path / "part", "cuda").network.config.max_position_embeddings == 256
    assert json.loads((tmp_path / "part" / "run.json").read_text())["device"] == "cuda"


def test_states_and_gradients_stay_on_the_device():
    network = I3Network(find_preset("i3-tiny").architecture).cuda()
    for bits in (32, 8, 4):
        optimizer = make_optimizer("muon", network.named_parameters(), state_bits=bits)
        assert all(t.device.type == "cuda" for t in optimizer.state_tensors().values())
