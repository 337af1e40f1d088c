"""Runs from start to end: what they leave, how they stop, how they go on."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from i3lm.data import Corpus
from i3lm.errors import UserError
from i3lm.folder import load_folder
from i3lm.training import loop
from i3lm.training.checkpoint import list_checkpoints
from i3lm.training.config import Every, TrainConfig
from i3lm.training.heldout import count_characters, first_documents, sample_prompts
from i3lm.training.metrics import read_metrics
from i3lm.training.run import train
from i3lm.training.stopwatch import Stopwatch


class Events:
    """Records what a run tells; stops the process's run after a step when asked."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[tuple[str, dict]] = []
        self.stop_after = stop_after

    def __call__(self, event: str, row: dict) -> None:
        self.rows.append((event, row))
        if event == "step" and row["step"] == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    def of(self, event: str) -> list[dict]:
        return [row for name, row in self.rows if name == event]


def losses(run: Path) -> list[tuple[int, float]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_a_run_leaves_a_whole_folder_and_learns(small_config):
    events = Events()
    result = train(small_config(steps=60, lr=0.02), listener=events)
    run = result.folder
    assert not result.interrupted
    assert result.figures["steps"] == 60
    assert {p.name for p in run.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
        "modeling_i3.py",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "data",
    }
    first, last = losses(run)[0][1], losses(run)[-1][1]
    assert last < 0.7 * first
    bits = [row["held_out_bits_per_character"] for row in events.of("evaluation")]
    assert bits[-1] < bits[0]
    assert load_folder(run).architecture.max_position_embeddings == 32
    assert [row["step"] for row in events.of("step")] == list(range(1, 61))


RESUMED = [
    {"optimizer": "adamw", "state_bits": 4, "weight_bits": 4},
    {"optimizer": "lion", "state_bits": 8, "qat_bits": 4},
    {"precision": "bf16"},
]


@pytest.mark.parametrize("settings", RESUMED, ids=lambda s: " ".join(map(str, s.values())))
def test_a_resumed_run_is_the_run_that_would_have_been(small_config, tmp_path, settings):
    """The whole run, its folder too; test_resume.py has every optimizer and precision."""
    settings = {"preset": "i3-mini", "steps": 5, **settings}
    whole = train(small_config(out=str(tmp_path / "whole"), **settings))
    config = small_config(out=str(tmp_path / "parts"), **settings)
    part = train(config, listener=Events(stop_after=random.Random(str(settings)).randint(1, 4)))
    assert part.interrupted
    assert load_folder(part.folder)  # usable though unfinished
    done = train(TrainConfig.load(part.folder), resume=True)
    assert not done.interrupted
    for name in ("model", "optimizer"):
        files = (list_checkpoints(run.folder)[0] / f"{name}.safetensors" for run in (whole, done))
        expected, actual = map(load_file, files)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[key], actual[key]) for key in expected)
    expected = load_file(whole.folder / "model.safetensors")
    actual = load_file(done.folder / "model.safetensors")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert losses(whole.folder) == losses(done.folder)


def test_a_step_does_not_depend_on_microbatch_or_checkpointing(small_config, tmp_path):
    reference = None
    for number, changes in enumerate(
        [{"microbatch": 4}, {"microbatch": 1}, {"microbatch": 3, "gradient_checkpointing": "full"}]
    ):
        result = train(small_config(out=str(tmp_path / str(number)), steps=3, **changes))
        curve = [loss for _, loss in losses(result.folder)]
        reference = reference or curve
        assert curve == pytest.approx(reference, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_threads_train_as_one_does(small_config, tmp_path, on_threads, precision):
    sizes = {"preset": "i3-mini", "context": 64, "batch_tokens": 256, "precision": precision}
    curves = []
    for threads in (1, 2):  # which the run itself sets
        config = small_config(out=str(tmp_path / str(threads)), threads=threads, **sizes)
        curves.append([loss for _, loss in losses(train(config).folder)])
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def test_a_time_budget_ends_the_run_and_the_rate(small_config, monkeypatch):
    """With a clock on which a step takes a tenth of a second."""
    now = [100.0]

    def tick(event, row):
        now[0] += 0.1 * (event == "step")

    monkeypatch.setattr(loop, "Stopwatch", lambda: Stopwatch(lambda: now[0]))
    result = train(small_config(steps=None, time=4.0), listener=tick)
    rows = [r for r in read_metrics(result.folder / "metrics.jsonl") if "loss" in r]
    assert len(rows) in (40, 41)  # tenths do not add up to 4 to the last bit
    assert result.figures["minutes"] * 60 == pytest.approx(4.0, abs=0.11)
    rates = [row["learning_rate"] for row in rows]
    assert rates[-1] < 0.06 * max(rates)
    assert max(rates) in rates[:24]


def test_a_damaged_checkpoint_is_passed_over_and_said(small_config):
    config = small_config(checkpoint_every=Every(steps=2))
    result = train(config, listener=Events(stop_after=6))
    newest, older = list_checkpoints(result.folder)
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    events = Events()
    done = train(TrainConfig.load(result.folder), resume=True, listener=events)
    assert newest.name in events.of("note")[0]["text"]
    assert events.of("start")[0]["step"] == int(older.name.split("-")[1])
    assert [step for step, _ in losses(done.folder)] == list(range(1, 9))


def test_no_sound_checkpoint_is_an_error(small_config):
    result = train(small_config(steps=2))
    for folder in list_checkpoints(result.folder):
        (folder / "trainer.json").write_text("{")
    with pytest.raises(UserError, match="no sound checkpoint"):
        train(TrainConfig.load(result.folder), resume=True)


def test_only_the_newest_checkpoints_are_kept(small_config):
    result = train(small_config(steps=5, checkpoint_every=Every(steps=1)))
    assert [p.name for p in list_checkpoints(result.folder)] == ["step-00000005", "step-00000004"]


def test_held_out_characters_are_counted_from_tokens(small_config):
    result = train(small_config(steps=1))
    corpus = Corpus.open(result.folder / "data")
    assert count_characters(corpus.held_out, corpus.tokenizer) == corpus.held_out_characters
    part = first_documents(corpus.held_out, 100, corpus.tokenizer)
    assert 0 < part.characters < corpus.held_out_characters
    prompts = [
        corpus.tokenizer.decode(p) for p in sample_prompts(corpus.held_out, corpus.tokenizer)
    ]
    assert "Who are you?" in prompts[0]
    assert "Hi, I am" in prompts[1]


def test_plain_text_characters_are_counted_from_tokens(small_config, tmp_path):
    text = tmp_path / "stories.txt"
    text.write_text("".join(f"Story {i}: the ocean — naïve 猫 \U0001f600.\n" for i in range(99)))
    result = train(small_config(steps=1, data=(str(text),)))
    corpus = Corpus.open(result.folder / "data")
    assert count_characters(corpus.held_out, corpus.tokenizer) == corpus.held_out_characters


@pytest.mark.parametrize(
    ("name", "message"),
    [("file", "is a file"), ("other", "is not empty"), ("run", "--resume")],
)
def test_an_occupied_output_is_refused_and_untouched(small_config, tmp_path, name, message):
    out = tmp_path / "run"
    if name == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("run.json" if name == "run" else "photo.jpg")).write_text("mine")
    with pytest.raises(UserError, match=message):
        train(small_config())
    left = out if name == "file" else next(out.iterdir())
    assert left.read_text() == "mine"


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "i3-12n"},
        {"vocab_size": 10},
        {"context": 0},
        {"steps": -1},
        {"precision": "fp8"},
        {"optimizer": "sgd"},
        {"device": "abacus"},
        {"data": ("no-such-file.txt",)},
        {"context": 100_000},
    ],
)
def test_bad_settings_are_refused_in_one_line(small_config, changes):
    with pytest.raises(UserError) as caught:
        train(small_config(**changes))
    assert "\n" not in str(caught.value)


def test_the_configuration_round_trips(small_config, tmp_path):
    config = small_config(checkpoint_every=Every(seconds=30.0), eval_every=Every(steps=5))
    (tmp_path / "run.json").write_text(config.to_json())
    assert TrainConfig.load(tmp_path) == config
    (tmp_path / "run.json").write_text(json.dumps({"colour": "red"}))
    with pytest.raises(UserError, match="damaged"):
        TrainConfig.load(tmp_path)


def test_an_interval_must_be_positive():
    for bad in ({}, {"steps": 0}, {"seconds": -1.0}):
        with pytest.raises(UserError):
            Every(**bad)


def test_resuming_by_name_keeps_the_settings_of_the_run(small_config):
    import i3lm

    run = train(small_config(steps=2, seed=3)).folder
    again = i3lm.train(out=str(run), resume=True, steps=4)
    assert (again.figures["steps"], again.figures["seed"]) == (4, 3)
