"""Lines in compiled code, and several threads: the same token files in every way."""

import json
import os
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_helpers import VOCAB, lines_file, stories, wild

from i3lm.data import holdout as holdout_module
from i3lm.data import passes
from i3lm.data.packing import prepare
from i3lm.data.sources import open_source
from i3lm.errors import UserError
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter

FILES = ("train.bin", "held_out.bin", "manifest.json", "tokenizer.json")
turn = st.one_of(
    st.sampled_from(
        ["hello there", "naïve café", "日本語", "a < b", "[x]", "say <eos>", "é", "\u3000x"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), min_size=1, max_size=30),
)
rough = st.sampled_from([" ", " ", "", "  ", "\t", "\u00a0"])


@st.composite
def conversation_lines(draw) -> str:
    """A conversation, in four of five cases written as the compiled code takes it."""
    joint = draw(st.sampled_from([st.just(" ")] * 4 + [rough]))
    parts = []
    for tag in ["[INST]", "[/INST]"] * draw(st.integers(1, 3)):
        content = draw(turn.map(str.strip).filter(lambda text: text and "INST]" not in text))
        parts += [tag, draw(joint), content * draw(st.sampled_from([1, 1, 1, 9])), draw(joint)]
    return "".join(parts[:-1])


blank = st.sampled_from(["", " ", "\t", "\u00a0\u2003"])


def same_in_every_way(folder: Path, source: Path, **options) -> None:
    """Compare the token files of both ways through the data, and of several threads."""
    made = {}
    for name, threads, lines in (("python", 1, False), ("one", 1, True), ("three", 3, True)):
        with pytest.MonkeyPatch.context() as patch:
            if not lines:
                patch.setattr(VocabularyCounter, "takes_lines", False)
                patch.setattr(ChunkTokenizer, "takes_lines", False)
            prepare(
                open_source(source, **options), folder / name, vocab_size=VOCAB, threads=threads
            )
        made[name] = [(folder / name / file).read_bytes() for file in FILES]
    assert made["one"] == made["python"]
    assert made["three"] == made["python"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(conversation_lines(), blank), min_size=1, max_size=30),
    st.sampled_from(["\n", "\r\n"]),
)
def test_conversations_give_the_same_tokens_in_every_way(tmp_path_factory, lines, end):
    folder = tmp_path_factory.mktemp("same")
    first = ["[INST] hello [/INST] hi", "[INST] who are you? [/INST] a model"]
    (folder / "text.txt").write_text(end.join(first + lines), encoding="utf-8", newline="")
    same_in_every_way(folder, folder / "text.txt")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(wild, blank, st.just("again")), min_size=2, max_size=40))
def test_lines_give_the_same_tokens_in_every_way(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("same")
    text = "\n".join(["one", "two", *lines]).replace("\0", "")
    (folder / "text.txt").write_text(text, encoding="utf-8", newline="")
    same_in_every_way(folder, folder / "text.txt", documents="line")


def test_many_blocks_give_the_same_tokens_in_every_way(tmp_path, monkeypatch):
    monkeypatch.setattr("i3lm.data.documents._BLOCK", 4_000)
    monkeypatch.setattr(holdout_module, "MOST_DOCUMENTS", 20)
    lines = [
        f"[INST] {text} [/INST] yes,{' ' * (n % 50 == 0)} {n}"
        for n, text in enumerate(stories(1_500))
    ]
    path = lines_file(tmp_path / "a.txt", [*lines, "", *lines[:40]])
    same_in_every_way(tmp_path, path)
    assert json.loads((tmp_path / "one" / "manifest.json").read_text())["skipped"]["empty"] == 1


@pytest.mark.parametrize(
    "line",
    ["[INST] alone", "[INST] a [/INST] b [INST] c", "[/INST] a [INST] b", "[INST] a [/INST]"],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path, monkeypatch, line):
    monkeypatch.setattr(holdout_module, "MOST_DOCUMENTS", 5)
    good = [f"[INST] {text} [/INST] {n}" for n, text in enumerate(stories(200))]
    path = lines_file(tmp_path / "a.txt", [*good, line])
    for threads in (1, 2):
        with pytest.raises(UserError, match=r"a.txt:201: not a conversation"):
            prepare(open_source(path), tmp_path / "c", vocab_size=VOCAB, threads=threads)


def test_memory_of_threads_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("i3lm.data.documents._BLOCK", 2_000)
    alive = most = 0
    real = passes.ScannedLines.scan.__func__

    def scan(cls, *arguments):
        nonlocal alive, most
        scanned = real(cls, *arguments)
        alive += 1
        most = max(most, alive)
        weakref.finalize(scanned, gone)
        return scanned

    def gone():
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(passes.ScannedLines, "scan", classmethod(scan))
    path = lines_file(tmp_path / "a.txt", stories(2_000))
    prepare(open_source(path), tmp_path / "c", vocab_size=VOCAB, threads=2)
    assert 0 < most <= 12


def test_threads_flush_on_the_way(tmp_path, corpus_file, monkeypatch):
    """With threads the device is waited for as the files grow; the files are the same."""
    real, flushed = os.fsync, []

    def fsync(handle):
        flushed.append(handle)
        real(handle)

    monkeypatch.setattr("i3lm.data.passes.os.fsync", fsync)
    monkeypatch.setattr("i3lm.data.passes._SYNCED", 1)
    counts, files = [], []
    for threads in (1, 2):
        flushed.clear()
        folder = tmp_path / f"c{threads}"
        prepare(open_source(corpus_file), folder, vocab_size=VOCAB, threads=threads)
        counts.append(len(flushed))
        files.append([(folder / f"{split}.bin").read_bytes() for split in ("train", "held_out")])
    assert counts[1] > counts[0]
    assert files[0] == files[1]
