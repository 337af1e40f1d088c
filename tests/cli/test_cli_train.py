import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from i3lm.__main__ import NO_THREAD, main
from i3lm.cli import train as command
from i3lm.training.config import Every, TrainConfig
from i3lm.training.run import TrainResult


@pytest.fixture
def calls(monkeypatch):
    """Stand in for the training itself; collect what it was asked."""
    made = []

    def train(config, *, resume=False, listener=None):
        made.append((config, resume, listener))
        return TrainResult(Path(config.out), {"steps": 7}, interrupted=config.seed == 99)

    monkeypatch.setattr("i3lm.training.run.train", train)
    return made


def test_without_flags_the_defaults_hold(run, calls):
    assert run("train", "--quiet") == (0, "", "")
    assert calls == [(TrainConfig(), False, None)]


def test_every_flag_reaches_the_configuration(run, calls):
    flags = {
        "data": ("a.txt", "b.txt"),
        "out": "there",
        "preset": "i3-mini",
        "vocab_size": 500,
        "context": 64,
        "batch_tokens": 4096,
        "microbatch": 2,
        "lr": 0.5,
        "optimizer": "lion",
        "state_bits": 8,
        "weight_bits": 4,
        "memory": 2_000_000_000,
        "steps": 9,
        "time": 5400.0,
        "checkpoint_every": Every(seconds=120.0),
        "eval_every": Every(steps=500),
        "seed": 5,
        "device": "meta",
        "threads": 3,
        "gradient_checkpointing": "full",
        "text_column": "story",
        "split": "test",
        "documents": "line",
        "lowercase": True,
        "precision": "bf16",
    }
    arguments = []
    for name, value in flags.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(option)
        elif isinstance(value, tuple):
            arguments += [part for item in value for part in (option, item)]
        else:
            written = {
                "time": "1h30m",
                "memory": "2GB",
                "checkpoint_every": "2m",
                "eval_every": "500",
            }
            arguments += [option, written.get(name, value)]
    assert run("train", "--quiet", *arguments)[0] == 0
    config = calls[0][0]
    assert config == TrainConfig(**flags)
    default = TrainConfig()
    same = [name for name in flags if getattr(config, name) == getattr(default, name)]
    assert not same  # else the flag would not have been tested
    settings = {option.name for option in command.command.params}
    unset = {field.name for field in dataclasses.fields(TrainConfig)} - settings
    assert unset == {"warmup_steps", "clip"}


def test_resume_keeps_what_the_flags_leave_open(run, calls, tmp_path):
    earlier = TrainConfig(out="moved since", preset="i3-mini", steps=10, seed=3)
    (tmp_path / "run.json").write_text(earlier.to_json())
    assert run("train", "--resume", tmp_path, "--steps", 20, "--quiet")[0] == 0
    assert calls == [(dataclasses.replace(earlier, out=str(tmp_path), steps=20), True, None)]


def test_progress_goes_to_the_listener(run, calls):
    code, out, err = run("train", "--out", "there")
    assert (code, out) == (0, "")
    assert "i3lm chat there" in err
    assert calls[0][2] is not None


def test_json(run, calls):
    _, out, _ = run("train", "--out", "there", "--json")
    assert json.loads(out) == {"steps": 7, "folder": "there", "interrupted": False}


def test_an_interrupted_run_says_how_to_go_on(run, calls):
    code, out, err = run("train", "--out", "there", "--seed", 99)
    assert (code, out) == (130, "")
    assert "i3lm train --resume there" in err


def test_help_names_every_option():
    text = command.command.get_help(click.Context(command.command))
    for option in ("--optimizer", "--gradient-checkpointing", "--text-column", "--eval-every"):
        assert option in text


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_a_file_whose_name_is_no_text(tmp_path):
    """Old archives have them: bytes that are no UTF-8."""
    text, run = os.fsencode(tmp_path) + b"/caf\xe9.txt", tmp_path / "run"
    with open(text, "wb") as file:
        file.write(b"the cat sat on the mat and the dog ran to the cat\n" * 400)
    line = [sys.executable, "-m", "i3lm", "train", "--preset", "i3-tiny", "--steps", "1"]
    line += ["--context", "32", "--data", text, "--out", str(run)]
    done = subprocess.run(line, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "caf?.txt" in (run / "README.md").read_text(encoding="utf-8")


def test_folders_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("no run")
    assert main(["train", "--resume", str(tmp_path / "file")]) == 2
    assert "it is a file" in capsys.readouterr().err
    assert main(["train", "--steps", "1", "--out", str(tmp_path / ("x" * 300))]) == 2
    assert "name another" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(NO_THREAD)])
def test_a_system_that_gives_no_more_is_told_in_one_line(monkeypatch, capsys, error):
    def train(config, *, resume=False, listener=None):
        raise error

    monkeypatch.setattr("i3lm.training.run.train", train)
    assert main(["train", "--steps", "1", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "ulimit" in said
    assert said.count("\n") == 1
