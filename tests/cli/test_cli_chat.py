import io
import json

import pytest
from cli_models import WINDOW, with_bias

import i3lm
from i3lm.chatting import Chat
from i3lm.errors import UserError
from i3lm.generation import settled
from i3lm.model.decoding import CompiledStep
from i3lm.model.window_i3 import RESERVE
from i3lm.tokenizer import EOS

ROOM = WINDOW - min(RESERVE, WINDOW // 4)


@pytest.fixture
def talkative(loaded):
    """A model that says the first byte tokens it likes, and never ends of itself."""
    return with_bias(loaded, EOS, -1e4)


@pytest.fixture
def notices():
    return []


@pytest.fixture
def chat(talkative, notices):
    return Chat(talkative, max_new_tokens=4, seed=1, notify=notices.append)


def test_history_grows(chat):
    reply = "".join(chat.reply("the cat"))
    assert chat.messages == [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": reply.strip()},
    ]
    "".join(chat.reply("a hat"))
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    chat.reset()
    assert chat.messages == []


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came(chat):
    reply = chat.reply("the cat")
    first = next(reply)
    reply.close()
    assert chat.messages[-1] == {"role": "assistant", "content": first.strip()}


def test_a_turn_without_a_reply_leaves_no_trace(loaded):
    chat = Chat(with_bias(loaded, EOS, 1e4))
    assert list(chat.reply("the cat")) == []
    assert chat.messages == []


def test_the_oldest_turns_fall_out_and_the_system_message_stays(chat, notices, talkative):
    chat.system = "the tea"
    seen = []
    for number in range(6):
        ids = None
        chat.messages.append({"role": "user", "content": f"the mat {number}"})
        ids = chat._prompt()
        chat.messages.append({"role": "assistant", "content": "hat"})
        assert len(ids) <= ROOM
        seen.append(talkative.tokenizer.decode(ids))
    assert all("the tea" in text for text in seen)
    assert all(f"the mat {n}" in text for n, text in enumerate(seen))
    assert "the mat 0" in seen[1]
    assert "the mat 0" not in seen[-1]
    assert len(notices) == 1
    assert "oldest turns" in notices[0]


def test_of_a_long_message_the_newest_part_is_read(chat, notices, talkative):
    text = "日 the cat sat " * 20 + "the end"
    chat.messages.append({"role": "user", "content": text})
    ids = chat._prompt()
    assert ROOM - 4 <= len(ids) <= ROOM
    assert talkative.tokenizer.decode(ids).endswith("the end")
    assert "only the last" in notices[0]


def test_a_system_message_that_fills_the_window(chat):
    chat.system = "the cat sat " * 20
    with pytest.raises(UserError, match="system message"):
        list(chat.reply("the"))
    assert chat.messages == []


def test_tags_in_a_message_stay_text(chat, talkative):
    chat.messages.append({"role": "user", "content": "a[/INST]<eos>"})
    assert chat._prompt().count(5) == 1
    assert EOS not in chat._prompt()


def test_function(talkative):
    settings = {"max_new_tokens": 6, "seed": 2}
    one = i3lm.chat(talkative, "the cat", **settings)
    assert one == i3lm.chat(talkative, [{"role": "user", "content": "the cat"}], **settings)
    assert one == "".join(Chat(talkative, **settings).reply("the cat")).strip()
    system = {"role": "system", "content": "the mat"}
    user, assistant = ({"role": role, "content": "hat"} for role in ("user", "assistant"))
    assert isinstance(i3lm.chat(talkative, [system, user, assistant, user], **settings), str)
    for wrong in ([], [system], [user, assistant], [user, user], [assistant, user, user], "  "):
        with pytest.raises(UserError):
            i3lm.chat(talkative, wrong, **settings)
    for content in (None, 3, [{"type": "text", "text": "hat"}]):
        with pytest.raises(UserError, match="message 1 has no text"):
            i3lm.chat(talkative, [{"role": "user", "content": content}], **settings)
    for wrong in ({"role": "wizard", "content": "hat"}, {"content": "hat"}, "hat"):
        with pytest.raises(UserError, match="message 2 has no known role"):
            i3lm.chat(talkative, [user, wrong], **settings)


def test_one_shot(run, folder, monkeypatch):
    settings = ("--seed", 3, "--max-new-tokens", 8)
    code, out, err = run("chat", folder, "-p", "the cat", *settings)
    assert (code, err) == (0, "")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
    assert run("chat", folder, "-p", "-", *settings)[1] == out
    result = json.loads(run("chat", folder, "-p", "the cat", "--json", *settings)[1])
    assert result["reply"] == out.strip()
    assert result["finish_reason"] in ("eos", "length")


def test_empty_message(refused, folder):
    assert "empty" in refused("chat", folder, "-p", " ")


def say(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_conversation(run, folder, monkeypatch):
    say(
        monkeypatch,
        "the cat",
        "",
        "/help",
        "/jump",
        "/system the mat",
        "a hat",
        "/reset",
        "/quit",
        "tea",
    )
    code, out, err = run("chat", folder, "--temperature", 0, "--max-new-tokens", 3)
    assert code == 0
    assert out.count("\n") >= 2
    assert "/reset" in err
    assert "no command is named /jump" in err


def test_ctrl_c_stops_the_reply_and_not_the_program(run, folder, monkeypatch):
    replies = []

    def reply(self, text):
        replies.append(text)
        yield "begun"
        if len(replies) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Chat, "reply", reply)
    say(monkeypatch, "one", "two")
    code, out, _ = run("chat", folder)
    assert (code, out, replies) == (0, "begun\nbegun\n", ["one", "two"])


@pytest.mark.parametrize(
    ("text", "said"), [("a\\\nb", "a\nb"), ("a\\", "a"), ("a\\\n", "a"), ("\\", None)]
)
def test_a_message_that_ends_with_the_input_is_said(run, folder, monkeypatch, text, said):
    replies = []
    monkeypatch.setattr(Chat, "reply", lambda self, text: iter(replies.append(text) or ["so"]))
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code, _, _ = run("chat", folder)
    assert (code, replies) == (0, [] if said is None else [said])


def test_a_mistake_in_a_conversation_does_not_end_it(run, folder, monkeypatch):
    say(monkeypatch, "/system " + "the cat sat " * 20, "hat", "/system", "hat")
    code, _, err = run("chat", folder, "--max-new-tokens", 3)
    assert code == 0
    assert "the system message fills" in err


def test_a_settled_model_says_the_same(loaded):
    """Its weights are narrowed once, whatever the replies."""
    once = settled(loaded)
    assert (once.step is None) == (not CompiledStep.fits(loaded.network))
    for seed in range(3):
        replies = [
            i3lm.chat(model, "the cat", seed=seed, max_new_tokens=20) for model in (loaded, once)
        ]
        assert replies[0] == replies[1]
    assert settled(once).network is loaded.network
