"""The commands of a conversation, and a real terminal."""

import io
import json
import os
import select
import subprocess
import sys
import time

import pytest


def say(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_save_writes_what_train_can_read(run, folder, monkeypatch, tmp_path):
    from i3lm.data import open_source

    path = tmp_path / "talk.jsonl"
    say(monkeypatch, "/save x", "/system the mat", "the cat", f"/save {path}", f"/save {path}")
    code, _, err = run("chat", folder, "--max-new-tokens", 3, "--temperature", 0)
    assert code == 0
    assert "no conversation to save" in err
    assert f"{path} exists" in err
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert len(list(open_source([str(path)]))) == 1


def test_retry_stats_and_what_is_unknown(run, folder, monkeypatch):
    say(monkeypatch, "/retry", "/stats", "the cat", "/retry", "/stats", "/rety", "/run")
    code, out, err = run("chat", folder, "--max-new-tokens", 3)
    assert code == 0
    assert out.count("\n") == 2
    assert "no reply to take back" in err
    assert "1 turns; 6 tokens" in err or "1 turns" in err
    assert "did you mean /retry?" in err
    assert err.count("no command is named") == 2


def test_a_line_that_ends_with_a_backslash_goes_on(run, folder, monkeypatch):
    heard = []

    def reply(self, text):
        heard.append(text)
        yield "."

    monkeypatch.setattr("i3lm.chatting.Chat.reply", reply)
    say(monkeypatch, "one\\", "two", "three")
    assert run("chat", folder)[0] == 0
    assert heard == ["one\ntwo", "three"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_keeps_history_and_leaves_at_the_end_of_input(folder, tmp_path):
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    child = subprocess.Popen(
        [sys.executable, "-m", "i3lm", "chat", str(folder), "--max-new-tokens", "3"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while words not in seen and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                part = os.read(ours, 4096)
                if b"\x1b[6n" in part:  # where is the cursor?
                    os.write(ours, b"\x1b[1;1R")
                seen += part
        assert words in seen, seen.decode(errors="replace")

    try:
        until(b"m>")
        os.write(ours, b"the cat\r")
        until(b"\x1b[36m")
        until(b"\x1b[0m\r\n")
        seen = b""
        until(b"m>")
        os.write(ours, b"/help\r")
        until(b"Ctrl-C stops a reply")
        seen = b""
        until(b"m>")
        os.write(ours, b"\x04")
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    history = tmp_path / "i3lm" / "chat-history"
    assert "the cat" in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o077 == 0
