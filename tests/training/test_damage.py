"""Bits that flip and files that are cut: found, and said, in 1,000 cases; sources that change."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from test_every_instant import Model

from i3lm.data import Corpus, open_source, prepare
from i3lm.errors import UserError
from i3lm.training.checkpoint import list_checkpoints, load_newest
from i3lm.training.config import TrainConfig


def damaged(good: bytes, chance: random.Random) -> bytes:
    """Flip a bit, or cut the end off."""
    at = chance.randrange(len(good))
    if chance.random() < 0.25:
        return good[:at]
    return good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :]


def means_the_same(bad: bytes, good: bytes) -> bool:
    """Whether JSON says what it did: a flip may change a space to another one."""
    try:
        return json.loads(bad) == json.loads(good)
    except (ValueError, RecursionError):
        return False


def test_500_damaged_checkpoints(tmp_path):
    """The older one is loaded, and a sentence names the damaged one."""
    model, chance = Model(), random.Random(0)
    for step in (1, 2):
        model.save(tmp_path, step)
    files = sorted(list_checkpoints(tmp_path)[0].iterdir())
    assert len(files) == 3
    for case in range(500):
        path = files[case % 3]
        good = path.read_bytes()
        bad = damaged(good, chance)
        path.write_bytes(bad)
        model.at(99)
        counters, notes = load_newest(tmp_path, model.network, model.optimizer)
        sound = path.suffix == ".json" and means_the_same(bad, good)
        assert counters.step == (2 if sound else 1)
        model.require(counters.step)
        if not sound:
            assert [n.startswith("step-00000002 is damaged and was passed over") for n in notes]
        path.write_bytes(good)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, text_file) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "c"
    prepare(open_source(text_file), folder, vocab_size=400, threads=1)
    return folder


@pytest.mark.parametrize("name", ["train.bin", "held_out.bin", "manifest.json", "tokenizer.json"])
def test_100_damages_of_each_file_of_a_corpus(corpus, text_file, name):
    """Found before a token of it is trained on; the message names the folder and the way out."""
    path, chance = corpus / name, random.Random(name)
    good, whole = path.read_bytes(), Corpus.open(corpus)
    for _ in range(100):
        bad = damaged(good, chance)
        path.write_bytes(bad)
        try:
            found = prepare(open_source(text_file), corpus, vocab_size=400, threads=1)
        except UserError as error:
            assert str(corpus) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert means_the_same(bad, good)
            assert (found.manifest, found.tokenizer.tokens) == (
                whole.manifest,
                whole.tokenizer.tokens,
            )
        path.write_bytes(good)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"tokens": 3, "sha256": "0"}}, r"train\.bin is missing or not 6 bytes"),
        ({"train": {}}, "not one of ours"),
        ({"held_out": None}, "not one of ours"),
        ({"tokenizer": "0"}, "its tokenizer is another"),
    ],
)
def test_a_forged_manifest_still_tells_of_other_files(corpus, changes, message):
    """Its checksum is right; the fuzzer learnt to compute it."""
    from i3lm.data.packing import _write_manifest

    path = corpus / "manifest.json"
    good = path.read_bytes()
    manifest = json.loads(good)
    del manifest["check"]
    _write_manifest(corpus, {**manifest, **changes})
    with pytest.raises(UserError, match=message):
        Corpus.open(corpus, verify=True)
    path.write_bytes(good)


def test_100_damages_of_a_configuration(tmp_path):
    config, chance = TrainConfig(preset="i3-mini", lr=0.02, steps=500), random.Random(1)
    good, path = config.to_json().encode(), tmp_path / "run.json"
    for _ in range(100):
        path.write_bytes(bad := damaged(good, chance))
        try:
            assert TrainConfig.load(tmp_path) == config
            assert means_the_same(bad, good)
        except UserError as error:
            assert "run.json is damaged" in str(error)  # noqa: PT017


def test_a_damaged_checkpoint_never_pushes_out_a_sound_one(tmp_path):
    """It is set aside, so that the two that are kept are sound."""
    from i3lm.training.checkpoint import Counters, save_checkpoint, set_aside

    model = Model()
    for step in (1, 2):
        model.save(tmp_path, step)
    newest = list_checkpoints(tmp_path)[0]
    os.truncate(newest / "model.safetensors", 100)
    assert load_newest(tmp_path, model.network, model.optimizer)[0].step == 1
    set_aside(tmp_path, 1)
    save_checkpoint(tmp_path, model.at(3).network, model.optimizer, Counters(step=3))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000001"]
    assert (tmp_path / "checkpoints" / ".damaged-step-00000002").exists()


@pytest.mark.parametrize("kind", ["link", "renamed", "linked file", "escape"])
def test_checkpoints_that_are_not_what_they_are_called(tmp_path, kind):
    """Links, another step's name, file names with `..`: passed over."""
    model = Model()
    for step in (1, 2):
        model.save(tmp_path, step)
    newest, older = list_checkpoints(tmp_path)
    if kind == "link":
        newest.rename(tmp_path / "elsewhere")
        newest.symlink_to(tmp_path / "elsewhere")
    elif kind == "renamed":
        shutil.rmtree(newest)
        shutil.copytree(older, newest)
    elif kind == "linked file":
        (newest / "model.safetensors").rename(tmp_path / "weights")
        (newest / "model.safetensors").symlink_to(tmp_path / "weights")
    else:
        manifest = json.loads((newest / "trainer.json").read_text())
        manifest["sha256"] = {"../../model.safetensors": manifest["sha256"]["model.safetensors"]}
        (newest / "trainer.json").write_text(json.dumps(manifest))
    counters, notes = load_newest(tmp_path, model.network, model.optimizer)
    assert counters.step == 1
    assert len(notes) == 1


def edit(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("Anna", "Anne"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 3)


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text("Nothing of this was here before.\n" * 300)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [edit, truncate, replace, Path.unlink])
@pytest.mark.parametrize("stage", ["reading", "tokenizing"])
def test_a_source_that_changes_while_it_is_packed(tmp_path, text_file, change, stage):
    """Its name is said, that of the one file of several, and no corpus is made."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        shutil.copy(text_file, folder / name)
    changed = folder / "b.txt"

    def progress(now, share):
        if now == stage and share > 0 and changed.exists() and not done:
            done.append(change(changed))

    done: list = []
    with pytest.raises(UserError, match=r"b\.txt: changed while it was read"):
        prepare(open_source(folder), tmp_path / "c", vocab_size=400, threads=1, progress=progress)
    assert not list(tmp_path.glob("c/*.bin")) + list(tmp_path.glob("c/manifest.json"))


@pytest.mark.parametrize("change", [edit, truncate, replace])
def test_a_source_that_changes_after_it_was_packed(tmp_path, text_file, change):
    path = Path(shutil.copy(text_file, tmp_path / "talk.txt"))
    prepare(open_source(path), tmp_path / "c", vocab_size=400, threads=1)
    change(path)
    with pytest.raises(UserError, match=r"talk\.txt has changed since the folder was prepared"):
        prepare(open_source(path), tmp_path / "c", vocab_size=400, threads=1)


def test_the_system_clock_plays_no_part(small_config, monkeypatch):
    """It jumps by days, both ways, at every look; the time budget is kept."""
    import time

    from i3lm.training.run import train

    days = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + 86_400 * (-3) ** (next(days) % 9))
    result = train(small_config(steps=None, time=1.5))
    assert 1.5 <= 60 * result.figures["minutes"] < 3600


def test_a_corrupt_batch_is_located(small_config, monkeypatch):
    """Token ids beyond the vocabulary, as bad memory makes them, never reach the weights unseen."""
    from i3lm.data.loader import Loader
    from i3lm.training.run import train

    real = Loader.windows

    def windows(loader, first, count):
        inputs, targets = real(loader, first, count)
        if first >= 12:
            inputs[0, 3] = 65_000
        return inputs, targets

    monkeypatch.setattr(Loader, "windows", windows)
    with pytest.raises(UserError, match="sample 12"):
        train(small_config(steps=6))
