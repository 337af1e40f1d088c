"""Disks that are full, read-only or gone, through the command line and on real file systems."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import reload, weights

from i3lm.data import Corpus, open_source, prepare
from i3lm.errors import UserError
from i3lm.folder import load_folder
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.config import Every, TrainConfig
from i3lm.training.run import train


def notes_to(said: list[str]):
    return lambda event, row: said.append(row["text"]) if event == "note" else None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, `mount(kibibytes)`; where we may not, the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kibibytes: int) -> Path:
        line = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
        if os.name != "posix" or shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("only root may mount a file system")
        if subprocess.run(line, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def checkpoints_of(notes: list[str]) -> list[str]:
    """Leave out what was said of the report, which is refused too."""
    return [note for note in notes if not note.startswith("report.html")]


def test_a_disk_that_fills_up_while_training(small_disk, small_config, tmp_path):
    """Another program takes all room between steps 3 and 6; the end is a clean run's."""
    settings = {"steps": 8, "checkpoint_every": Every(steps=1)}
    clean = train(small_config(out=str(tmp_path / "clean"), **settings)).folder
    disk, said = small_disk(40_000), []

    def listener(event, row):
        notes_to(said)(event, row)
        if event == "step" and row["step"] == 3:
            with open(disk / "other", "wb") as file:
                free = shutil.disk_usage(disk).free
                os.posix_fallocate(file.fileno(), 0, free)
        if event == "step" and row["step"] == 6:
            (disk / "other").unlink()

    run = train(small_config(out=str(disk / "run"), **settings), listener=listener).folder
    assert sum("No space left on device" in note for note in checkpoints_of(said)) == 3
    assert weights(run) == weights(clean)
    assert load_folder(run)


def test_a_disk_that_stays_full_is_one_line_and_the_last_checkpoint_stays(small_disk, small_config):
    disk = small_disk(40_000)
    config = small_config(out=str(disk / "run"), steps=6, checkpoint_every=Every(steps=2))

    def listener(event, row):
        if event == "checkpoint" and row["step"] == 2:
            with open(disk / "other", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free)

    with pytest.raises(UserError, match=r"step 6 failed: .*No space left on device"):
        train(config, listener=listener)
    assert reload(disk / "run")[0].step == 2
    (disk / "other").unlink()
    assert train(TrainConfig.load(disk / "run"), resume=True).figures["steps"] == 6


@pytest.mark.parametrize("kibibytes", [8, 40, 120, 1000])  # the last one has room for the text
def test_a_disk_too_small_to_begin_on(small_disk, small_config, kibibytes):
    disk = small_disk(kibibytes)
    said: list[str] = []
    with pytest.raises(UserError, match=r"No space left on device|make room there") as caught:
        train(
            small_config(out=str(disk / "run"), steps=2),
            listener=lambda event, row: said.append(event),
        )
    assert "\n" not in str(caught.value)
    assert "step" not in said


def test_packing_on_a_full_disk_leaves_nothing_half(small_disk, text_file):
    disk = small_disk(24)
    with pytest.raises(UserError, match="No space left on device"):
        prepare(open_source(text_file), disk / "c", vocab_size=400)
    assert not list((disk / "c").rglob("*.part")) + list((disk / "c").rglob("*.bin"))
    with pytest.raises(UserError, match="no prepared corpus"):
        Corpus.open(disk / "c")


@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_limit_of_file_sizes_acts_like_a_quota(small_config, limit):
    """RLIMIT_FSIZE, as `ulimit -f` sets it: from step 3 to step 6 no file may be longer."""
    said: list[str] = []
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def listener(event, row):
        notes_to(said)(event, row)
        if event == "step" and row["step"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        if event == "step" and row["step"] == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    try:
        run = train(small_config(checkpoint_every=Every(steps=2)), listener=listener).folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert sum("File too large" in note for note in checkpoints_of(said)) == 1
    assert reload(run)[0].step == 8


def test_an_output_folder_that_is_deleted_while_training(small_config):
    """Every save says so; nothing is made up in its place; the end is an error of one line."""
    config, said = small_config(checkpoint_every=Every(steps=2)), []

    def listener(event, row):
        notes_to(said)(event, row)
        if event == "step" and row["step"] == 5:
            shutil.rmtree(config.out)

    with pytest.raises(UserError, match=r"the checkpoint of step 8 failed: .* is gone"):
        train(config, listener=listener)
    assert any("the checkpoint of step 6 failed" in note for note in said)
    assert not Path(config.out).exists()


def without_override(*line: str) -> list[str]:
    """Return a command that obeys the modes of files, which root does not."""
    if os.geteuid() != 0:
        return list(line)
    if shutil.which("setpriv") is None:
        pytest.skip("root obeys no mode, and setpriv is not here")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *line]


def i3lm(*arguments) -> list[str]:
    return [sys.executable, "-m", "i3lm", *map(str, arguments)]


def test_read_only_folders_are_refused_in_one_line(small_config, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for out in (closed, closed / "run"):
        line = i3lm("train", "--data", small_config().data[0], "--out", out, "--steps", 2)
        done = subprocess.run(without_override(*line), capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: cannot ")
        assert done.stderr.count("\n") == 1
        assert str(closed) in done.stderr


def test_a_terminal_that_goes_away_ends_no_run(small_config, tmp_path):
    """`i3lm train | head`, and a closed window: standard error is gone, the run goes on."""
    config = small_config()
    reading, writing = os.pipe()
    line = i3lm(
        *("train", "--data", config.data[0], "--out", config.out, "--preset", "i3-tiny"),
        *("--vocab-size", 400, "--context", 32, "--batch-tokens", 64, "--steps", 30),
        *("--eval-every", 10, "--threads", 1, "--precision", "fp32"),
    )
    child = subprocess.Popen(line, stderr=writing, stdout=writing)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    child.wait(60)
    assert list_checkpoints(Path(config.out))[0].name == "step-00000030"


def test_nohup_is_heard(small_config):
    """A signal that whoever started us told us to ignore stays ignored."""
    config = small_config()
    line = i3lm(
        *("train", "--data", config.data[0], "--out", config.out, "--preset", "i3-tiny"),
        *("--vocab-size", 400, "--context", 32, "--batch-tokens", 64, "--steps", 40),
        *("--threads", 1, "--precision", "fp32", "--quiet"),
    )
    ignore = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    ignore += "os.execv(sys.argv[1], sys.argv[1:])"
    child = subprocess.Popen([sys.executable, "-c", ignore, *line], stderr=subprocess.PIPE)
    while not (Path(config.out) / "metrics.jsonl").exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGHUP)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    assert list_checkpoints(Path(config.out))[0].name == "step-00000040"
