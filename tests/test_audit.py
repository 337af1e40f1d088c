"""The audit of dependencies: a vulnerability fails, a service that is away is said."""

import json
import sys

import pytest
from benchmarks.audit import audit, pinned

FOUND = {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}
SOUND = {"name": "b", "version": "1", "vulns": []}
AWAY = {"name": "c", "version": "1", "skip_reason": "not found"}


def answering(*packages) -> list[str]:
    text = json.dumps({"dependencies": packages})
    return [sys.executable, "-c", f"print({text!r})"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (answering(SOUND), 0, "1 packages, no known vulnerability"),
        (answering(SOUND, FOUND), 1, "a 1: X-1, fixed in 2"),
        (answering(AWAY, FOUND), 1, "not audited, 1 of 2: not found"),
        (answering(AWAY), 0, "not audited, 1 of 1"),
        ([sys.executable, "-c", "raise SystemExit('no route')"], 0, "not audited: no route"),
        ([sys.executable, "-c", "import time; time.sleep(600)"], 0, "gave no answer in 1 s"),
    ],
)
def test_answers(capfd, command, code, said):
    assert audit(command, seconds=1 if "sleep" in command[-1] else 60) == code
    printed = capfd.readouterr().out
    assert said in printed
    assert ("no known" in printed) == ("no known" in said)


def test_pins_are_those_of_this_environment():
    assert any(pin.startswith("torch==") for pin in pinned())
    assert not any("+" in pin for pin in pinned())
