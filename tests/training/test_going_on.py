"""What a run needs to go on, what it keeps, and what it says."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from run_helpers import weights

import i3lm
from i3lm.data.packing import _write_manifest
from i3lm.errors import UserError
from i3lm.model.card_i3 import model_card
from i3lm.training.config import Every, TrainConfig
from i3lm.training.metrics import read_metrics
from i3lm.training.run import train
from i3lm.training.settings import configure
from i3lm.units import format_duration


def notes_of(config: TrainConfig) -> list[str]:
    notes: list[str] = []
    train(
        config,
        resume=True,
        listener=lambda event, row: notes.append(row["text"]) if event == "note" else None,
    )
    return notes


@pytest.fixture(scope="module")
def begun(tmp_path_factory, text_file):
    """A run of two texts that has ended, and those texts."""
    folder = tmp_path_factory.mktemp("begun")
    texts = [Path(shutil.copy(text_file, folder / name)) for name in ("a.txt", "b.txt")]
    config = TrainConfig(
        data=tuple(map(str, texts)), out=str(folder / "run"), preset="i3-tiny", vocab_size=400,
        context=32, batch_tokens=128, steps=2, threads=1, precision="fp32",
    )  # fmt: skip
    train(config)
    return config


@pytest.fixture
def another(begun, tmp_path):
    """The same, to be spoiled; changes are given as to a resumed run."""
    folder = tmp_path / "copy"
    shutil.copytree(Path(begun.out).parent, folder)
    old, new = str(Path(begun.out).parent), str(folder)
    for path in (folder / "run").rglob("manifest.json"):
        manifest = json.loads(path.read_text().replace(old, new))
        manifest.pop("check")
        _write_manifest(path.parent, manifest)
    data = tuple(name.replace(old, new) for name in begun.data)
    kept = dataclasses.replace(begun, out=str(folder / "run"), data=data)
    (folder / "run" / "run.json").write_text(kept.to_json())
    return lambda **changes: dataclasses.replace(kept, **{"steps": 3, **changes})


def test_a_run_goes_on_without_its_text(another):
    for name in another().data:
        Path(name).unlink()
    told = notes_of(another())
    assert any("a.txt and 1 more files are gone" in note and "--data" in note for note in told)
    assert weights(Path(another().out))
    bins = Path(another().out) / "data" / "train.bin"
    data = bytearray(bins.read_bytes())
    data[9] ^= 1
    bins.write_bytes(data)
    with pytest.raises(UserError, match=r"contents of train\.bin have changed"):
        train(another(steps=4), resume=True)


def test_where_one_of_two_texts_is_gone_the_other_must_be_as_it_was(another):
    first, second = map(Path, another().data)
    second.unlink()
    assert any(f"{second} is gone" in note for note in notes_of(another()))
    first.write_text(first.read_text().replace("Anna", "Anne"))
    with pytest.raises(UserError, match=r"a\.txt has changed.*--data.*another --out"):
        train(another(steps=4), resume=True)


def test_a_text_that_was_moved_can_be_named(another, tmp_path):
    moved = tuple(str(tmp_path / f"moved{i}.txt") for i in range(2))
    for old, new in zip(another().data, moved, strict=True):
        shutil.move(old, new)
    assert notes_of(another(data=moved)) == []
    with pytest.raises(UserError, match="keeps its text"):
        train(another(data=moved[:1], steps=4), resume=True)
    with pytest.raises(UserError, match="no such file"):
        train(another(data=("other.txt",), steps=4), resume=True)


@pytest.mark.parametrize(
    "change",
    [
        {"preset": "i3-mini"}, {"vocab_size": 500}, {"context": 64}, {"lowercase": True},
        {"documents": "file"}, {"optimizer": "lion"}, {"weight_bits": 8}, {"qat_bits": 4},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_a_run_keeps(begun, change):
    before = (Path(begun.out) / "run.json").read_bytes()
    option = f"--{next(iter(change)).replace('_', '-')}"
    with pytest.raises(UserError, match=rf"^{option} .*leave {option} away.*--out") as refused:
        train(dataclasses.replace(begun, steps=3, **change), resume=True)
    assert "\n" not in str(refused.value)
    assert "delete" not in str(refused.value)
    assert (Path(begun.out) / "run.json").read_bytes() == before


def test_another_precision_is_converted_and_said(another):
    told = notes_of(another(precision="bf16"))
    assert any("in bf16, before in fp32" in note for note in told)
    assert TrainConfig.load(Path(another().out)).precision == "bf16"


def test_a_budget_that_is_spent_is_said(begun):
    assert any(note.startswith("the run has had 2 steps") for note in notes_of(begun))


# ---- what is too much, what is of the wrong type


def test_more_than_the_machine_or_the_text_has(small_config, monkeypatch):
    from i3lm.training import planning

    def refused(**changes) -> str:
        with pytest.raises(UserError) as caught:
            train(small_config(**changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert f"{os.cpu_count()} cores" in refused(threads=99_999)
    told = refused(batch_tokens=1_000_000_000)
    assert re.search(r"there is to train on, [\d,]+ tokens", told)
    assert "--context 1,000,000,000" in refused(context=1_000_000_000)
    monkeypatch.setattr(planning, "SURE_SECONDS", 0.0)
    slow = {"batch_tokens": 8192, "steps": None, "time": 0.05}
    told = refused(**slow)
    assert "a step would take about" in told
    assert "--time" in told
    least = int(re.search(r"name ([\d,]+) or fewer", told)[1].replace(",", ""))
    assert least < 8192
    # Nothing of it stands in the way of the next try.
    assert train(small_config(steps=1)).figures["steps"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "10"), ("steps", 2.5), ("lr", "fast"), ("batch_tokens", [1]), ("seed", "x"),
        ("lowercase", "yes"), ("lowercase", 1), ("preset", 3), ("precision", 32), ("threads", True),
        ("data", 7), ("data", [3]), ("out", 9), ("time", [1]), ("memory", 1.5), ("documents", 4),
        ("eval_every", [2]), ("eval_every", True), ("time", float("nan")), ("time", float("inf")),
    ],
)  # fmt: skip
def test_settings_of_a_wrong_type_are_one_line(tmp_path, name, value):
    with pytest.raises(UserError, match=name) as caught:
        i3lm.train(**{"out": tmp_path / "run", name: value})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_settings_of_a_right_type_pass(tmp_path):
    settings = configure(
        out=tmp_path, data=[tmp_path, "x.txt"], steps=3, lr=1, time=90, clip=1, eval_every="2m"
    )
    assert settings.data == (str(tmp_path), "x.txt")
    assert (settings.lr, settings.time, settings.eval_every) == (1, 90, Every(seconds=120.0))


# ---- lines that are none


def test_bad_lines_are_left_out_where_this_is_asked_and_counted(small_config, tmp_path, text_file):
    bad = tmp_path / "bad.txt"
    lines = text_file.read_text().splitlines()
    bad.write_text("\n".join([*lines[:50], "[INST] no reply", *lines[50:], "nonsense", ""]))
    with pytest.raises(UserError, match=r"bad\.txt:51: .* reply.* missing.*--skip-bad-lines"):
        train(small_config(data=(str(bad),)))
    notes: list[str] = []
    run = train(
        small_config(data=(str(bad),), skip_bad_lines=True, steps=1),
        listener=lambda event, row: notes.append(row["text"]) if event == "note" else None,
    ).folder
    assert [note for note in notes if note.startswith("2 lines or rows")]
    whole = train(small_config(out=str(tmp_path / "whole"), steps=1)).folder
    for name in ("train.bin", "held_out.bin"):
        assert (run / "data" / name).read_bytes() == (whole / "data" / name).read_bytes()


# ---- what the report says


def report(run: str) -> str:
    return (Path(run) / "report.html").read_text(encoding="utf-8")


def test_a_run_that_breaks_off_says_so_until_it_goes_on(small_config):
    def listener(event, row):
        if event == "step" and row["step"] == 3:
            assert "running when this was written" in report(config.out)
            raise RuntimeError("a <defect>")

    config = small_config(steps=4, eval_every=Every(steps=1), checkpoint_every=Every(steps=1))
    with pytest.raises(RuntimeError):
        train(config, listener=listener)
    page = report(config.out)
    assert "ended without finishing: a &lt;defect&gt;" in page
    assert "running" not in page.partition("<main>")[0].rpartition("<header>")[2]
    assert '"live":false' in page
    train(TrainConfig.load(Path(config.out)), resume=True)
    assert "finished" in report(config.out)
    assert "ended without" not in report(config.out)


def test_a_budget_that_was_lowered_is_not_called_spent_to_the_percent(small_config):
    config = small_config(steps=None, time=1.0)
    train(config)
    lowered = dataclasses.replace(TrainConfig.load(Path(config.out)), time=0.2)
    train(lowered, resume=True)
    had = format_duration(read_metrics(Path(config.out) / "metrics.jsonl")[-1]["seconds"])
    page = report(config.out)
    assert "100% of" not in page
    assert f"has had {had}; asked for in the end: 0s" in page
    assert "16,384 tokens" in page  # what the two figures of held-out text are
    assert "65,536" in page


# ---- the card


@pytest.mark.parametrize("built_in", [True, False])
def test_terms_and_language_stand_only_on_the_card_of_built_in_text(begun, built_in):
    card = (Path(begun.out) / "README.md").read_text()
    assert "license:" not in card
    assert "language:" not in card
    assert "in float32 (the curve on the way is of a shorter part)" in card
    figures = {"preset": "i3-tiny", "built_in_text": built_in}
    figures |= dict.fromkeys(("data", "i3lm_version", "optimizer", "precision"), "x")
    figures |= dict.fromkeys(
        ("vocabulary", "steps", "tokens", "epochs", "minutes", "threads", "tokens_per_second"), 1
    )
    figures |= {"peak_memory_bytes": 1, "seed": 1}
    config = json.loads((Path(begun.out) / "config.json").read_text())
    head = model_card(config, 1, figures).split("---")[1]
    assert ("license: apache-2.0\nlanguage: en\n" in head) == built_in


def test_folders_that_are_no_run(tmp_path):
    for folder, what in ((tmp_path, "no run.json"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(
            UserError, match=rf"holds no run \(.*{what}\); name the folder"
        ) as caught:
            i3lm.resume(folder)
        assert "--out" not in str(caught.value)
    with pytest.raises(UserError, match=r"no such folder and no preset.*name a model folder"):
        i3lm.info("nope")


def test_a_run_that_is_found_late_is_left_alone(small_config, monkeypatch):
    """Another run took the folder between the first look at it and the lock."""
    from i3lm.training import run as module

    config = small_config()
    looked = module.check_folder

    def look(run, resume):
        looked(run, resume)
        (run / "run.json").write_text("another's")

    monkeypatch.setattr(module, "check_folder", look)
    with pytest.raises(UserError, match="holds another run"):
        train(config)
    assert (Path(config.out) / "run.json").read_text() == "another's"


def test_a_process_that_is_started_again_with_its_command_keeps_what_was_chosen(small_config):
    """As torchrun does with a failed one, whose command named no preset."""
    config = small_config(steps=2, state_bits=8)
    train(config)
    again = dataclasses.replace(config, preset=None, state_bits=None, steps=3)
    train(again, resume=True)
    kept = TrainConfig.load(Path(config.out))
    assert (kept.preset, kept.state_bits, kept.steps) == ("i3-tiny", 8, 3)
