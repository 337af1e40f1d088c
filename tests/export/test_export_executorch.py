"""The program, in ExecuTorch's runtime: against the network, at all lengths, and as text."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import WINDOW

from i3lm import evaluate, exported, exporting, generation
from i3lm.__main__ import main
from i3lm.errors import UserError
from i3lm.exported import ExecutorchModel, ExportedDecoder
from i3lm.exporting import measuring
from i3lm.presets import Architecture
from i3lm.tokenizer import PAD

here = pytest.mark.skipif(
    find_spec("executorch") is None, reason="200 MB more: pip install 'i3lm[executorch]'"
)
pytestmark = pytest.mark.timeout(900)  # lowering takes half a minute of one core that is free


@pytest.fixture(scope="module")
def model(executorch_result):
    return ExecutorchModel(executorch_result["folder"], threads=1)


def logits_of(loaded, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return loaded.network(torch.from_numpy(ids)).numpy()


@here
def test_the_folder_is_complete(executorch_result, folder):
    found = {path.name for path in Path(executorch_result["folder"]).iterdir()}
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert found == {"model.pte", "README.md", "chat_template.jinja", *beside}
    card = Path(executorch_result["folder"], "README.md").read_text()
    assert "i3lm export --to executorch" in card
    assert "from i3lm.exported import generate" in card


@here
@pytest.mark.parametrize("length", [1, 2, 3, 17, WINDOW - 1])
def test_both_methods_at_lengths_that_were_not_exported(model, loaded, length):
    ids = np.random.default_rng(length).integers(10, len(loaded.tokenizer), (1, length + 1))
    wanted = logits_of(loaded, ids)
    found, state = model.prefill(ids[:, :-1])
    np.testing.assert_allclose(found, wanted[:, :-1], rtol=1e-4, atol=1e-4)
    found, state = model.decode(ids[:, -1:], state)
    np.testing.assert_allclose(found, wanted[:, -1:], rtol=1e-4, atol=1e-4)
    assert state[0].shape[3] == length + 1


@here
def test_a_whole_window_and_padding_on_the_left(model, loaded):
    ids = np.random.default_rng(0).integers(10, len(loaded.tokenizer), (1, WINDOW))
    np.testing.assert_allclose(model.prefill(ids)[0], logits_of(loaded, ids), rtol=1e-4, atol=1e-4)
    padded, mask = ids.copy(), np.ones_like(ids)
    padded[:, :20], mask[:, :20] = PAD, 0
    found = model.prefill(padded, mask)[0][:, 20:]
    np.testing.assert_allclose(found, logits_of(loaded, ids[:, 20:]), rtol=1e-4, atol=1e-4)


@here
def test_tokens_are_ours_past_the_window(executorch_result, model, loaded):
    assert executorch_result["check"]["tokens"] > WINDOW
    assert executorch_result["check"]["largest_difference"] < 1e-3
    ours, theirs, ids = measuring.Exact(loaded.network), ExportedDecoder(model), [2, 40, 50]
    for _ in range(3 * WINDOW):
        wanted, found = int(ours.feed(ids).argmax()), int(theirs.feed(ids).argmax())
        assert wanted == found
        ids = [wanted]
    assert ours.moved
    assert theirs.moved


@here
def test_rows_are_those_of_the_folders(executorch_result, folder, text):
    original, program = executorch_result["rows"]
    assert (original["form"], program["form"]) == ("original", "executorch")
    wanted = evaluate(folder, text)["bits_per_character"]
    assert program["bits_per_character"] == pytest.approx(wanted, rel=1e-4)
    assert program["bytes"] > Path(executorch_result["folder"], "model.pte").stat().st_size
    assert program["tokens_per_second"] > 0


@here
def test_both_methods_share_their_weights(executorch_result, loaded):
    size = Path(executorch_result["folder"], "model.pte").stat().st_size
    graphs = 600_000  # of two layers, without the weights
    assert size < 4 * loaded.architecture.parameters + graphs


@here
def test_the_command_line_talks_and_is_quiet(executorch_result, folder, monkeypatch):
    """In a process of its own: C++ writes to the descriptor, not to sys.stderr."""
    settings = ["--temperature", "0", "--max-new-tokens", "8", "--json"]

    def run(*words: str) -> dict:
        command = [sys.executable, "-m", "i3lm", *words, *settings]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    monkeypatch.setattr(generation.CompiledStep, "fits", staticmethod(lambda network: False))
    wanted = generation.generate(folder, "Hello", temperature=0, max_new_tokens=8)
    assert run("generate", executorch_result["folder"], "Hello")["text"] == wanted
    messages = [{"role": "user", "content": "Hello"}]
    wanted = exported.generate(
        executorch_result["folder"], messages, temperature=0, max_new_tokens=8
    )
    assert run("chat", executorch_result["folder"], "-p", "Hello")["reply"] == wanted.strip()


@here
@pytest.mark.parametrize("size", [0, 100, -5000])
def test_a_damaged_program_is_refused_in_a_line(executorch_result, tmp_path, capfd, size):
    copy = shutil.copytree(executorch_result["folder"], tmp_path / "copy")
    (copy / "model.pte").write_bytes((copy / "model.pte").read_bytes()[:size])
    with pytest.raises(UserError, match="is damaged") as caught:
        ExecutorchModel(copy)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_other_commands_say_what_runs_an_export(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "model.pte")
    with pytest.raises(UserError, match="runs by i3lm chat and i3lm generate alone"):
        evaluate(copy, tmp_path)
    with pytest.raises(UserError, match="make it with i3lm export --to onnx or executorch"):
        exported.open_exported(folder)


def test_a_failure_leaves_nothing(folder, tmp_path, monkeypatch):
    def fails(network, path):
        path.write_bytes(b"half")
        raise UserError("no")

    monkeypatch.setattr(exporting, "write_program", fails)
    with pytest.raises(UserError, match="no"):
        exporting.export(folder, tmp_path / "out", "executorch")
    assert not list(tmp_path.iterdir())


def test_without_executorch_a_line_says_so(folder, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.pte").write_bytes(b"")
    for name in list(sys.modules):
        if name.partition(".")[0] == "executorch":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    for words in (
        ["generate", copy, "Hello"],
        ["export", folder, "--to", "executorch", "--out", tmp_path / "x"],
    ):
        assert main([str(word) for word in words]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: no executorch (")
        assert "pip install 'i3lm[executorch]'" in line
    assert not (tmp_path / "x").exists()


def test_a_window_that_is_too_short(tmp_path):
    from i3lm.exporting.program import write_program
    from i3lm.model.network import I3Network

    sizes = Architecture(
        vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=16, max_position_embeddings=2, rank=2, state_size=2,
    )  # fmt: skip
    with pytest.raises(UserError, match="too short for ExecuTorch"):
        write_program(I3Network(sizes), tmp_path / "model.pte")
