"""Faults that a training run meets, caused for real."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from i3lm.errors import UserError
from i3lm.files import sha256_file
from i3lm.training.checkpoint import list_checkpoints, load_newest
from i3lm.training.config import Every, TrainConfig
from i3lm.training.lock import lock_folder
from i3lm.training.loop import Trainer
from i3lm.training.run import train

CHILD = """
import sys
from pathlib import Path
from i3lm.training.config import TrainConfig
from i3lm.training.run import train
train(TrainConfig.load(Path(sys.argv[1])), resume=True)
"""


@pytest.fixture
def finished(small_config):
    config = small_config(steps=6, checkpoint_every=Every(steps=2))
    return train(config).folder


def weights(run: Path) -> str:
    return sha256_file(list_checkpoints(run)[0] / "model.safetensors")


def reload(run: Path):
    """Load the newest sound checkpoint as a resumed run does."""
    from i3lm.data import Corpus
    from i3lm.model.network import I3Network

    config, corpus = TrainConfig.load(run), Corpus.open(run / "data")
    network = I3Network(config.architecture(len(corpus.tokenizer)))
    trainer = Trainer(config, corpus, network, "fp32", torch.device("cpu"))
    trainer.metrics.close()
    return load_newest(run, trainer.network, trainer.optimizer)


def test_any_flipped_or_torn_byte_is_found(finished):
    """In every file of the newest checkpoint; the older one is used and this is said."""
    newest, older = list_checkpoints(finished)
    assert reload(finished)[1] == []
    chance = random.Random(0)
    for case in range(100):
        path = newest / ("model.safetensors", "optimizer.safetensors", "trainer.json")[case % 3]
        good = path.read_bytes()
        if case % 4 == 3:
            bad = good[: chance.randrange(len(good))]
        else:
            at = chance.randrange(len(good))
            bad = good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :]
        path.write_bytes(bad)
        counters, notes = reload(finished)
        same = path.name == "trainer.json" and _same_json(bad, good)
        assert (counters.step, len(notes)) == ((6, 0) if same else (4, 1)), (case, path.name)
        path.write_bytes(good)
    assert older.exists()


def _same_json(bad: bytes, good: bytes) -> bool:
    try:
        return json.loads(bad) == json.loads(good)
    except ValueError:
        return False


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
    kills = 0
    while kills < 6:
        before = list_checkpoints(run)[0].name
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(run)], stderr=subprocess.PIPE, text=True
        )
        while list_checkpoints(run)[0].name == before and child.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        child.kill()
        _, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, errors
        reload(run)
        kills += 1
    train(TrainConfig.load(run), resume=True)
    assert weights(run) == weights(clean)


def test_a_second_process_is_refused_with_the_pid_of_the_first(finished):
    with lock_folder(finished), pytest.raises(UserError, match=f"process {os.getpid()} on "):
        train(TrainConfig.load(finished), resume=True)
    with lock_folder(finished):  # free again
        pass


def test_a_failed_checkpoint_is_said_and_tried_again(small_config, monkeypatch):
    """fsync fails twice in the middle of a run; training goes on to the same end."""
    import i3lm.files as module

    notes, failures = [], [OSError(28, "No space left on device")] * 2
    real = os.fsync

    def fsync(handle):
        if failures and "checkpoints" in os.readlink(f"/proc/self/fd/{handle}"):
            raise failures.pop()
        real(handle)

    monkeypatch.setattr(module.os, "fsync", fsync)
    config = small_config(steps=8, checkpoint_every=Every(steps=2))
    run = train(config, listener=lambda e, row: notes.append(row) if e == "note" else None).folder
    assert len([n for n in notes if "No space left" in n["text"]]) == 2
    assert list_checkpoints(run)[0].name == "step-00000008"
    assert not list((run / "checkpoints").glob(".*"))


def test_weights_that_are_not_finite_are_never_saved(finished):
    from i3lm.training.checkpoint import Counters, save_checkpoint

    class Poisoned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor([1.0, float("nan")]))

    class NoState:
        steps = 0

        def state_tensors(self):
            return {}

    before = list_checkpoints(finished)
    with pytest.raises(UserError, match="w holds values that are not finite"):
        save_checkpoint(finished, Poisoned(), NoState(), Counters(step=9))
    assert list_checkpoints(finished) == before


def test_a_refused_run_leaves_no_folder(small_config, tmp_path):
    out = tmp_path / "new"
    with pytest.raises(UserError):
        train(small_config(out=str(out), data=(str(tmp_path / "missing.txt"),)))
    assert not out.exists()


def test_a_checkpoint_that_was_moved_aside_is_found(finished):
    """As a kill leaves it between the two moves that replace a checkpoint of the same step."""
    newest, older = list_checkpoints(finished)
    aside = newest.with_name(f".old-{newest.name}")
    newest.rename(aside)
    assert list_checkpoints(finished) == [aside, older]
    counters, notes = reload(finished)
    assert (counters.step, notes) == (6, [])
    result = train(dataclasses.replace(TrainConfig.load(finished), steps=8), resume=True)
    assert result.figures["steps"] == 8
    assert [path.name for path in list_checkpoints(finished)] == [
        "step-00000008",
        "step-00000006" if not aside.exists() else aside.name,
    ]


def test_a_folder_that_cannot_be_locked_is_used_with_a_word(small_config, monkeypatch):
    import fcntl

    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    notes = []
    result = train(
        small_config(steps=2),
        listener=lambda event, row: notes.append(row["text"]) if event == "note" else None,
    )
    assert result.figures["steps"] == 2
    assert any("cannot be locked" in note for note in notes)


def test_a_model_that_cannot_be_written_at_the_end_is_one_line(small_config, monkeypatch):
    """The checkpoint is there; the same command with --resume writes the model."""
    import i3lm.training.run as module

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = small_config(steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_folder", fail)
        with pytest.raises(UserError, match=r"No space left on device.*--resume"):
            train(config)
    run = Path(config.out)
    assert not (run / "model.safetensors").exists()
    assert train(TrainConfig.load(run), resume=True).folder == run
    assert (run / "model.safetensors").exists()


def test_the_other_process_keeps_its_folder(small_config, tmp_path):
    """One that is refused must not remove what the first has just begun."""
    out = tmp_path / "new"
    out.mkdir()
    with lock_folder(out):
        with pytest.raises(UserError, match="in use"):
            train(small_config(out=str(out)))
        assert (out / ".lock").exists()
