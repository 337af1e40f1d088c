"""The planner: its estimates against real runs, its choices, and limits that are kept."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.common import in_child
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from i3lm.cli import group
from i3lm.errors import UserError
from i3lm.memory import CHECKPOINTING_SPEED, Choice, Wanted, _activations, estimate, plan
from i3lm.model import COMPILED, room, whole_layer
from i3lm.native import multiplies_bfloat16
from i3lm.presets import PRESETS, find_preset
from i3lm.training import planning
from i3lm.training.config import TrainConfig

RUNTIME = 220_000_000
SIZES = find_preset("i3-12m").architecture
WANTED = Wanted(sequences=8, context=256, optimizer="muon", low_bytes=2)
linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
compiled = pytest.mark.skipif(not COMPILED, reason="the estimate is of the compiled passes")


def test_with_room_nothing_is_given_up():
    choice, _ = plan(SIZES, WANTED, 4_000_000_000, RUNTIME)
    assert choice == Choice(4, 256, "none", "muon", 32, 2)


def test_what_layers_keep_is_counted_to_the_byte():
    def kept(mode):
        return _activations(SIZES, Choice(4, 256, mode, "muon", 32, 2))

    s, count, inputs = SIZES, SIZES.num_hidden_layers, 4 * 1024 * SIZES.hidden_size
    numbers = s.hidden_size, s.state_size, s.rank, s.intermediate_size, s.num_attention_heads
    _, layer = room.places(whole_layer.kinds_kept(whole_layer.Sizes(4, 256, *numbers)).values())
    assert kept("none") - kept("full") == (count - 1) * (inputs + layer) - count * inputs


@given(st.integers(380_000_000, 900_000_000))
def test_plans_fit_and_more_memory_is_never_slower(limit):
    try:
        choice, cost = plan(SIZES, WANTED, limit, RUNTIME)
    except UserError as error:
        least = int(str(error).split("--memory ")[2].split("MB")[0]) * 10**6
        assert least > limit
        plan(SIZES, WANTED, least, RUNTIME)  # what the message names is kept
        with pytest.raises(UserError):
            plan(SIZES, WANTED, least - 2 * 10**6, RUNTIME)
        return
    assert cost.total <= limit
    better, _ = plan(SIZES, WANTED, limit + 50_000_000, RUNTIME)
    assert better.worth >= choice.worth


def test_what_the_user_fixed_is_kept():
    wanted = Wanted(8, 256, "lion", 2, microbatch=2, gradient_checkpointing="full", state_bits=8)
    choice, _ = plan(SIZES, wanted, 4_000_000_000, RUNTIME)
    assert choice == Choice(2, 256, "full", "lion", 8, 2)


def test_each_measure_saves():
    def total(**changes) -> int:
        settings = {"microbatch": 4, "context": 256, **changes}
        return estimate(SIZES, Choice(**settings), RUNTIME).total

    modes = [total(gradient_checkpointing=mode) for mode in CHECKPOINTING_SPEED]
    assert modes == sorted(modes, reverse=True)
    assert total() > total(microbatch=2) > total(microbatch=1)
    assert total() > total(state_bits=8) > total(state_bits=4)
    assert total(low_bytes=4) > total()
    assert total(optimizer="adamw") > total()
    assert total() > total(weight_bits=8) > total(weight_bits=4)


@linux
@compiled
@pytest.mark.parametrize(
    ("preset", "context", "microbatch", "mode", "optimizer", "bits"),
    [
        ("i3-mini", 128, 4, "none", "muon", 32),
        ("i3-small", 128, 2, "selective", "lion", 8),
        ("i3-12m", 128, 1, "full", "adamw", 4),
        ("i3-mini", 2048, 1, "full", "muon", 32),  # attention's room is large
    ],
)
@pytest.mark.parametrize("without_torch", [False, True])
def test_estimates_are_within_a_tenth(
    tmp_path, preset, context, microbatch, mode, optimizer, bits, without_torch
):
    """In a process of its own; the whole grid is `make bench-memory`."""
    if without_torch and not multiplies_bfloat16():
        pytest.skip("no kernels for AVX512-BF16, or no processor with it")
    root = Path(__file__).parents[1]
    code = (
        "import sys; from pathlib import Path; from benchmarks.train import synthetic_corpus; "
        "synthetic_corpus(sys.argv[1], Path(sys.argv[2]))"
    )
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    subprocess.run([sys.executable, "-c", code, preset, str(corpus)], cwd=root, check=True)
    row = json.dumps({
        "preset": preset, "context": context, "microbatch": microbatch, "corpus": str(corpus),
        "gradient_checkpointing": mode, "optimizer": [optimizer, bits],
    })  # fmt: skip
    found = in_child("memory", "--one", row, without_torch=without_torch)
    assert 0.9 < found["predicted_bytes"] / found["peak_bytes"] < 1.1


def run(*arguments: str):
    return CliRunner().invoke(group, list(arguments))


def test_sizes_that_no_whole_layer_takes_keep_what_is_wide():
    odd = dataclasses.replace(SIZES, rank=60)
    for sizes, saves in ((SIZES, False), (odd, True)):
        none, selective = (
            estimate(sizes, Choice(4, 256, mode), RUNTIME).activations
            for mode in ("none", "selective")
        )
        assert (selective < 0.8 * none) == saves


@pytest.mark.parametrize("change", [{"kernels": False}, {"context": 250}])
def test_where_our_products_do_not_run_torchs_are_counted(change):
    ours, torchs = (
        estimate(SIZES, Choice(**{"microbatch": 4, "context": 256, **more}), RUNTIME)
        for more in ({}, change)
    )
    assert torchs.activations > 1.3 * ours.activations
    assert torchs.total > ours.total


def test_plan_prints_what_goes_where():
    result = run("plan", "--preset", "i3-mini", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    parts = {k: v for k, v in told["memory"].items() if k != "total"}
    assert sum(parts.values()) == told["memory"]["total"]
    assert told["choice"]["gradient_checkpointing"] == "none"
    assert "total" in run("plan", "--preset", "i3-mini", "--memory", "2GB").output


def test_plan_multiplies_as_the_run_does(monkeypatch):
    """Without torch a run multiplies bfloat16, whatever a trial would say."""
    monkeypatch.setattr(
        "i3lm.bare.without_torch", lambda config: dataclasses.replace(config, precision="bf16")
    )
    monkeypatch.setattr("i3lm.training.hardware.products_per_second", lambda *dtypes: (1.0, 1.0))
    result = run("plan", "--preset", "i3-mini", "--json")
    assert json.loads(result.output)["choice"]["precision"] == "bf16"


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("50MB", "the least that can be kept"),
        ("lots", "is no size"),
        ("-3GB", "is no size"),
        ("9000000GB", "more than this machine has"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(tmp_path, memory, words):
    text = tmp_path / "text.txt"
    text.write_text("one two three four five\n" * 400)
    result = subprocess.run(
        [sys.executable, "-m", "i3lm", "train", "--preset", "i3-mini", "--data", str(text),
         "--out", str(tmp_path / "run"), "--steps", "1", "--context", "64", "--memory", memory],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@linux
def test_the_limit_that_a_refusal_names_is_kept(tmp_path):
    """Named before the text is read, though the built-in one leaves more than any other."""
    line = [sys.executable, "-m", "i3lm", "train", "--preset", "i3-mini", "--steps", "2", "--json"]
    line += ["--quiet", "--context", "64", "--out", str(tmp_path / "run"), "--memory"]
    refused = subprocess.run([*line, "1MB"], capture_output=True, text=True)
    assert refused.returncode == 2
    (named,) = re.findall(r"the least that can be kept is --memory (\d+)MB", refused.stderr)
    done = subprocess.run([*line, f"{named}MB"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_memory_bytes"] <= int(named) * 10**6


def test_a_text_that_took_more_than_the_limit_is_refused(monkeypatch):
    config = TrainConfig(preset="i3-mini", memory=600_000_000)
    monkeypatch.setattr(planning, "resident_bytes", lambda: (100_000_000, 700_000_000))
    planning.plan_run(config, config.architecture())
    with pytest.raises(UserError, match="took 700 MB; name --memory 704MB"):
        planning.plan_run(config, config.architecture(), read=True)


@linux
def test_a_run_that_takes_more_than_its_limit_gives_up_speed_and_then_stops(tmp_path):
    """The limit is lowered under a trainer's feet, as no honest plan would set it."""
    import torch
    from benchmarks.train import synthetic_corpus

    from i3lm.model.network import I3Network
    from i3lm.training.loop import Trainer

    corpus = synthetic_corpus("i3-mini", tmp_path)
    config = TrainConfig(out=str(tmp_path), preset="i3-mini", steps=9, context=32, batch_tokens=64)
    config = TrainConfig(**{**vars(config), "memory": 1, "microbatch": 2})
    network = I3Network(config.architecture(len(corpus.tokenizer)))
    trainer = Trainer(config, corpus, network, "fp32", torch.device("cpu"))
    assert trainer.microbatch == 2
    trainer.step(0.0)
    assert "returns freed memory" in trainer.keep_memory()
    assert trainer.keep_memory() is None  # the same peak is answered once
    for words in ("microbatch of 1", "full gradient checkpointing", None):
        trainer._peak = 0
        if words:
            assert words in trainer.keep_memory()
        else:
            with pytest.raises(UserError, match="--resume"):
                trainer.keep_memory()
    assert list((tmp_path / "checkpoints").iterdir())
    trainer.close()


@pytest.mark.parametrize("flag", ["--state-bits", "--weight-bits"])
def test_other_bits_are_refused_at_resuming_and_the_run_stays_as_it_is(tmp_path, flag):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("one two three four five\n" * 400)
    start = ["--preset", "i3-tiny", "--data", str(text), "--out", str(out), "--context", "32"]
    assert run("train", *start, "--steps", "1", "--state-bits", "8", "--quiet").exit_code == 0
    before = (out / "run.json").read_bytes()
    result = run("train", "--resume", str(out), "--steps", "2", flag, "4", "--quiet")
    assert isinstance(result.exception, UserError | SystemExit)
    assert flag in f"{result.exception}{result.output}"
    assert (out / "run.json").read_bytes() == before
    again = run("train", "--resume", str(out), "--steps", "2", "--quiet")
    assert again.exit_code == 0, again.output


def test_every_preset_has_a_plan():
    for preset in PRESETS.values():
        sizes = preset.architecture
        wanted = Wanted(4, sizes.max_position_embeddings, "muon", 4)
        choice, cost = plan(sizes, wanted, 1 << 40, RUNTIME)
        assert choice.gradient_checkpointing == "none"
        assert cost.total > RUNTIME
