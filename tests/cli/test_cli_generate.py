import io
import json
import math
import types

import numpy as np
import pytest
import torch
from cli_models import TEXT, WINDOW, with_bias
from hypothesis import example, given
from hypothesis import strategies as st

import i3lm
from i3lm.errors import UserError
from i3lm.generation import (
    Decoder,
    Sampling,
    TextStream,
    decode_stream,
    make_generator,
    split_prompt,
    stream,
    token_bytes,
)
from i3lm.tokenizer import BOS, EOS, INST, SPECIAL_TOKENS


def logits_by_rule(network, ids: list[int], prompt: int) -> torch.Tensor:
    """The naive form of the window rule: everything anew for each token."""
    begin = max(0, prompt - WINDOW)
    for end in range(prompt, len(ids)):
        if end + 1 - begin > WINDOW:
            begin = end + 1 - WINDOW // 2
    with torch.inference_mode():
        return network(torch.tensor([ids[begin:]]))[0, -1]


@pytest.mark.parametrize("prompt", [1, 5, WINDOW, WINDOW + 9])
def test_decoder_follows_the_window_rule(loaded, prompt):
    ids = torch.randint(6, len(loaded.tokenizer), (prompt + 3 * WINDOW,)).tolist()
    decoder = Decoder(loaded.network)
    logits = decoder.feed(ids[:prompt][-WINDOW:])
    for end in range(prompt, len(ids)):
        expected = logits_by_rule(loaded.network, ids[:end], prompt)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
        logits = decoder.feed([ids[end]])
    assert decoder.moved


def test_greedy_is_the_likeliest_each_time(loaded):
    ids = [BOS, *map(int, loaded.tokenizer.encode("the cat"))]
    new = TextStream(
        loaded, ids, max_new_tokens=12, sampling=Sampling(0), generator=make_generator(0), ends=()
    )
    expected = []
    for _ in range(12):
        with torch.inference_mode():
            logits = loaded.network(torch.tensor([ids + expected]))[0, -1]
        expected.append(6 + int(logits[6:].argmax()))
    table = token_bytes(loaded.tokenizer)
    assert "".join(new) == b"".join(table[i] for i in expected).decode("utf-8", "replace")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("length", [1, 20, 100])
def test_streamed_and_whole_are_equal(loaded, temperature, length):
    settings = {"max_new_tokens": length, "temperature": temperature, "seed": 7, "top_p": None}
    pieces = list(stream(loaded, "the c", **settings))
    assert "".join(pieces) == i3lm.generate(loaded, "the c", **settings)
    assert all(pieces)


def test_seeds(loaded):
    texts = {i3lm.generate(loaded, "a", max_new_tokens=20, seed=seed) for seed in (1, 1, 2, 3)}
    assert len(texts) == 3
    assert i3lm.generate(loaded, "a", seed=None) != i3lm.generate(loaded, "a", seed=None)


def test_special_tokens_are_never_generated(loaded):
    for token in range(len(SPECIAL_TOKENS)):
        inclined = with_bias(loaded, token, 1e4)
        text = stream(inclined, "the", max_new_tokens=5, temperature=0)
        assert "INST" not in "".join(text)
        assert (text.finish_reason, text.tokens) == (("eos", 0) if token == EOS else ("length", 5))


def test_instruction_ends_a_reply(loaded):
    text = TextStream(
        with_bias(loaded, INST, 1e4),
        [BOS],
        max_new_tokens=5,
        sampling=Sampling(),
        generator=make_generator(0),
        ends=(EOS, INST),
    )
    assert list(text) == []
    assert text.finish_reason == "eos"


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_logits_that_are_no_numbers(loaded, temperature, value):
    """One that is infinite, or none that is finite: nothing can be drawn."""
    tokens = [7] if value == math.inf else range(len(loaded.tokenizer))
    broken = loaded
    for token in tokens:
        broken = with_bias(broken, token, value)
    with pytest.raises(UserError, match="not a number"):
        i3lm.generate(broken, "the", max_new_tokens=3, temperature=temperature)


def test_numpys_integers_are_seeds(loaded):
    texts = [i3lm.generate(loaded, "the", max_new_tokens=9, seed=s) for s in (5, np.int64(5))]
    assert texts[0] == texts[1]


def test_stop_strings(loaded):
    whole = i3lm.generate(loaded, "the", max_new_tokens=60, temperature=0)
    stop = whole[9:14]
    cut = stream(loaded, "the", max_new_tokens=60, temperature=0, stop=[stop, "never there"])
    assert "".join(cut) == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert (
        "".join(stream(loaded, "the", max_new_tokens=60, temperature=0, stop=stop))
        == (whole[: whole.index(stop)])
    )
    uncut = stream(loaded, "the", max_new_tokens=60, temperature=0, stop=[whole[-3:] + "x"])
    assert "".join(uncut) == whole  # what was held back comes at the end


def test_notices_come_once(loaded):
    notices: list[str] = []
    quiet = with_bias(loaded, EOS, -1e4)
    i3lm.generate(quiet, "the", max_new_tokens=3 * WINDOW, notify=notices.append)
    assert len(notices) == 1
    assert "past the model's window of 32" in notices[0]
    notices.clear()
    i3lm.generate(quiet, "cat " * 99, max_new_tokens=1, notify=notices.append)
    assert len(notices) == 1
    assert "newest" in notices[0]


def test_the_end_of_the_prompt_is_generated_again(loaded):
    tokenizer = loaded.tokenizer
    for end in range(1, 30):
        prompt = "the cat sat on the mat with the other"[:end]
        ids, begin_with = split_prompt(tokenizer, prompt)
        assert tokenizer.decode(ids) + begin_with.decode() == prompt
        assert len(begin_with) <= 3
        # Whatever follows, the tokens that were kept stay.
        for more in ("", " ", "e", "e ", " the"):
            whole = [BOS, *map(int, tokenizer.encode(prompt + more))]
            assert whole[: len(ids)] == ids


def test_a_prompt_that_ends_within_a_chunk(loaded):
    # "th" must be able to become the one token "the".
    token = loaded.tokenizer.tokens.index("the")
    text = stream(with_bias(loaded, token, 1e4), "th", max_new_tokens=1, temperature=0)
    assert "".join(text) == "e"
    assert text.tokens == 1


def test_every_prompt_end_can_be_generated(loaded):
    # Whatever the model prefers: chunks that lead nowhere are left by way of byte tokens.
    for end in range(1, len(TEXT)):
        for seed in range(3):
            text = stream(loaded, TEXT[:end], max_new_tokens=2, seed=seed, temperature=5.0)
            assert len("".join(text)) <= 6
            assert text.tokens <= 2


def test_a_prompt_of_unknown_characters(loaded):
    ids, begin_with = split_prompt(loaded.tokenizer, "日本")
    assert (len(ids), begin_with) == (7, b"")
    i3lm.generate(loaded, "日本", max_new_tokens=2)


@given(st.text(), st.data())
def test_bytes_come_as_whole_characters(text, data):
    raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=8).map(sorted))
    parts = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert "".join(decode_stream(parts)) == raw.decode()
    single = list(decode_stream(bytes([byte]) for byte in raw))
    assert "".join(single) == raw.decode()
    assert all(len(piece) <= 1 for piece in single)


def test_broken_bytes_are_marked():
    assert "".join(decode_stream([b"a\xc3", b"b", b"\xe6\x97"])) == "a\ufffdb\ufffd"
    assert "".join(decode_stream([b"ab", b"cd"], skip=3)) == "d"


def test_sampling_keeps_to_the_likeliest():
    logits = np.array([3.0, 2.0, 1.0, -np.inf], np.float32)
    generator = make_generator(0)

    def drawn(**settings) -> set[int]:
        return {Sampling(**settings).pick(logits, generator) for _ in range(200)}

    assert drawn(temperature=1.0, top_p=None) == {0, 1, 2}
    assert drawn(temperature=1.0, top_p=None, top_k=2) == {0, 1}
    assert drawn(temperature=1.0, top_p=0.5) == {0}
    assert drawn(temperature=1.0, top_p=0.8) == {0, 1}
    assert drawn(temperature=1e-30, top_p=None) == {0}
    assert drawn(temperature=1e-50, top_p=None) == {0}  # 0 in float32
    assert drawn(temperature=0) == {0}


def test_sampling_draws_by_probability():
    logits = np.array([2.0, 0.0, 1.0], np.float32)
    generator = make_generator(5)
    draws = [Sampling(2.0, None, None).pick(logits, generator) for _ in range(3000)]
    expected = torch.from_numpy(logits / 2).softmax(0).numpy()
    assert np.bincount(draws) / 3000 == pytest.approx(expected, abs=0.03)


@example([0.0, 0.0, 1.0, 1.35e-37], 1.0, 2, 0.5)  # as far from 1 as 0 is, in float32
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.floats(0.05, 5),
    st.none() | st.integers(1, 45),
    st.none() | st.floats(0.01, 1),
)
def test_what_can_be_drawn_is_what_the_rule_says(values, temperature, top_k, top_p):
    """Naively: sort all, keep the likeliest that reach p; a draw at any point gives one of them."""
    logits = np.array(values, np.float32)
    scores = logits / np.float32(temperature)
    least = np.sort(logits)[-top_k] if top_k and top_k < len(logits) else -np.inf
    weights = np.where(logits >= least, np.exp(np.float64(scores - scores.max())), 0)
    order = np.argsort(-weights, kind="stable")
    share = weights[order] / weights.sum()
    before = share.cumsum() - share
    sure, perhaps = (set(order[before < (top_p or 2) + slack]) for slack in (-1e-6, 1e-6))
    sampling = Sampling(temperature, top_k, top_p)
    points = np.linspace(0, 1, 400, endpoint=False)
    drawn = {sampling.pick(logits, types.SimpleNamespace(random=lambda p=p: p)) for p in points}
    assert drawn <= perhaps
    assert drawn >= {i for i in sure if weights[i] / weights.sum() > 1 / 200}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.5},
        {"max_new_tokens": 0},
        {"seed": 2**70},
        {"stop": [""]},
    ],
)
def test_settings_out_of_range(loaded, settings):
    with pytest.raises(UserError):
        i3lm.generate(loaded, "the", **settings)


def test_a_model_that_is_not_a_number(loaded):
    with pytest.raises(UserError, match="not a number"):
        i3lm.generate(with_bias(loaded, 9, math.nan), "the")


def test_command(run, folder, loaded):
    arguments = ("generate", folder, "the cat", "--max-new-tokens", 9, "--temperature", 0)
    expected = i3lm.generate(loaded, "the cat", max_new_tokens=9, temperature=0)
    assert run(*arguments) == (0, expected + "\n", "")
    result = json.loads(run(*arguments, "--json")[1])
    assert result == {
        "prompt": "the cat",
        "text": expected,
        "tokens": 9,
        "finish_reason": "length",
        "notes": [],
    }


def test_command_reads_standard_input(run, folder, monkeypatch):
    settings = ("--max-new-tokens", 9, "--seed", 4)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
    assert run("generate", folder, "-", *settings) == run("generate", folder, "the cat", *settings)


def test_command_refuses_other_encodings(refused, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert "UTF-8" in refused("generate", folder, "-")


def test_command_notices(run, folder):
    _, _, err = run("generate", folder, "cat " * 99, "--max-new-tokens", 1)
    assert err.startswith("note: the prompt has")
    assert err.count("\n") == 1
