"""Folders of token files: nothing reused by mistake, nothing left half, damage found."""

import os
from pathlib import Path

import pytest
from packing_helpers import VOCAB, decoded, lines_file, of, stories

from i3lm.data.documents import Document
from i3lm.data.packing import Corpus, prepare
from i3lm.data.sources import Source, open_source
from i3lm.errors import UserError
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter

# Reuse


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.suffix == ".bin"}


def test_reused_when_nothing_changed(tmp_path, corpus_file):
    folder = tmp_path / "c"
    first = prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    built = stamps(folder)
    again = prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    assert stamps(folder) == built
    assert again.manifest == first.manifest
    os.utime(corpus_file, ns=(1, 1))  # another date, same contents
    touched = prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    assert stamps(folder) == built
    assert touched.manifest["files"][0]["mtime_ns"] == 1
    moved = corpus_file.rename(tmp_path / "moved.txt")
    prepare(open_source(moved), folder, vocab_size=VOCAB)
    assert stamps(folder) == built
    assert {p.name for p in folder.iterdir() if p.name.startswith(".")} == set()


def test_same_corpus_same_files(tmp_path, corpus_file):
    for name in "ab":
        prepare(open_source(corpus_file), tmp_path / name, vocab_size=VOCAB)
    for file in ("train.bin", "held_out.bin", "manifest.json", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 300}, "vocab_size 400, not 300"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"held_out": 0.5}, "held_out 0.02, not 0.5"),
        ({"lowercase": True}, "lowercase False, not True"),
        ({"source": {"documents": "file"}}, "documents 'auto', not 'file'"),
    ],
)
def test_refused_when_settings_differ(tmp_path, corpus_file, change, message):
    folder = tmp_path / "c"
    prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    built = stamps(folder)
    source = open_source(corpus_file, **change.pop("source", {}))
    options = {"vocab_size": VOCAB, **change}
    with pytest.raises(UserError, match=f"prepared with {message}; delete the folder"):
        prepare(source, folder, **options)
    assert stamps(folder) == built
    corpus = prepare(source, folder, rebuild=True, **options)
    assert stamps(folder) != built
    assert corpus.manifest["settings"].items() >= change.items()


def test_refused_when_files_changed(tmp_path, corpus_file):
    folder = tmp_path / "c"
    prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    size = corpus_file.stat().st_size
    corpus_file.write_bytes(corpus_file.read_bytes()[:-2] + b"!\n")
    assert corpus_file.stat().st_size == size
    with pytest.raises(UserError, match=r"stories.txt has changed since the folder was prepared; "):
        prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    other = lines_file(tmp_path / "other.txt", stories(20))
    with pytest.raises(UserError, match=r"other.txt is not .*stories.txt since"):
        prepare(open_source(other), folder, vocab_size=VOCAB)
    with pytest.raises(UserError, match="was prepared from 1 files, not 2"):
        prepare(open_source([corpus_file, other]), folder, vocab_size=VOCAB)
    with pytest.raises(UserError, match=r"was prepared from .*stories.txt; delete the folder"):
        prepare(of(*stories(4)), folder, vocab_size=VOCAB)


def test_given_tokenizer_is_used_and_told_apart(tmp_path, corpus_file):
    counter = VocabularyCounter()
    counter.update("the cat sat on a mat")
    tokenizer = ChunkTokenizer(counter.build(VOCAB))
    folder = tmp_path / "c"
    corpus = prepare(open_source(corpus_file), folder, tokenizer=tokenizer)
    assert corpus.tokenizer.fingerprint == tokenizer.fingerprint
    assert sorted(decoded(corpus, "train") + decoded(corpus, "held_out")) == sorted(stories(300))
    prepare(open_source(corpus_file), folder, tokenizer=tokenizer)
    with pytest.raises(UserError, match="was prepared with vocab_size None, not 4466"):
        prepare(open_source(corpus_file), folder)


# Broken folders


def test_interrupted_build_is_no_corpus(tmp_path, corpus_file):
    folder = tmp_path / "c"

    def stop(stage, share):
        if stage == "tokenizing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(open_source(corpus_file), folder, vocab_size=VOCAB, progress=stop)
    assert list(folder.iterdir()) == []
    with pytest.raises(UserError, match="no prepared corpus here"):
        Corpus.open(folder)
    assert len(prepare(open_source(corpus_file), folder, vocab_size=VOCAB).train)


def test_failed_rebuild_keeps_the_old_corpus(tmp_path, corpus_file):
    folder = tmp_path / "c"
    old = prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    with open(corpus_file, "ab") as file:
        file.write(b"bad \xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        prepare(open_source(corpus_file), folder, vocab_size=VOCAB, rebuild=True)
    assert Corpus.open(folder, verify=True).manifest == old.manifest


def test_rebuild_that_stops_halfway_is_no_corpus(tmp_path, corpus_file, monkeypatch):
    folder = tmp_path / "c"
    prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    real = os.replace

    def replace(source, target):
        if str(target).endswith("held_out.bin"):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("i3lm.data.packing.os.replace", replace)
        with pytest.raises(KeyboardInterrupt):
            prepare(open_source(corpus_file), folder, vocab_size=300, rebuild=True)
    with pytest.raises(UserError, match="no prepared corpus here"):
        Corpus.open(folder)
    assert len(prepare(open_source(corpus_file), folder, vocab_size=300).tokenizer) <= 300


def test_source_that_changes_while_it_is_read(tmp_path, corpus_file):
    def change(stage, share):
        if stage == "tokenizing" and share == 1.0:
            os.utime(corpus_file, ns=(1, 1))

    with pytest.raises(UserError, match=r"stories.txt: changed while it was read; run it again"):
        prepare(open_source(corpus_file), tmp_path / "c", vocab_size=VOCAB, progress=change)
    for later in (["one two", "three", "four"], ["two one", "eerht"]):
        passes = iter([["one two", "three"], later])
        source = Source("a", {}, lambda advance, p=passes: (Document(t, None, "") for t in next(p)))
        with pytest.raises(UserError, match="changed while it was read"):
            prepare(source, tmp_path / "d", vocab_size=VOCAB)
        assert list((tmp_path / "d").iterdir()) == []


def test_damage_is_found(tmp_path, corpus_file):
    folder = tmp_path / "c"
    prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    assert Corpus.open(folder, verify=True).manifest["format"] == 2
    path = folder / "train.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"train.bin is missing or not .* bytes long; delete"):
        Corpus.open(folder)
    path.write_bytes(whole[:-2] + b"\x07\0")
    Corpus.open(folder)
    with pytest.raises(UserError, match=r"the contents of train.bin have changed"):
        Corpus.open(folder, verify=True)
    path.write_bytes(whole)
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 2', '"format": 99'))
    with pytest.raises(UserError, match="its format is 99, this version reads 2"):
        Corpus.open(folder)
    manifest.write_text(text[:-20])
    with pytest.raises(UserError, match=r"manifest.json cannot be read; delete the folder"):
        prepare(open_source(corpus_file), folder, vocab_size=VOCAB)
    manifest.write_text(text)
    ChunkTokenizer(VocabularyCounter().build(VOCAB)).save(folder)
    with pytest.raises(UserError, match="its tokenizer is another"):
        Corpus.open(folder)


def test_full_disk(tmp_path, corpus_file, monkeypatch):
    def fsync(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("i3lm.data.packing.os.fsync", fsync)
    with pytest.raises(UserError, match="No space left on device"):
        prepare(open_source(corpus_file), tmp_path / "c", vocab_size=VOCAB)
    assert list((tmp_path / "c").iterdir()) == []
