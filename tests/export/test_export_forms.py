"""Dense and few-bit folders, the table, and what is refused."""

import json
import sys

import pytest
import torch

import i3lm
from i3lm.__main__ import main
from i3lm.errors import UserError
from i3lm.exporting import export
from i3lm.folder import load_folder
from i3lm.lorpt import LoRPtLinear

IDS = torch.tensor([[2, 40, 50, 60, 70, 80, 90, 100]])


@pytest.fixture(scope="module")
def dense(folder, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("dense") / "out"
    return export(folder, out, "dense", data=[text])


def test_dense_gives_the_same_logits_on_both_paths(dense, folder, loaded):
    from transformers import AutoModelForCausalLM

    ours = load_folder(dense["folder"])
    assert not any(isinstance(m, LoRPtLinear) for m in ours.network.modules())
    theirs = AutoModelForCausalLM.from_pretrained(dense["folder"])
    with torch.no_grad():
        wanted = loaded.network(IDS)
        torch.testing.assert_close(ours.network(IDS), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    before, after = dense["rows"]
    assert after["bits_per_character"] == pytest.approx(before["bits_per_character"], rel=1e-4)
    assert i3lm.info(dense["folder"])["parameters"] == ours.network.config.parameters
    greedy = {"temperature": 0.0, "max_new_tokens": 12}
    assert i3lm.generate(dense["folder"], "Hello", **greedy)


def test_transformers_saves_a_dense_folder_that_loads_again(dense, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(dense["folder"]).save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert type(again.lm_head) is torch.nn.Linear


def test_dense_can_be_quantized_and_exported_further(dense, folder, tmp_path):
    assert export(dense["folder"], tmp_path / "small", "int8", measure=False)["error"] < 0.02
    assert load_folder(tmp_path / "small").weight_bits == 8
    with pytest.raises(UserError, match="dense already"):
        export(dense["folder"], tmp_path / "again", "dense")
    export(folder, tmp_path / "few", "int8", measure=False)
    with pytest.raises(UserError, match="merge its original"):
        export(tmp_path / "few", tmp_path / "again", "dense")


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_few_bits_on_the_command_line(folder, text, tmp_path, capsys, to):
    out = tmp_path / "small"
    words = ["export", folder, "--to", to, "--out", out, "--data", text, "--json"]
    assert main([str(word) for word in words]) == 0
    result = json.loads(capsys.readouterr().out)
    before, after = result["rows"]
    assert after["bytes"] < before["bytes"]
    wanted = i3lm.evaluate(out, text)["bits_per_character"]
    assert after["bits_per_character"] == pytest.approx(wanted, rel=1e-6)
    assert load_folder(out).weight_bits == int(to[3:])
    assert (
        f"i3lm export --to {to}" in (out / "README.md").read_text()
        or "i3lm export" in (out / "README.md").read_text()
    )


def test_the_table(folder, text, tmp_path, capsys):
    words = ["export", folder, "--to", "dense", "--out", tmp_path / "x", "--data", text]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "checked against the original" in lines[1]
    assert any(line.startswith("original ") for line in lines)
    assert any(line.startswith("dense ") for line in lines)


def test_a_failure_leaves_nothing(folder, tmp_path, monkeypatch):
    import i3lm.exporting as exporting

    def fails(*arguments):
        raise UserError("no")

    for name, to in (("compare", "int4"), ("same_logits", "dense"), ("write_graphs", "onnx")):
        with monkeypatch.context() as patch:
            patch.setattr(exporting, name, fails)
            with pytest.raises(UserError, match="no"):
                export(folder, tmp_path / "out", to)
        assert not list(tmp_path.iterdir())


def test_what_is_refused(folder, tmp_path, capsys, monkeypatch):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    for to in ("onnx", "int4", "dense"):
        with pytest.raises(UserError, match="not empty"):
            export(folder, full, to)
    assert [path.name for path in full.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="choose one of"):
        export(folder, tmp_path / "x", "gguf")
    with pytest.raises(UserError, match="no folder"):
        export(tmp_path / "none", tmp_path / "x", "int4")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'i3lm\[export\]'"):
        export(folder, tmp_path / "x", "onnx")
    assert not (tmp_path / "x").exists()
