"""What a run needs to go on, what it keeps, and what it says."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from run_helpers import weights

from i3lm.data.packing import _write_manifest
from i3lm.errors import UserError
from i3lm.training.config import TrainConfig
from i3lm.training.run import train


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
