"""Launches that cannot be, processes that are killed, told to end, slow or cut off."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_parallel import torchrun

from i3lm.__main__ import main
from i3lm.errors import UserError
from i3lm.launch import Launch, launch
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.config import TrainConfig
from i3lm.training.joining import JOIN_SECONDS, Meeting, _compare, _facts
from i3lm.training.metrics import read_metrics
from i3lm.training.parallel import Lost
from i3lm.training.signals import SIGNALS, caught

SMALL = (
    *("--preset", "i3-tiny", "--vocab-size", "400", "--context", "32", "--batch-tokens", "64"),
    *("--precision", "fp32", "--threads", "1", "--eval-every", "100000"),
)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def alone(monkeypatch):
    """Pretend to be one process of a launch whose others are not there."""

    def pretend(**names) -> None:
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield pretend
    for number, handler in handlers.items():  # a process that leaves heeds none any more
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"RANK": 2, "WORLD_SIZE": 2}, "process 2 of 2 cannot be"),
        ({"RANK": 0, "WORLD_SIZE": 2}, "start it with torchrun"),
        ({"RANK": "x", "WORLD_SIZE": 2}, "start it with torchrun"),
    ],
)
def test_an_environment_that_makes_no_sense(alone, names, message):
    alone(**names)
    with pytest.raises(UserError, match=message):
        launch()


def refused(capsys, *words: str) -> str:
    """Run a command that must end with one line, and before JOIN_SECONDS; return the line."""
    began = time.monotonic()
    assert main(["train", *SMALL, "--quiet", "--steps", "2", *words]) == 2
    assert time.monotonic() - began < JOIN_SECONDS - 10
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_a_rendezvous_that_is_not_there(alone, capsys, tmp_path):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    alone(RANK=1, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, **place)
    run = tmp_path / "run"
    error = refused(capsys, "--out", str(run), "--ddp-timeout", "1s")
    assert f"cannot reach 127.0.0.1:{place['MASTER_PORT']} within 1 s" in error
    assert not run.exists()


def test_processes_that_do_not_come(alone, capsys, tmp_path):
    alone(RANK=0, WORLD_SIZE=3, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    run = tmp_path / "run"
    error = refused(capsys, "--out", str(run), "--ddp-timeout", "5s")
    assert "of 3 processes 1, 2 did not come within 5 s" in error
    assert not run.exists()


def test_no_gpu(alone, capsys, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    alone(RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    assert "--device cuda is not to be had here" in refused(capsys, "--device", "cuda")


def meet(changes: dict, sizes: tuple[int, int] = (2, 2)) -> list[str]:
    """Let two processes introduce themselves, here threads; return what each refuses."""
    port, found = free_port(), ["", ""]
    met = []  # process 0 keeps the store: it must not go before process 1 has read
    seconds = 30.0 if sizes[0] == sizes[1] else 2.0  # one of them waits in vain

    def introduce(rank: int) -> None:
        facts = _facts(TrainConfig(), False)
        facts |= changes if rank else {}
        try:
            meeting = Meeting(Launch(rank, sizes[rank], address="127.0.0.1", port=port), seconds)
            met.append(meeting)
            _compare(meeting.introduce(facts))
        except UserError as error:
            found[rank] = str(error)
        except BaseException as error:
            found[rank] = repr(error)

    threads = [threading.Thread(target=introduce, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "other"}, "has i3lm's code of digest other"),
        ({"version": "9"}, "has i3lm 9, process 0"),
        ({"torch": "1.0"}, "has torch 1.0"),
        ({"resume": True}, "has --resume: True"),
        ({"settings": {**_facts(TrainConfig(seed=3), False)["settings"]}}, "has --seed 3, process"),
    ],
)
def test_processes_that_differ(changes, message):
    errors = meet(changes)
    assert all(message in error and "process 1 on" in error for error in errors), errors


def test_processes_that_count_differently():
    assert "of 3 processes 2 did not come" in meet({}, sizes=(3, 2))[0]
    assert "has a world size of 3, process 0 2" in meet({}, sizes=(2, 3))[0]


def test_what_each_process_has_for_itself_may_differ():
    mine = TrainConfig(out="a", threads=1, memory=10**9, data=("a",))
    assert meet({"settings": _facts(mine, False)["settings"]}) == ["", ""]


def begin(size: int, run: Path, text: Path, *words, launch: tuple = ()) -> subprocess.Popen:
    """Begin a run by torchrun and wait for its first checkpoint."""
    line = [*launch, "-m", "i3lm", "train", *SMALL, "--data", text, "--out", run]
    child = torchrun(size, *line, "--checkpoint-every", 5, *words, start_new_session=True)
    wait_for(child, lambda: list_checkpoints(run))
    return child


def wait_for(child: subprocess.Popen, condition) -> None:
    end = time.monotonic() + 100
    while not condition() and child.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def workers(child: subprocess.Popen) -> dict[int, int]:
    """Return the process ids of a launch's processes by rank."""
    found = {}
    path = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    for pid in path.read_text().split():
        names = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [int(n.partition(b"=")[2]) for n in names if n.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(pid)
    return found


def step_of(run: Path) -> int:
    newest = list_checkpoints(run)[0]
    return json.loads((newest / "trainer.json").read_text())["counters"]["step"]


def said(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error: ")]


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_a_launch_of_what_cannot_be_says_one_line(text_file, tmp_path):
    run = tmp_path / "run"
    words = ("--data", text_file, "--out", run, "--steps", 2, "--quiet")
    child = torchrun(3, "-m", "i3lm", "train", *SMALL, *words)
    _, errors = child.communicate(timeout=100)
    assert child.returncode == 1
    (line,) = said(errors)
    assert "3 processes share the 2 sequences of a step" in line
    assert not run.exists()


def test_no_signal_is_heeded_once_a_process_is_lost(alone):
    """torchrun ends those that are left at once; they have to say first why they end."""
    before = signal.getsignal(signal.SIGTERM)
    with caught(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Lost), caught(lambda: None):
        raise Lost("it is gone")
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in SIGNALS)


@linux
def test_a_killed_process_is_started_again_from_the_last_checkpoint(text_file, tmp_path):
    run = tmp_path / "run"
    again = ("--max-restarts", 1)
    child = begin(2, run, text_file, "--quiet", "--steps", 60, launch=again)
    os.kill(workers(child)[1], signal.SIGKILL)
    _, errors = child.communicate(timeout=100)
    assert child.returncode == 0, errors
    assert step_of(run) == 60
    steps = [row["step"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert steps == [*range(1, 61)]
    assert (run / "model.safetensors").exists()


@linux
def test_a_killed_process_ends_all_and_another_number_goes_on(text_file, tmp_path):
    """One line names it; what was done is saved; one process, then two again, go on."""
    run = tmp_path / "run"
    child = begin(2, run, text_file, "--quiet", "--steps", 100000)
    os.kill(workers(child)[1], signal.SIGKILL)
    began = time.monotonic()
    _, errors = child.communicate(timeout=100)
    assert time.monotonic() - began < 30  # the timeout is of five minutes
    assert child.returncode == 1
    (line,) = said(errors)
    assert f"process 1 on {socket.gethostname()} does not answer" in line
    step = step_of(run)
    assert f"go on from step {step}, which is saved, with --resume" in line
    assert main(["train", "--resume", str(run), "--steps", str(step + 3), "--quiet"]) == 0
    assert step_of(run) == step + 3


@linux
def test_ctrl_c_saves_and_a_slow_process_is_named(text_file, tmp_path):
    """Process 1 stands still for a moment in each step; then the launch gets SIGINT."""
    run = tmp_path / "run"
    child = begin(2, run, text_file, "--steps", 100000, "--batch-tokens", 1024)
    slow, heard = workers(child)[1], list[str]()
    reader = threading.Thread(target=lambda: [heard.append(line) for line in child.stderr])
    reader.start()
    end = time.monotonic() + 90
    while not any("is slow" in line for line in heard) and time.monotonic() < end:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            os.kill(slow, number)
            time.sleep(0.12 if number == signal.SIGSTOP else 0.03)
    os.kill(child.pid, signal.SIGINT)
    child.wait(100)
    reader.join()
    child.stderr.close()
    errors = "".join(heard)
    assert child.returncode == 1, errors  # torchrun's own
    assert f"process 1 on {socket.gethostname()} is slow" in errors
    assert f"go on with: i3lm train --resume {run}" in errors
    assert said(errors) == []
    assert step_of(run) > 5
