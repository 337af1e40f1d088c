"""SIGINT, SIGTERM and SIGHUP for every command: exit code 130 within 5 seconds, nothing left half.

Real processes. `chat` alone takes SIGINT as a person's wish to stop a reply, and goes on.
"""

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from i3lm.__main__ import _ending_on_signals
from i3lm.folder import load_folder

# What holds each command at a point of its work, as a long piece of work or a slow disk would. It
# runs in the command's process before main, says that the point is reached, and waits there.
HOLD = """
import sys, time
def hold(*arguments, **options):
    print("here", flush=True)
    time.sleep(600)
    raise SystemExit("no signal came")
import {module} as module
module.{name} = hold
from i3lm.__main__ import main
sys.argv[0] = "i3lm"
sys.exit(main())
"""

COMMANDS = {
    "train, packing": ("i3lm.training.text", "prepare", "train --data {text} --out {out}"),
    "train, writing": ("i3lm.data.packing", "_write_manifest", "train --data {text} --out {out}"),
    "generate": ("i3lm.generation", "stream", "generate {model} hello"),
    "chat -p": ("i3lm.folder", "load_folder", "chat {model} -p hello"),
    "eval": ("i3lm.evaluation", "evaluate", "eval {model} --data {text}"),
    "export": ("i3lm.files", "sync_folder", "export {model} --to int4 --no-measure --out {out}"),
    "plan": ("i3lm.training.planning", "preview", "plan"),
    "info": ("i3lm.model_info", "info", "info {model}"),
}


def begin(held: tuple[str, str, str], folder: Path, tmp_path: Path) -> subprocess.Popen:
    module, name, line = held
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog ran to the cat\n" * 500)
    arguments = line.format(model=folder, text=text, out=tmp_path / "out").split()
    code = HOLD.format(module=module, name=name)
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "here\n", child.communicate()
    return child


KEPT = []


def in_del():
    """Python only prints what is raised in `__del__`, and goes on."""

    class Dropped:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)  # in which the handler runs

    Dropped()


def in_a_callback():
    """So it does in the callback of a weak reference: event loops have them for their tasks."""

    def gone(_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)

    thing = {1}
    _reference = weakref.ref(thing, gone)
    del thing


def in_a_task():
    """An event loop may keep it as the result of a task that nobody looks at."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
    except SystemExit as error:
        KEPT.append(error)


@pytest.mark.parametrize("lose", [in_del, in_a_callback, in_a_task])
def test_a_signal_whose_exception_is_lost_comes_again(lose, monkeypatch, capfd):
    monkeypatch.setattr("i3lm.__main__.LONG", 0.05)

    def work():
        lose()
        time.sleep(60)

    with pytest.raises(SystemExit, match="130"), _ending_on_signals():
        work()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_on_a_signal(folder, tmp_path, command):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)[:: 1 if command == "eval" else 2]:
        took = []
        while min(took, default=9) >= 5 and len(took) < 2:  # a machine may stall once
            child = begin(COMMANDS[command], folder, tmp_path)
            began = time.monotonic()
            child.send_signal(number)
            _, errors = child.communicate(timeout=120)
            took.append(time.monotonic() - began)
            assert child.returncode == 130, errors
            assert "Traceback" not in errors
            assert not list(tmp_path.rglob("*.part"))
            assert command != "export" or not (tmp_path / "out").exists()
        assert min(took) < 5
    assert load_folder(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_conversation_ends_on_a_signal(folder, number):
    """At the prompt, where it waits for a person; SIGINT says how to leave."""
    line = [sys.executable, "-m", "i3lm", "chat", str(folder)]
    took = []
    while min(took, default=9) >= 5 and len(took) < 2:
        own, theirs = os.openpty()
        child = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        try:
            shown = b""
            while b">" not in shown:
                shown += os.read(own, 100)
            child.send_signal(signal.SIGINT)
            while b"/quit leaves" not in shown:
                shown += os.read(own, 100)
            assert child.poll() is None
            began = time.monotonic()
            child.send_signal(number)
            assert child.wait(60) == 130
            took.append(time.monotonic() - began)
        finally:
            child.kill()
            child.wait()
            os.close(own)
    assert min(took) < 5
