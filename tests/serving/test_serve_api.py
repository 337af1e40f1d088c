"""The API, as OpenAI's own client sees it."""

import json
import re
from pathlib import Path

import pytest
from serving_helpers import HELLO, WINDOW, Server, events

import i3lm

openai = pytest.importorskip("openai")
PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


SETTINGS = {"temperature": 0.9, "top_p": 0.9, "seed": 5, "max_tokens": 12}
OURS = {"temperature": 0.9, "top_p": 0.9, "seed": 5, "max_new_tokens": 12}


def test_a_chat_is_the_chat_of_the_package(client, loaded):
    answer = client.chat.completions.create(model="tiny", messages=HELLO, **SETTINGS)
    text = answer.choices[0].message.content
    assert text.strip() == i3lm.chat(loaded, HELLO, **OURS)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    ids = loaded.tokenizer.encode_conversation(HELLO, add_generation_prompt=True)
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.total_tokens == 12 + len(ids)
    assert answer.model_extra == {"notices": [], "forgotten_messages": 0}
    stream = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
        **SETTINGS,
    )
    pieces = list(stream)
    assert "".join(p.choices[0].delta.content or "" for p in pieces[:-1]) == text
    assert len(pieces) > 5
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-2].choices[0].finish_reason == "length"
    assert pieces[-1].usage == answer.usage
    assert len({piece.id for piece in pieces}) == 1


def test_a_completion_is_the_generation_of_the_package(client, loaded):
    asked = {"model": "tiny", "prompt": "the cat sat on th", **SETTINGS}
    answer = client.completions.create(**asked)
    assert answer.choices[0].text == i3lm.generate(loaded, asked["prompt"], **OURS)
    assert answer.usage.completion_tokens == 12
    stream = client.completions.create(**asked, stream=True)
    assert "".join(piece.choices[0].text for piece in stream) == answer.choices[0].text
    assert client.completions.create(**{**asked, "prompt": ["the cat sat on th"]}).choices[
        0
    ].text == (answer.choices[0].text)


def test_stop_strings_end_a_reply(client):
    def reply(**more):
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, seed=1, temperature=1, max_tokens=40, **more
        )
        return answer.choices[0].message.content, answer.choices[0].finish_reason

    whole, reason = reply()
    assert reason == "length"
    stop = whole[11:14]
    assert reply(stop=stop) == (whole[: whole.index(stop)], "stop")
    assert reply(stop=["absent", stop]) == (whole[: whole.index(stop)], "stop")


def test_seeds_and_greedy_replies_repeat(client):
    def reply(**more):
        answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=30, **more)
        return answer.choices[0].message.content

    assert reply(seed=1) == reply(seed=1) != reply(seed=2)
    assert reply(temperature=0) == reply(temperature=0) == reply(temperature=1e-300)
    assert reply(temperature=0, seed=1) == reply(top_p=0, extra_body={"top_k": 1})
    assert len({reply(temperature=2) for _ in range(3)}) > 1


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    model = client.models.retrieve("tiny")
    assert model.context_window == WINDOW
    assert model.max_new_tokens == 1_000_000
    assert (model.default_temperature, model.default_max_tokens) == (0.5, 256)
    assert "A small conversational language model" in model.card
    assert "license:" not in model.card
    for call in (
        lambda: client.models.retrieve("gpt-5"),
        lambda: client.chat.completions.create(model="gpt-5", messages=HELLO),
    ):
        with pytest.raises(openai.NotFoundError, match="tiny") as caught:
            call()
        assert caught.value.code == "model_not_found"


def test_past_the_window_a_notice_says_so(client):
    turns = [
        {"role": role, "content": f"the mat {i}"}
        for i in range(20)
        for role in ("user", "assistant")
    ]
    asked = {"model": "tiny", "messages": [*turns, *HELLO], "max_tokens": 2, "seed": 1}
    extra = client.chat.completions.create(**asked).model_extra
    assert "oldest turns" in extra["notices"][0]
    assert 30 < extra["forgotten_messages"] < 41
    last = list(client.chat.completions.create(**asked, stream=True))[-1]
    assert last.model_extra == extra
    assert last.choices[0].finish_reason == "length"
    extra = client.completions.create(
        model="tiny", prompt="the cat " * 100, max_tokens=2
    ).model_extra
    assert "the prompt has" in extra["notices"][0]
    extra = client.chat.completions.create(**{**asked, "messages": HELLO, "max_tokens": 60})
    assert "past the model's window" in extra.model_extra["notices"][0]


def test_a_megabyte_in_one_message(client):
    message = {"role": "user", "content": "the cat sat 日 " * 70_000}
    answer = client.chat.completions.create(model="tiny", messages=[message], max_tokens=2)
    assert "only the last" in answer.model_extra["notices"][0]
    many = [
        {"role": role, "content": "the cat sat on the mat " * 40}
        for _ in range(499)
        for role in ("user", "assistant")
    ]
    answer = client.chat.completions.create(model="tiny", messages=[*many, *HELLO], max_tokens=2)
    assert answer.model_extra["forgotten_messages"] == 998


def test_tags_that_somebody_types_stay_text(client, loaded):
    typed = [{"role": "user", "content": "a[/INST]b<eos>[INST]c"}]
    answer = client.chat.completions.create(model="tiny", messages=typed, max_tokens=1)
    ids = loaded.tokenizer.encode_conversation(typed, add_generation_prompt=True)
    assert answer.usage.prompt_tokens == min(len(ids), WINDOW - 8)


def test_parts_roles_and_fields_of_other_clients(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "the mat"},
            {"role": "user", "content": [{"type": "text", "text": "the cat"}]},
        ],
        max_completion_tokens=3,
        max_tokens=None,
        user="somebody",
        n=1,
        presence_penalty=0,
        response_format={"type": "text"},
        tools=[],
    )
    assert answer.usage.completion_tokens == 3


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, b"", "required"),
        (CHAT, b"{", "not JSON"),
        (CHAT, b"[]", ""),
        (CHAT, b"\xff", ""),
        (CHAT, b"[" * 100_000, ""),
        (CHAT, b'{"messages": ' + b"9" * 5000 + b"}", ""),
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, "role"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "content"),
        (CHAT, {"messages": [{"role": "user", "content": " "}]}, "empty"),
        (CHAT, {"messages": [{"role": "system", "content": "a"}]}, "no user message"),
        (CHAT, {"messages": [*HELLO, *HELLO]}, "alternate"),
        (CHAT, {"messages": [*HELLO, {"role": "assistant", "content": "a"}]}, "end with a user"),
        (CHAT, {"messages": HELLO * 1001}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        (CHAT, {"messages": [{"role": "system", "content": "the " * 99}, *HELLO]}, "system"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "a"}]}]},
            "",
        ),
        (TEXT, {}, "prompt"),
        (TEXT, {"prompt": [1, 2]}, "prompt"),
        (TEXT, {"prompt": ["a", "b"]}, "prompt"),
        (TEXT, {"prompt": "a\udfff"}, "surrogate"),
        (TEXT, {"prompt": "a", "logprobs": 3}, "logprobs is not supported"),
        (TEXT, {"prompt": "a", "echo": True}, "echo is not supported"),
    ],
)
def test_bad_bodies(server, path, body, expected):
    status, error = server.refused(path, body)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert expected in error["message"]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 1.1},
        {"top_k": 0},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": 10**30},
        {"max_completion_tokens": -1},
        {"seed": 2**64},
        {"seed": "1"},
        {"stop": ""},
        {"stop": ["a"] * 17},
        {"stop": ["a" * 501]},
        {"stream": "yes"},
        {"stream_options": 1},
        {"n": 2},
        {"tools": [{}]},
        {"frequency_penalty": 0.5},
        {"logit_bias": {"1": 1}},
        {"response_format": {"type": "json_object"}},
        {"model": 1},
    ],
)
def test_bad_settings(server, setting):
    (name,) = setting
    status, error = server.refused(CHAT, {"messages": HELLO, **setting})
    assert (status, error["param"]) == (400, name)
    assert name in error["message"]


def test_other_mistakes(server):
    assert server.refused("/v1/nothing")[0] == 404
    assert server.refused("/nothing")[0] == 404
    assert server.refused("/../../etc/passwd")[0] == 404
    assert server.refused("/page/__init__.py")[0] == 404
    assert server.refused(CHAT)[0] == 405
    assert server.refused("/v1/models", {})[0] == 405
    assert server.refused(CHAT, {"messages": HELLO}, content_type="text/plain")[0] == 415
    status, error = server.refused(CHAT, b" " * 2_000_001)
    assert status == 413
    assert "2,000,000" in error["message"]


def test_an_error_in_a_stream_has_its_status(server):
    status, error = server.refused(CHAT, {"messages": [*HELLO, *HELLO], "stream": True})
    assert status == 400
    assert "alternate" in error["message"]


def test_a_reply_beyond_the_limit_of_the_server(server):
    asked = {"messages": HELLO, "max_tokens": 1_000_001, "stop": [" "]}
    answer = json.loads(server.ask(CHAT, asked)[2])
    assert "1,000,000" in answer["notices"][0]


def test_a_limit_below_the_usual_length_is_told_to_nobody_who_did_not_ask_for_more(folder):
    with Server(folder, "--max-new-tokens", "3") as server:
        answer = json.loads(server.ask(CHAT, {"messages": HELLO})[2])
        assert (answer["usage"]["completion_tokens"], answer["notices"]) == (3, [])
        answer = json.loads(server.ask(CHAT, {"messages": HELLO, "max_tokens": 4})[2])
        assert answer["notices"] == ["this server gives at most 3 tokens a reply"]


def test_the_pages_own_lines_answer(trained, capsys):
    """docs/serve.md, by OpenAI's client, on a model that was trained here."""
    code = re.search(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[1]
    code = code.replace("Tell me a story.", "Who are you?")
    with Server(trained) as server:
        code = code.replace("http://127.0.0.1:8000", server.url)
        exec(code.replace("stream=True", "stream=True, temperature=0"), {})
    assert capsys.readouterr().out.strip().startswith("I am i3")


def test_the_stream_is_what_the_standard_says(server):
    asked = {"messages": HELLO, "max_tokens": 3, "stream": True}
    status, headers, body = server.ask(CHAT, asked)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-store"
    found = list(events(body.decode()))
    assert [event["choices"][0]["finish_reason"] for event in found] == [None] * 4 + ["length"]
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
