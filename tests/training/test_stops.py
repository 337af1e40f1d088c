"""Runs that are killed, told to end, or stand still: real processes and real signals."""

import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import reload, weights

from i3lm.errors import UserError
from i3lm.folder import load_folder
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.config import Every, TrainConfig
from i3lm.training.metrics import read_metrics
from i3lm.training.run import train
from i3lm.training.stopwatch import Stopwatch


def command(*arguments) -> subprocess.Popen:
    """Begin `i3lm train` in a process of its own."""
    line = [sys.executable, "-m", "i3lm", "train", *map(str, arguments)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)


def begin(config: TrainConfig, *more) -> subprocess.Popen:
    """Begin a run of the small configuration, and wait until it can be gone on with."""
    run = Path(config.out)
    child = command(
        *("--data", config.data[0], "--out", run, "--preset", "i3-tiny", "--vocab-size", 400),
        *("--context", 32, "--threads", 1, "--precision", "fp32", *more),
    )
    while not (run / "run.json").exists() and child.poll() is None:
        time.sleep(0.02)
    return child


def test_the_kill_signal_at_any_instant_loses_nothing(small_config, tmp_path):
    """Killed again and again with a checkpoint a step, the run ends with a clean run's weights."""
    settings = {"steps": 60, "checkpoint_every": Every(steps=1)}
    clean = train(small_config(out=str(tmp_path / "clean"), **settings)).folder
    run = tmp_path / "killed"
    config = small_config(out=str(run), **settings)

    def stop(event, row):
        if event == "step" and row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert train(config, listener=stop).interrupted
    chance = random.Random(1)
    kills = tries = 0
    while kills < 3:
        tries += 1
        assert tries < 10
        kept = shutil.copytree(run, tmp_path / f"kept-{tries}")
        before = list_checkpoints(run)[0].name
        child = command("--resume", run)
        while list_checkpoints(run)[0].name == before and child.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        child.kill()
        _, errors = child.communicate()
        if child.returncode == 0:  # this process was held up, and the run ended first
            shutil.rmtree(run)
            kept.rename(run)
            continue
        assert child.returncode == -signal.SIGKILL, errors
        reload(run)
        kills += 1
    train(TrainConfig.load(run), resume=True)
    assert weights(run) == weights(clean)


def test_a_stopped_process_keeps_its_time(small_config):
    """SIGSTOP for 6 seconds of a budget of 6: all of the budget is still trained."""
    config = small_config()
    child = begin(config, "--time", "6s", "--batch-tokens", 128, "--eval-every", 1000000)
    time.sleep(1)
    child.send_signal(signal.SIGSTOP)
    time.sleep(6)
    child.send_signal(signal.SIGCONT)
    _, errors = child.communicate(timeout=120)
    took = time.time() - (Path(config.out) / "run.json").stat().st_mtime  # written as it began
    assert child.returncode == 0, errors
    seconds = reload(Path(config.out))[0].seconds
    assert seconds >= 6
    assert took - seconds > 5  # of the six in which it stood


def test_the_stopwatch_leaves_out_long_gaps_only():
    now = 100.0
    watch = Stopwatch(lambda: now)
    for gap, total in [(1.0, 1.0), (2.5, 3.5), (600.0, 4.0), (0.25, 4.25)]:
        now += gap
        assert watch.seconds == total


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_long_step_between_microbatches(small_config, tmp_path, name):
    """A step of 16,384 microbatches would take minutes; the run is saved and can go on."""
    text = tmp_path / "long.txt"  # a step may not be larger than the text
    text.write_text(Path(small_config().data[0]).read_text() * 60)
    took = []
    while min(took, default=9) >= 5 and len(took) < 2:  # a machine may stall once
        config = small_config(data=(str(text),), out=str(tmp_path / f"run-{len(took)}"))
        child = begin(config, "--batch-tokens", 16384 * 32, "--microbatch", 1, "--steps", 3)
        time.sleep(1)
        began = time.monotonic()
        child.send_signal(getattr(signal, name))
        _, errors = child.communicate(timeout=60)
        took.append(time.monotonic() - began)
        assert child.returncode == 130, errors
        assert "go on with: i3lm train --resume" in errors
        assert reload(Path(config.out))[0].step == 0
        assert load_folder(config.out)
    assert min(took) < 5


def test_two_processes_on_one_folder(small_config):
    """The second is refused with the first's pid and host; a kill leaves nothing that refuses."""
    config = small_config()
    first = begin(config, "--steps", 100000, "--batch-tokens", 128, "--checkpoint-every", 1)
    second = command("--resume", config.out)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"in use by process {first.pid} on {socket.gethostname()}" in errors
    first.kill()
    first.communicate()
    assert train(
        dataclasses.replace(TrainConfig.load(Path(config.out)), steps=1), resume=True
    ).folder


def test_a_run_that_is_killed_before_its_first_checkpoint_begins_anew(small_config, tmp_path):
    """Its folder holds no checkpoint yet; --resume gives the run that would have been."""
    clean = train(small_config(out=str(tmp_path / "clean"))).folder
    config = small_config()
    child = begin(config, "--batch-tokens", 128, "--microbatch", 2, "--steps", 100_000)
    child.kill()
    child.communicate()
    run = Path(config.out)
    assert not list_checkpoints(run)
    (run / ".config.json.abcdefgh.part").write_text("{")
    with pytest.raises(UserError, match="--resume"):
        train(config)
    train(dataclasses.replace(TrainConfig.load(run), steps=config.steps), resume=True)
    assert weights(run) == weights(clean)
    assert not list(run.glob(".*.part"))


def test_a_run_that_is_killed_before_its_settings_are_written_begins_anew(small_config, tmp_path):
    """What it has left by then stands in nobody's way; rows of a run do."""
    clean = train(small_config(out=str(tmp_path / "clean"))).folder
    config = small_config()
    run = Path(config.out)
    shutil.copytree(clean / "data", run / "data")
    metrics = run / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="is not empty"):
        train(config)
    assert metrics.read_text() == '{"step": 1}\n'
    metrics.write_text("")
    train(config)
    assert weights(run) == weights(clean)


def test_a_second_signal_ends_at_once(small_config):
    config = small_config()
    child = begin(config, "--steps", 100000, "--batch-tokens", 128, "--checkpoint-every", 1)
    while len(list_checkpoints(Path(config.out))) < 2 and child.poll() is None:
        time.sleep(0.02)
    for _ in range(2):
        child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode in (130, -signal.SIGTERM)
    assert reload(Path(config.out))[1] == []


def test_an_evaluation_that_a_signal_ends_is_made_up_for(small_config, tmp_path, monkeypatch):
    """The metrics hold what those of an uninterrupted run do."""
    import i3lm.training.heldout as module

    settings = {"steps": 6, "eval_every": Every(steps=2)}
    clean = train(small_config(out=str(tmp_path / "clean"), **settings)).folder
    config = small_config(out=str(tmp_path / "stopped"), **settings)
    score, calls = module.score_tokens, []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return score(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "score_tokens", stop)
        assert train(config).interrupted
    assert reload(Path(config.out))[0].step == 4
    train(TrainConfig.load(Path(config.out)), resume=True)

    def rows(run: Path) -> list:
        found = read_metrics(run / "metrics.jsonl")
        return [
            {k: r[k] for k in r if k not in ("seconds", "tokens_per_second", "memory")}
            for r in found
        ]

    assert rows(Path(config.out)) == rows(clean)
