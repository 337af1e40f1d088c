"""Every command and every Python block of the README runs, on a small text and for a few steps."""

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from i3lm.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ["--preset", "i3-tiny", "--context", "32", "--steps", "2"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello!\n"))
    line = "[INST] Hi, I am Anna number {0}. [/INST] Hello Anna! What do you like, number {0}?\n"
    text = "".join(line.format(i) for i in range(200))
    for name in ("my_text.txt", "other_text.txt"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_commands_run(workplace):
    names = []
    for words in commands():
        assert words[0] == "i3lm"
        arguments = words[1:]
        if arguments[0] == "train":
            at = arguments.index("--time")
            arguments = [*arguments[:at], *arguments[at + 2 :], *SHORT]
        assert main(arguments) == 0, words
        names.append(arguments[0])
    assert names == ["train", "chat", "generate", "eval", "info", "plan", "export", "compare"]
    assert main(["train", "--resume", "my-model", "--steps", "3"]) == 0


def test_the_python_blocks_run(workplace):
    ours, theirs, lorpt = blocks("python")
    small = 'preset="i3-tiny", context=32, steps=2'
    assert 'time="30m"' in ours
    exec(compile(ours.replace('time="30m"', small), "README", "exec"), {})
    exec(compile(theirs, "README", "exec"), {})
    layer = torch.nn.Sequential()
    layer.add_module("mlp", torch.nn.Linear(256, 256))
    exec(compile(lorpt, "README", "exec"), {"model": layer})
    assert type(layer.mlp) is torch.nn.Linear


def test_the_table_of_presets_is_true():
    from i3lm.presets import PRESETS

    for name, preset in PRESETS.items():
        assert re.search(rf"`{name}` \| {preset.architecture.parameters:,}", README), name


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
