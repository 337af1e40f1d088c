"""Texts longer than the window: what is read, what is said about it, the same in both paths."""

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache, StoppingCriteriaList, pipeline
from transformers.utils import logging as hf_logging

from i3lm.chatting import Chat
from i3lm.folder import load_folder
from i3lm.generation import Decoder
from i3lm.model.window_i3 import INST, kept_of_prompt, last_before_move, starts

WINDOW, HALF = 48, 24
PLAIN = {"do_sample": False, "eos_token_id": None, "pad_token_id": 1}


def text(length: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, 290, (1, length), generator=generator)


def expected(network, ids: torch.Tensor, new: int) -> list[int]:
    """What `Decoder`, our own path, makes of the newest window of ids."""
    decoder, out = Decoder(network), ids[0].tolist()
    decoder._step = None  # it rounds factors to bfloat16
    fed = out[-WINDOW:]
    for _ in range(new):
        fed = [int(decoder.feed(fed).argmax())]
        out += fed
    return out


@pytest.fixture
def notices(monkeypatch):
    """What transformers' logger was told, once or not."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = hf_logging.get_logger("i3lm.model.generation_i3")
    logger.addHandler(handler)
    hf_logging.warning_once.cache_clear()
    yield heard
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def network(network_and_tokenizer):
    return network_and_tokenizer[0]


@pytest.mark.parametrize("length", [9, 47, 48, 49, 130])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 4},
    ],
    ids=["dynamic", "uncached", "static", "prompt-lookup"],
)
def test_generation_goes_on_as_our_own_path_does(model, network, length, settings):
    ids = text(length)
    out = model.generate(ids, max_new_tokens=100, **PLAIN, **settings)
    assert out[0].tolist() == expected(network, ids, 100)


@pytest.mark.parametrize("use_cache", [True, False])
def test_each_row_of_a_batch_has_its_own_window(model, network, use_cache):
    rows = [text(5, 2), text(30, 3), text(60, 4)]
    ids = torch.cat([F.pad(row, (60 - row.shape[1], 0), value=1) for row in rows])
    mask = (ids != 1).long()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=70, use_cache=use_cache, **PLAIN)
    assert torch.equal(out[:, :60], ids)
    for row, found in zip(rows, out, strict=True):
        assert found[60 - row.shape[1] :].tolist() == expected(network, row, 70)


def test_beams_go_on(model):
    for length in (9, 60):
        outs = [
            model.generate(text(length), num_beams=3, max_new_tokens=60, use_cache=cache, **PLAIN)
            for cache in (True, False)
        ]
        assert torch.equal(*outs)
        assert outs[0].shape == (1, length + 60)


def test_one_prompt_gives_several_texts(model):
    torch.manual_seed(0)
    out = model.generate(
        text(60).repeat(2, 1), do_sample=True, num_return_sequences=3, max_new_tokens=2,
        pad_token_id=1, eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(out[:, :60], text(60).repeat(6, 1))
    assert out.shape == (6, 62)


def test_lengths_count_the_whole_text(model):
    assert model.generate(text(60), **PLAIN).shape == (1, 60 + WINDOW // 4)
    assert model.generate(text(60), max_length=67, **PLAIN).shape == (1, 67)
    config = model.generation_config.__class__(max_length=66, **PLAIN)
    assert model.generate(text(60), config).shape == (1, 66)


def test_what_is_asked_for_comes_with_it(model):
    out = model.generate(
        text(60), max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **PLAIN
    )
    plain = model.generate(text(60), max_new_tokens=3, **PLAIN)
    assert torch.equal(out.sequences, plain)
    assert len(out.logits) == 3
    assert [int(step.argmax()) for step in out.logits] == out.sequences[0, -3:].tolist()


def test_criteria_and_streamers_see_what_is_read(model):
    seen = []

    def criterion(ids, scores, **kwargs):
        seen.append(ids.shape[1])
        return torch.zeros(len(ids), dtype=torch.bool)

    class Streamer:
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ids.append("end")

    streamer = Streamer()
    out = model.generate(
        text(60), max_new_tokens=3, stopping_criteria=StoppingCriteriaList([criterion]),
        streamer=streamer, **PLAIN,
    )  # fmt: skip
    assert seen == [WINDOW + 1, WINDOW + 2, WINDOW + 3]
    assert streamer.ids == [*out[0, -WINDOW - 3 :].tolist(), "end"]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_that_outgrew_the_window_is_read_anew(model, kind):
    cache = (
        DynamicCache(config=model.config)
        if kind == "dynamic"
        else StaticCache(config=model.config, max_cache_len=WINDOW)
    )
    ids = text(20)
    for turn in range(5):
        settings = {"max_new_tokens": 11, "disable_compile": True, **PLAIN}
        with_cache = model.generate(ids, past_key_values=cache, **settings)
        assert torch.equal(with_cache, model.generate(ids, use_cache=False, **settings)), turn
        ids = torch.cat([with_cache, text(5, turn)], dim=1)
    out = model.generate(text(60), return_dict_in_generate=True, max_new_tokens=2, **PLAIN)
    longer = torch.cat([out.sequences, text(3, 9)], dim=1)
    again = model.generate(longer, past_key_values=out.past_key_values, max_new_tokens=4, **PLAIN)
    assert torch.equal(again, model.generate(longer, max_new_tokens=4, **PLAIN))


def test_what_follows_a_full_cache_alone_is_refused(model):
    cache = model.generate(
        text(30), max_new_tokens=10, return_dict_in_generate=True, **PLAIN
    ).past_key_values
    with pytest.raises(ValueError, match="given the whole text"):
        model.generate(
            text(20), attention_mask=torch.ones(1, 59), past_key_values=cache, max_new_tokens=3,
            **PLAIN,
        )  # fmt: skip


def test_what_follows_a_cache_that_moved_is_refused(model):
    cache = model.generate(
        text(60), max_new_tokens=2, return_dict_in_generate=True, **PLAIN
    ).past_key_values
    with pytest.raises(ValueError, match="give generate the whole text"):
        model.generate(
            text(4), attention_mask=torch.ones(1, 66), past_key_values=cache, max_new_tokens=3,
            **PLAIN,
        )  # fmt: skip


def conversation(turns: int, words: int = 1) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [
        {"role": roles[i % 2], "content": f"hello there {i} " + "cats " * (words - 1)}
        for i in range(turns)
    ]


@pytest.mark.parametrize(("turns", "words"), [(1, 1), (3, 1), (5, 1), (9, 1), (21, 1), (7, 2)])
def test_the_turns_that_are_read_are_those_of_our_own_chat(folder, hf_tokenizer, turns, words):
    messages = conversation(turns, words)
    talk = Chat(load_folder(folder))
    talk.messages = list(messages)
    ids = hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    kept, notice = kept_of_prompt(ids, WINDOW, 2)
    assert kept == talk._prompt()
    assert bool(notice) == (kept != ids)


def test_of_a_message_beyond_the_window_the_end_is_read(folder, hf_tokenizer):
    messages = [*conversation(2), {"role": "user", "content": "Anna likes cats and the sea. " * 20}]
    ids = hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    kept, notice = kept_of_prompt(ids, WINDOW, 2)
    assert kept[:2] == [2, INST]
    assert kept[2:] == ids[-len(kept) + 2 :]
    assert len(kept) == WINDOW - WINDOW // 4
    assert "only the last" in notice
    talk = Chat(load_folder(folder))
    talk.messages = messages
    ours = talk._prompt()
    assert len(kept) - len(ours) in (0, 1, 2)  # ours begins a chunk anew, at a character
    assert kept[-len(ours) + 5 :] == ours[5:]


def test_a_reply_that_is_being_written_is_never_read_as_the_users():
    ids = [2, 4, *[9] * 10, 5, *[8] * 60]
    assert kept_of_prompt(ids, WINDOW, 2)[0] == ids[-WINDOW:]
    assert kept_of_prompt([4, 7, 5], WINDOW, 2) == ([4, 7, 5], "")
    assert kept_of_prompt([], WINDOW, 2) == ([], "")


def test_the_pipeline_goes_on_and_says_so_once(folder, notices):
    chat = pipeline("text-generation", model=str(folder), do_sample=False)
    talk = [*conversation(8), {"role": "user", "content": "hello there " * 40}]
    for _ in range(2):
        answer = chat(talk)[0]["generated_text"]
    assert answer[:-1] == talk
    assert answer[-1]["role"] == "assistant"
    plain = chat("hello there, who are you? " * 20, max_new_tokens=80)[0]["generated_text"]
    assert plain.startswith("hello there, who are you? " * 20)
    told = [line for line in notices if "window" in line]
    assert len(told) == len(set(told))
    assert any("only the last" in line for line in told)
    assert any("only the newest of them" in line for line in told)
    assert any("past the model's window of 48 tokens: going on from" in line for line in told)


def test_what_fits_gives_no_notice(model, notices):
    model.generate(text(9), max_new_tokens=WINDOW - 9, **PLAIN)
    assert not [line for line in notices if "window" in line]


@given(st.integers(0, 9), st.integers(0, 200), st.integers(1, 60))
def test_rows_move_as_our_own_path_moves(first, length, window):
    """The formula against a count that grows by one and is halved where it would be too large."""
    begin = held = 0
    for position in range(length):
        held += 1
        if held > window:
            held = max(1, window // 2)
        begin = position + 1 - held
    found = starts(torch.tensor([first]), first + length, window)
    assert found.item() == first + begin
    last = last_before_move(length, window)
    now, then, later = (
        starts(torch.tensor([0]), n, window).item() for n in (length, last, last + 1)
    )
    assert now == then != later
