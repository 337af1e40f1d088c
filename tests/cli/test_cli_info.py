import json
import shutil

import pytest

import i3lm
from i3lm.model.network import I3Network
from i3lm.optim import make_optimizer
from i3lm.presets import PRESETS


@pytest.mark.parametrize(
    ("preset", "parameters"), [("i3-12m", 12_691_186), ("i3-22m", 22_640_626), ("i3-tiny", 711_106)]
)
def test_presets(run, preset, parameters):
    code, out, _ = run("info", preset, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["parameters"] == parameters == sum(result["parameters_by_part"].values())
    assert f"{parameters:,} parameters" in run("info", preset)[1]


def test_memory_is_what_the_optimizers_hold():
    architecture = PRESETS["i3-tiny"].architecture
    network = I3Network(architecture)
    states = i3lm.info("i3-tiny")["memory"]["optimizer"]
    for name, expected in states.items():
        optimizer = make_optimizer(name, network.named_parameters())
        held = sum(t.numel() * t.element_size() for t in optimizer.state_tensors().values())
        assert held == expected, name


def test_list(run):
    out = run("info")[1]
    assert all(name in out for name in PRESETS)
    assert len(json.loads(run("info", "--json")[1])) == len(PRESETS)


def test_folder(run, folder, loaded):
    result = json.loads(run("info", folder, "--json")[1])
    assert result["parameters"] == sum(p.numel() for p in loaded.network.parameters())
    assert result["tokens"] == len(loaded.tokenizer)
    assert result["vocabulary"] == loaded.architecture.vocab_size
    assert result["weights_file"]["types"] == ["F32"]
    assert result["weights_file"]["bytes"] > 4 * result["parameters"]
    assert "of them used" in run("info", folder)[1]


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_run_figures(run, copy):
    (copy / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": 3.5}\n{"step')
    assert json.loads(run("info", copy, "--json")[1])["run"] == {"step": 2, "loss": 3.5}
    assert "loss" in run("info", copy)[1]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", None, "not a model folder"),
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"[]", "damaged"),
        ("config.json", b'{"model_type": "gpt2"}', "not an i3 model"),
        ("config.json", b'{"model_type": "i3", "hidden_size": 50}', "heads"),
        ("config.json", b'{"model_type": "i3"}', "describes 12,691,186"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", b"", "damaged"),
        ("model.safetensors", b"\xff" * 64, "damaged"),
    ],
)
def test_broken_folders(refused, copy, name, content, expected):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    assert expected in refused("info", copy)
