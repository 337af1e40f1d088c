"""Model folders: what is written, what comes back, and what is refused."""

import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from i3lm.errors import UserError
from i3lm.folder import CODE, load_folder, save_folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_folder_comes_back_as_it_was(folder, network_and_tokenizer):
    network, tokenizer = network_and_tokenizer
    loaded = load_folder(folder)
    assert loaded.architecture == network.config
    assert loaded.tokenizer.tokens == tokenizer.tokens
    assert not loaded.network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name


def test_a_folder_is_complete(folder):
    names = {path.name for path in folder.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    model = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert names == {*CODE, *tokenizer, *model}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata().keys() == {"format", "i3", "sha256"}
        assert file.metadata()["format"] == "pt"
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [3, 4]  # <eos> and [INST]


def test_saving_again_replaces_and_leaves_nothing_behind(copy, network_and_tokenizer):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    (copy / "model.safetensors").write_bytes(b"old")
    save_folder(copy, *network_and_tokenizer)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_half_precision_weights_load_as_float32(copy):
    path = copy / "model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(path).items()}, path)
    assert {p.dtype for p in load_folder(copy).network.parameters()} == {torch.float32}


def test_folders_need_no_transformers(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it raises ImportError
    loaded = load_folder(folder)
    save_folder(tmp_path, loaded.network, loaded.tokenizer)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def edit_config(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def edit_weights(change):
    def edit(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path)

    return edit


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def remove(name):
    return lambda folder: (folder / name).unlink()


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (shutil.rmtree, "is no folder"),
        (remove("config.json"), "no config.json"),
        (write("config.json", b"{"), "config.json is damaged"),
        (write("config.json", b"\xff\xfe"), "config.json is damaged"),
        (write("config.json", b"[]"), "config.json is damaged"),
        (edit_config(model_type="gpt2"), "'gpt2', not i3"),
        (edit_config(hidden_size="32"), "damaged .hidden_size"),
        (edit_config(hidden_size=32.0), "damaged .hidden_size"),
        (edit_config(hidden_size=2**62), "does not fit"),
        (edit_config(num_hidden_layers=10**9), "does not fit"),
        (edit_config(num_attention_heads=2.0), "damaged .num_attention_heads"),
        (edit_config(num_attention_heads=3), "not divisible"),
        (edit_config(rank=True), "damaged .rank"),
        (edit_config(rank=5), "does not fit"),
        (edit_config(layer_norm_eps=None), "damaged .layer_norm_eps"),
        (edit_config(used_vocab_size=None), "tokenizer has"),
        (edit_config(used_vocab_size=10), "tokenizer has"),
        (remove("model.safetensors"), "no model.safetensors"),
        (write("model.safetensors", b""), "model.safetensors is damaged"),
        (write("model.safetensors", b"version https://git-lfs.github.com\n"), "is damaged"),
        (cut, "model.safetensors is damaged"),
        (edit_weights(lambda w: {k: t for k, t in w.items() if k != "lm_head.A"}), "not fit"),
        (edit_weights(lambda w: {**w, "more": torch.zeros(1)}), "does not fit"),
        (edit_weights(lambda w: {k: t.to(torch.int8) for k, t in w.items()}), "does not fit"),
        (remove("tokenizer.json"), "tokenizer"),
        (write("tokenizer.json", b"{}"), "tokenizer"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(copy, damage, expected):
    damage(copy)
    with pytest.raises(UserError, match=expected) as error:
        load_folder(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["nonsense", "cuda:97"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(UserError, match="--device"):
        load_folder(folder, device)
