"""Faults that a training run meets, caused for real."""

import contextlib
import dataclasses
import errno
import json
import os
import random
from pathlib import Path

import pytest
import torch
from run_helpers import reload

from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.config import Every, TrainConfig
from i3lm.training.lock import lock_folder
from i3lm.training.loop import Trainer
from i3lm.training.metrics import read_metrics
from i3lm.training.run import train


@pytest.fixture
def finished(small_config):
    config = small_config(steps=6, checkpoint_every=Every(steps=2))
    return train(config).folder


def test_any_flipped_or_torn_byte_is_found(finished):
    """In every file of the newest checkpoint; the older one is used and this is said."""
    newest, older = list_checkpoints(finished)
    assert reload(finished)[1] == []
    chance = random.Random(0)
    for case in range(24):
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


class Poison:
    """Spoils a weight after some steps, and keeps what the run says."""

    def __init__(self, monkeypatch, after: set[int], value: float, times: int = 1) -> None:
        self.after, self.value, self.left = after, value, dict.fromkeys(after, times)
        self.notes: list[str] = []
        step = Trainer.step

        def poisoned(trainer, progress):
            row = step(trainer, progress)
            if self.left.get(row["step"], 0) > 0:
                self.left[row["step"]] -= 1
                with torch.no_grad():
                    trainer.network.lm_head.bias[7] = value
            return row

        monkeypatch.setattr(Trainer, "step", poisoned)

    def __call__(self, event, row):
        if event == "note":
            self.notes.append(row["text"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
def test_a_loss_that_explodes_takes_the_run_back(small_config, monkeypatch, value):
    """At half the rate, saying where; the end is sound and the metrics hold each step once."""
    poison = Poison(monkeypatch, {5}, value)
    run = train(
        small_config(checkpoint_every=Every(steps=2), warmup_steps=2), listener=poison
    ).folder
    notes = [note for note in poison.notes if "back to step 4, at half the rate" in note]
    assert len(notes) == 1
    assert "at step 5, samples 20 to 23" in notes[0]
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert all(row["loss"] < 12 for row in rows if "loss" in row)
    assert any("half the rate" in row.get("note", "") for row in rows)
    manifest = json.loads((list_checkpoints(run)[0] / "trainer.json").read_text())
    assert manifest["counters"]["rate_cuts"] == 1


def test_ruined_weights_are_never_saved(small_config, monkeypatch):
    """Finite, and ruined by the very step that a checkpoint is due at: the one before is kept."""
    poison = Poison(monkeypatch, {4}, 1e4)
    run = train(
        small_config(checkpoint_every=Every(steps=2), warmup_steps=2), listener=poison
    ).folder
    assert any("no checkpoint of step 4: the loss became" in note for note in poison.notes)
    assert any("back to step 2, at half the rate" in note for note in poison.notes)
    assert reload(run)[0].step == 8


def test_a_huge_rate_leaves_a_sound_checkpoint_or_none(small_config):
    """As a user would give it: the run ends in one line, or well; what is saved is finite."""
    config = small_config(lr=1e6, warmup_steps=2, steps=12, checkpoint_every=Every(steps=1))
    with contextlib.suppress(UserError):
        train(config)
    if list_checkpoints(Path(config.out)):
        counters, notes = reload(Path(config.out))
        assert notes == []
        rows = read_metrics(Path(config.out) / "metrics.jsonl")
        assert all(r["loss"] < 20 for r in rows if 0 < r["step"] <= counters.step and "loss" in r)


def test_a_run_that_explodes_again_and_again_stops_with_a_sound_checkpoint(
    small_config, monkeypatch
):
    config = small_config(checkpoint_every=Every(steps=2))
    with monkeypatch.context() as patch:
        poison = Poison(patch, {3}, float("nan"), times=9)
        with pytest.raises(UserError, match=r"halved 3 times.*--resume .* --lr"):
            train(config, listener=poison)
    assert sum("half the rate" in note for note in poison.notes) == 3
    counters, notes = reload(Path(config.out))
    assert (counters.step, notes) == (2, [])
    assert train(TrainConfig.load(Path(config.out)), resume=True).figures["steps"] == 8


def test_a_loss_that_explodes_before_any_checkpoint_names_a_lower_rate(small_config, monkeypatch):
    poison = Poison(monkeypatch, {2}, float("nan"))
    with pytest.raises(UserError, match="before the first checkpoint; start again with --lr"):
        train(small_config(), listener=poison)


def test_refused_memory_makes_the_microbatch_smaller(small_config, monkeypatch):
    """torch's allocator fails twice; the losses are those of a run with memory enough."""
    notes, failures = [], [RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")] * 2
    real = I3Network.loss

    def loss(network, *args):
        value = real(network, *args)
        if failures and args[0].shape[0] > 1:
            raise failures.pop()
        return value

    clean = train(small_config(microbatch=4)).folder
    expected = [row["loss"] for row in read_metrics(clean / "metrics.jsonl") if "loss" in row]
    monkeypatch.setattr(I3Network, "loss", loss)
    run = train(
        small_config(microbatch=4, out=str(clean) + "2"),
        listener=lambda event, row: notes.append(row["text"]) if event == "note" else None,
    ).folder
    assert sum("gives no more memory; it goes on with a microbatch" in note for note in notes) == 2
    actual = [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert actual == pytest.approx(expected, rel=1e-4)


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


def test_a_folder_called_data_with_other_files_is_not_taken_for_ours(small_config, tmp_path):
    """nanoGPT's projects have data/train.bin, for one."""
    mine = tmp_path / "project" / "data"
    mine.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        (mine / name).write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        train(small_config(out=str(mine.parent)))
    assert (mine / "train.bin").read_text() == "mine"


def test_a_refused_run_does_not_stand_in_the_way_of_the_next(small_config, tmp_path):
    """Too little text; then more of it, for the same folder."""
    text = tmp_path / "grow.txt"
    text.write_text("the cat sat on the mat\n" * 9)
    config = small_config(data=(str(text),), steps=2, context=128)
    with pytest.raises(UserError, match="too few"):
        train(config)
    text.write_text("".join(f"the cat sat on mat {i % 97}\n" for i in range(900)))
    assert train(config).figures["steps"] == 2
