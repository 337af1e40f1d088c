"""The graphs, in onnxruntime: against the network, at all sizes, and as text."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import WINDOW

from i3lm import evaluate, exported, generation
from i3lm.__main__ import main
from i3lm.chatting import ExportedChat
from i3lm.data import open_source, prepare
from i3lm.errors import UserError
from i3lm.exported import ExportedDecoder, OnnxModel
from i3lm.exporting import measuring
from i3lm.tokenizer import PAD


@pytest.fixture(scope="module")
def model(onnx_result):
    return OnnxModel(onnx_result["folder"], threads=1)


def logits_of(loaded, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return loaded.network(torch.from_numpy(ids)).numpy()


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 17, WINDOW - 1])
def test_prefill_and_decode_at_sizes_that_were_not_exported(model, loaded, batch, length):
    ids = np.random.default_rng(length).integers(10, len(loaded.tokenizer), (batch, length + 1))
    wanted = logits_of(loaded, ids)
    found, state = model.prefill(ids[:, :-1])
    np.testing.assert_allclose(found, wanted[:, :-1], rtol=1e-4, atol=1e-4)
    found, state = model.decode(ids[:, -1:], state)
    np.testing.assert_allclose(found, wanted[:, -1:], rtol=1e-4, atol=1e-4)
    assert state[0].shape[3] == length + 1


def test_a_padded_batch_gives_each_text_what_it_gets_alone(model, loaded):
    draw = np.random.default_rng(0)
    texts = [draw.integers(10, len(loaded.tokenizer), n) for n in (9, 3, 6)]
    ids, mask = np.full((3, 8), PAD), np.zeros((3, 8), np.int64)
    for row, text in enumerate(texts):
        kept = text[:-1]
        ids[row, 8 - len(kept) :], mask[row, 8 - len(kept) :] = kept, 1
    first, state = model.prefill(ids, mask)
    last = np.array([text[-1:] for text in texts])
    second, _ = model.decode(last, state, np.concatenate((mask, np.ones((3, 1), np.int64)), 1))
    for row, text in enumerate(texts):
        wanted = logits_of(loaded, text[None])[0]
        np.testing.assert_allclose(first[row, -1], wanted[-2], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(second[row, 0], wanted[-1], rtol=1e-4, atol=1e-4)


def test_tokens_are_ours_past_the_window(onnx_result, model, loaded):
    check = onnx_result["check"]
    assert check["tokens"] > WINDOW
    assert check["largest_difference"] < 1e-3
    ours, theirs, ids = measuring.Exact(loaded.network), ExportedDecoder(model), [2, 40, 50]
    for _ in range(3 * WINDOW):
        wanted, found = int(ours.feed(ids).argmax()), int(theirs.feed(ids).argmax())
        assert wanted == found
        ids = [wanted]
    assert ours.moved
    assert theirs.moved


def test_a_graph_that_differs_is_refused(model, loaded, monkeypatch):
    right = OnnxModel.decode
    monkeypatch.setattr(OnnxModel, "decode", lambda *a: (right(*a)[0][..., ::-1], right(*a)[1]))
    with pytest.raises(UserError, match="differ from the model"):
        measuring.same_tokens(loaded, model)


def test_text_is_ours(onnx_result, folder, monkeypatch):
    monkeypatch.setattr(generation.CompiledStep, "fits", staticmethod(lambda network: False))
    settings = {"temperature": 0, "max_new_tokens": 60}
    for prompt in ("", "Hello th", "What is my name? " * 20):
        notes, others = [], []
        ours = generation.generate(folder, prompt, notify=notes.append, **settings)
        theirs = exported.generate(onnx_result["folder"], prompt, notify=others.append, **settings)
        assert ours == theirs
        assert notes == others
        assert notes
    for stop in ("e", ours[5:9]):
        assert generation.generate(folder, prompt, stop=[stop], **settings) == (
            exported.generate(onnx_result["folder"], prompt, stop=[stop], **settings)
        )


def test_it_needs_no_torch(onnx_result):
    code = f"""
import sys
for name in ("torch", "transformers", "onnx"):
    sys.modules[name] = None
from i3lm.exported import generate
messages = [{{"role": "user", "content": "Who are you?"}}]
assert isinstance(generate({onnx_result["folder"]!r}, messages, max_new_tokens=5, seed=1), str)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_line_generates(onnx_result, capsys):
    arguments = ["Hello", "--temperature", "0", "--max-new-tokens", "8", "--json"]
    assert main(["generate", onnx_result["folder"], *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["tokens"] <= 8
    assert result["finish_reason"] in ("eos", "length")


def test_rows_are_those_of_the_folders(onnx_result, folder, text):
    original, graphs = onnx_result["rows"]
    assert (original["form"], graphs["form"]) == ("original", "onnx")
    wanted = evaluate(folder, text)["bits_per_character"]
    assert original["bits_per_character"] == pytest.approx(wanted, rel=1e-5)
    assert graphs["bits_per_character"] == pytest.approx(wanted, rel=1e-4)
    names = ("prefill.onnx", "decode.onnx", "weights.bin")
    assert graphs["bytes"] > sum(Path(onnx_result["folder"], n).stat().st_size for n in names)
    assert all(row["tokens_per_second"] > 0 for row in (original, graphs))


def test_both_graphs_share_one_file_of_weights(onnx_result, loaded):
    size = Path(onnx_result["folder"], "weights.bin").stat().st_size
    assert size < 4 * 1.3 * loaded.architecture.parameters


@pytest.mark.parametrize("name", ["prefill.onnx", "decode.onnx", "weights.bin", "tokenizer.json"])
def test_a_damaged_folder_is_refused_in_a_line(onnx_result, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(onnx_result["folder"], copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        OnnxModel(copy)
    assert "\n" not in str(caught.value)


def test_without_onnxruntime_a_line_says_so(onnx_result, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'i3lm\[export\]'"):
        OnnxModel(onnx_result["folder"])


def test_the_command_line_talks(onnx_result, capsys):
    arguments = ["--temperature", "0", "--max-new-tokens", "8", "--json"]
    assert main(["chat", onnx_result["folder"], "-p", "Hello", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    talk = ExportedChat(onnx_result["folder"], temperature=0, max_new_tokens=8)
    assert result["reply"] == "".join(talk.reply("Hello")).strip()
    messages = [{"role": "user", "content": "Hello"}]
    settings = {"temperature": 0, "max_new_tokens": 8}
    wanted = exported.generate(onnx_result["folder"], messages, **settings)
    assert result["reply"] == wanted.strip()
    if talk.messages[1:]:
        talk.system = "Be kind."
        assert isinstance("".join(talk.reply("And now? " * 40)), str)  # past the window


def test_a_run_is_compared_on_its_own_held_out_text(folder, loaded, text, tmp_path):
    from i3lm.exporting.measuring import _text

    assert "not in the folder" in _text(folder, loaded.tokenizer, [])[2]
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    lines = "".join(f"the cat sat on mat {i % 97}\n" for i in range(900))
    (tmp_path / "own.txt").write_text(lines)
    source = open_source(tmp_path / "own.txt")
    corpus = prepare(source, copy / "data", tokenizer=loaded.tokenizer, threads=1)
    tokens, characters, told = _text(copy, loaded.tokenizer, [])
    assert told.startswith("the run's own held-out text (")
    assert "own.txt" in told
    assert np.array_equal(tokens, corpus.held_out)
    assert characters == corpus.held_out_characters
    assert _text(copy, loaded.tokenizer, [text])[2] == str(text)
