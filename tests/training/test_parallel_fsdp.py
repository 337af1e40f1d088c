"""Fully sharded training: the same losses and checkpoints, with a part of the model in each."""

import os
import signal
import socket

import parallel_cases
import pytest
from test_parallel import launch_cases, names, tolerance
from test_parallel_faults import begin, linux, refused, said, step_of, workers

from i3lm import load
from i3lm.__main__ import main
from i3lm.errors import UserError
from i3lm.memory import Choice, estimate
from i3lm.presets import find_preset
from i3lm.tensorheader import read_header
from i3lm.training.checkpoint import FILES, list_checkpoints
from i3lm.training.config import TrainConfig
from i3lm.training.metrics import read_metrics
from i3lm.training.pieces import borders

PLAN = parallel_cases.PLANS["fsdp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def figures(text_file, folder):
    return launch_cases("fsdp", (2,), text_file, folder)


@pytest.mark.parametrize("name", names(PLAN.cases))
def test_two_processes_give_the_losses_of_one(figures, name):
    one = figures["1-0"][name]["whole"]
    assert figures["2-0"][name]["whole"] == pytest.approx(one, rel=tolerance(name))
    assert figures["2-1"][name]["whole"] == figures["2-0"][name]["whole"]


@pytest.mark.parametrize("name", names(PLAN.resumed))
def test_a_run_goes_on_from_one_to_two_and_back(figures, name):
    second = figures["1-0"][name]["whole"][PLAN.half :]
    for size in ("2-0", "back-0"):
        assert figures[size][name]["resumed"] == pytest.approx(second, rel=tolerance(name))


@pytest.mark.parametrize("name", names(PLAN.cases))
def test_a_checkpoint_is_that_of_one_process(figures, folder, name):
    one, two = (list_checkpoints(folder / size / name)[0] for size in ("1", "2"))
    for file in FILES:
        first, second = (read_header(where / file).tensors for where in (one, two))
        assert first == second
        assert first.keys()


@pytest.mark.parametrize("name", names(PLAN.cases))
def test_each_process_holds_its_part_of_weights_gradients_and_states(figures, name):
    one = figures["1-0"][name]["held"]
    for process in ("2-0", "2-1"):
        assert 0.4 * one < figures[process][name]["held"] < 0.6 * one


def test_the_estimate_divides_what_is_divided():
    sizes = find_preset("i3-22m").architecture
    alone = estimate(sizes, Choice(1, 256), 0)
    rows = [estimate(sizes, Choice(1, 256, processes=n), 0) for n in (2, 4)]
    whole = [row.weights - alone.weights // n for row, n in zip(rows, (2, 4), strict=True)]
    assert whole[0] == whole[1]  # what is outside the layers, and two of these
    assert 0 < whole[0] < alone.weights / 4
    assert [row.states for row in rows] == [alone.states // 2, alone.states // 4]
    assert rows[1].total < rows[0].total < alone.total


def test_rows_are_dealt_out_as_fsdp2_does():
    assert borders((5, 3), 2) == [(0, 9), (9, 15)]
    assert borders((2,), 4) == [(0, 1), (1, 2), (2, 2), (2, 2)]


@linux
def test_ctrl_c_saves_and_a_lone_process_goes_on(text_file, tmp_path):
    run = tmp_path / "run"
    child = begin(2, run, text_file, "--quiet", "--steps", 100000, "--parallel", "fsdp")
    os.kill(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=100)
    assert said(errors) == []
    step = step_of(run)
    assert step >= 5
    assert main(["train", "--resume", str(run), "--steps", str(step + 2), "--quiet"]) == 0
    assert step_of(run) == step + 2


@linux
def test_a_killed_process_ends_all_which_start_again(text_file, tmp_path):
    """Its part is lost with it, so the run goes on from the last checkpoint, and to its end."""
    run = tmp_path / "run"
    words = ("--quiet", "--steps", 42, "--parallel", "fsdp", "--eval-every", 21)
    child = begin(2, run, text_file, *words, launch=("--max-restarts", 1))
    os.kill(workers(child)[1], signal.SIGKILL)
    _, errors = child.communicate(timeout=100)
    assert child.returncode == 0, errors
    (line,) = said(errors)
    assert f"process 1 on {socket.gethostname()} does not answer" in line
    assert "go on from the last checkpoint, with --resume" in line
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 43)]
    evaluated = [row for row in rows if "held_out_bits_per_character" in row]
    assert [row["step"] for row in evaluated] == [21, 42]
    assert all(row["sample"]["reply"] for row in evaluated)
    assert read_header(run / "model.safetensors").tensors.keys() == (
        read_header(list_checkpoints(run)[0] / "model.safetensors").tensors.keys()
    )
    load(run)  # holds the file against its checksum


def test_a_lone_process_is_refused(capsys, tmp_path):
    run = tmp_path / "run"
    error = refused(capsys, "--out", str(run), "--parallel", "fsdp")
    assert "--parallel fsdp divides a model among processes" in error
    assert not run.exists()


@pytest.mark.parametrize("few", [{"weight_bits": 4}, {"qat_bits": 8}])
def test_stored_weights_are_refused(few):
    option = f"--{next(iter(few)).replace('_', '-')}"
    with pytest.raises(UserError, match=f"--parallel fsdp divides float32 weights; leave {option}"):
        TrainConfig(parallel="fsdp", **few)
