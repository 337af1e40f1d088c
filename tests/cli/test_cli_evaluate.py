import io
import json
import math

import numpy as np
import pytest
import torch
from cli_models import TEXT, WINDOW
from hypothesis import given, settings
from hypothesis import strategies as st

import i3lm
from i3lm.errors import UserError
from i3lm.folder import Loaded
from i3lm.model.network import I3Network
from i3lm.scoring import batches, score_tokens


def naive(network, tokens: np.ndarray, context: int, stride: int) -> float:
    """One token at a time, each in the window that the rule gives it."""
    nats = 0.0
    for target in range(1, len(tokens)):
        window = max(0, -(-(target - context) // stride))
        with torch.inference_mode():
            ids = torch.from_numpy(tokens[window * stride : target].astype(np.int64))
            nats -= float(network(ids[None])[0, -1].log_softmax(-1)[tokens[target]])
    return nats


@pytest.mark.parametrize("count", [2, WINDOW, WINDOW + 1, WINDOW + 2, 2 * WINDOW + 5])
@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 16), (7, 3), (1, 1)])
def test_scores_equal_a_naive_loop(loaded, count, context, stride):
    tokens = np.random.default_rng(1).integers(0, len(loaded.tokenizer), count).astype(np.uint16)
    nats, scored = score_tokens(loaded.network, tokens, context, stride, batch=3)
    assert scored == count - 1
    assert nats == pytest.approx(naive(loaded.network, tokens, context, stride), rel=1e-5)


@settings(max_examples=200)
@given(st.integers(2, 300), st.integers(1, 40), st.data())
def test_each_token_is_scored_once_with_its_context(count, context, data):
    stride = data.draw(st.integers(1, context))
    tokens = np.arange(count)
    seen = []
    for inputs, targets in batches(tokens, context, stride, data.draw(st.integers(1, 9))):
        assert inputs.shape[1] <= context
        for row, scored in zip(inputs, targets, strict=True):
            assert (np.diff(row) == 1).all()
            assert row[-1] + 1 == scored[-1]
            for target in scored:
                assert target - row[0] >= min(target, context - stride + 1)
            seen.extend(scored.tolist())
    assert seen == list(range(1, count))


def uniform(loaded: Loaded) -> Loaded:
    network = I3Network(loaded.architecture).eval()
    with torch.no_grad():
        network.lm_head.A.zero_()
        network.lm_head.bias.zero_()
    return Loaded(network, loaded.tokenizer, loaded.architecture)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 3)
    return path


def test_a_uniform_model(loaded, text):
    result = i3lm.evaluate(uniform(loaded), text)
    used = len(loaded.tokenizer)
    assert result["characters"] == 3 * len(TEXT)
    assert result["words"] == 3 * len(TEXT.split())
    assert result["documents"] == 3
    assert result["tokens"] == 3 * (len(loaded.tokenizer.encode(TEXT.strip())) + 2) - 1
    expected = math.log2(used) * result["tokens"] / result["characters"]
    assert result["bits_per_character"] == pytest.approx(expected, rel=1e-6)
    assert result["perplexity_per_token"] == pytest.approx(used, rel=1e-5)
    assert result["loss_per_token"] == pytest.approx(math.log(used), rel=1e-6)


def test_conversations_count_in_their_line_form(loaded, tmp_path):
    line = "[INST] the cat [/INST] a hat [INST] tea [/INST] the mat\n"
    path = tmp_path / "chats.txt"
    path.write_text(line * 2)
    result = i3lm.evaluate(loaded, path)
    assert result["characters"] == 2 * len(line)
    assert result["words"] == 2 * len(line.split())


def test_the_window_is_stated_and_matters(loaded, text):
    sliding = i3lm.evaluate(loaded, text)
    aside = i3lm.evaluate(loaded, text, stride=WINDOW)
    assert "stride 16: each token sees at least 16" in sliding["rule"]
    assert "side by side" in aside["rule"]
    assert (sliding["tokens"], sliding["context"]) == (aside["tokens"], WINDOW)
    assert sliding["bits_per_character"] != aside["bits_per_character"]


def test_perplexity_of_a_single_endless_word(loaded, tmp_path):
    path = tmp_path / "word.txt"
    path.write_text("x" * 2000)
    assert i3lm.evaluate(loaded, path)["perplexity_per_word"] is None


def test_command(run, folder, text, loaded):
    code, out, err = run("eval", folder, "--data", text, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    expected = i3lm.evaluate(loaded, text)
    assert result["bits_per_character"] == pytest.approx(expected["bits_per_character"])
    plain = run("eval", folder, "--data", text)[1]
    assert f"bits per character    {result['bits_per_character']:.4f}" in plain
    assert result["rule"] in plain


def test_command_reads_standard_input(run, folder, text, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
    piped = json.loads(run("eval", folder, "--data", "-", "--json")[1])
    named = json.loads(run("eval", folder, "--data", text, "--json")[1])
    for result in (piped, named):
        del result["seconds"], result["data"]
    assert piped == named


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--context", 33], "window, 32"),
        (["--context", 0], "window, 32"),
        (["--stride", 33], "the context, 32"),
        (["--batch", 0], "--batch"),
        (["--documents", "page"], "page"),
    ],
)
def test_impossible_windows(refused, folder, text, arguments, expected):
    assert expected in refused("eval", folder, "--data", text, *arguments)


def test_bad_data(refused, folder, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    assert "no text" in refused("eval", folder, "--data", tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"a\x00\xff")
    assert "binary.txt" in refused("eval", folder, "--data", tmp_path / "binary.txt")
    assert "no such file" in refused("eval", folder, "--data", tmp_path / "none.txt")


def test_nothing_to_score(loaded):
    with pytest.raises(UserError, match="nothing to score"):
        score_tokens(loaded.network, np.array([2], np.uint16))
