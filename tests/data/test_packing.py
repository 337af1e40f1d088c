"""From documents to token files: nothing lost, nothing on both sides, nothing reused by mistake."""

import json
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i3lm.data import holdout as holdout_module
from i3lm.data import passes
from i3lm.data.documents import Document
from i3lm.data.holdout import Holdout
from i3lm.data.packing import Corpus, prepare
from i3lm.data.sources import Source, open_source
from i3lm.errors import UserError
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter

BOS, EOS, INST = 2, 3, 4
VOCAB = 400


def stories(count: int) -> list[str]:
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "bird", "house"]
    rng = np.random.default_rng(7)
    return [f"Story {n}: " + " ".join(rng.choice(words, 12)) + "." for n in range(count)]


def lines_file(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def of(*documents: str | list) -> Source:
    def read(advance):
        for number, item in enumerate(documents):
            text, messages = (item, None) if isinstance(item, str) else (None, item)
            yield Document(text, messages, f"document {number}")

    return Source("test documents", {"test": len(documents)}, read)


def talk(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


def divide(tokens: np.ndarray) -> list[np.ndarray]:
    """Take a token stream apart at `<bos>` and `<eos>`."""
    ends = np.flatnonzero(tokens == EOS) + 1
    documents = np.split(tokens, ends)[:-1]
    assert ends[-1] == len(tokens)
    assert all(document[0] == BOS and (document == BOS).sum() == 1 for document in documents)
    return documents


def decoded(corpus: Corpus, split: str) -> list[str]:
    return [corpus.tokenizer.decode(ids) for ids in divide(getattr(corpus, split))]


@pytest.fixture
def corpus_file(tmp_path):
    return lines_file(tmp_path / "stories.txt", stories(300))


def test_every_document_comes_back_on_one_side(tmp_path, corpus_file):
    corpus = prepare(open_source(corpus_file), tmp_path / "c", vocab_size=VOCAB, held_out=0.1)
    train, held_out = decoded(corpus, "train"), decoded(corpus, "held_out")
    assert sorted(train + held_out) == sorted(stories(300))
    order = {text: n for n, text in enumerate(stories(300))}
    assert [order[text] for text in train] == sorted(order[text] for text in train)
    characters = sum(len(text) + 1 for text in held_out)
    total = sum(len(text) + 1 for text in stories(300))
    assert 0.09 * total < characters <= 0.1 * total + 1
    assert corpus.held_out_characters == characters
    assert corpus.train.dtype == corpus.held_out.dtype == np.uint16
    assert isinstance(corpus.train, np.memmap)
    assert len(corpus.tokenizer) <= VOCAB
    assert corpus.characters_per_token == (total - characters) / len(corpus.train)


def test_vocabulary_is_counted_over_training_documents_only(tmp_path, corpus_file):
    corpus = prepare(open_source(corpus_file), tmp_path / "c", vocab_size=VOCAB, held_out=0.1)
    counter = VocabularyCounter()
    for text in decoded(corpus, "train"):
        counter.update(text)
    assert corpus.tokenizer.tokens == list(counter.build(VOCAB))


def test_conversations_are_packed_by_the_tokenizers_rule(tmp_path):
    messages = [
        [{"role": "system", "content": "Be kind."}, *talk("hello [INST] <eos>", "hi")],
        *(talk(f"what is {n}?", "a number", "sure?", f"yes, {n}") for n in range(60)),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))
    corpus = prepare(open_source(path), tmp_path / "c", vocab_size=VOCAB)
    held_out = {ids.tobytes() for ids in divide(corpus.held_out)}
    packed = held_out | {ids.tobytes() for ids in divide(corpus.train)}
    expected = {corpus.tokenizer.encode_conversation(m).tobytes(): m for m in messages}
    assert packed == expected.keys()
    forms = [Document(None, expected[ids], "").plain for ids in held_out]
    assert corpus.held_out_characters == sum(len(form) + 1 for form in forms) > 0
    assert corpus.manifest["held_out"]["bytes"] == sum(len(f.encode()) + 1 for f in forms)


def test_tags_in_plain_text_are_no_control_tokens(tmp_path):
    text = "say [INST] and [/INST] and <eos> and <bos>\n"
    path = tmp_path / "a.txt"
    path.write_text(text * 40)
    corpus = prepare(open_source(path), tmp_path / "c", vocab_size=VOCAB)
    assert set(decoded(corpus, "train") + decoded(corpus, "held_out")) == {text[:-1]}
    assert not np.isin(corpus.train, [0, 1, INST, INST + 1]).any()


wild = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(str.strip)


# No deadline: it writes files, and a busy disk is no defect.
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(wild, min_size=2, max_size=12))
def test_any_text_survives_packing(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("wild")
    corpus = prepare(of(*documents), folder, vocab_size=VOCAB)
    train, held_out = decoded(corpus, "train"), decoded(corpus, "held_out")
    assert train
    assert held_out
    pieces = train + held_out
    if len(pieces) == len(documents):
        assert sorted(pieces) == sorted(documents)
    else:  # one document was cut in two
        assert len(pieces) == len(documents) + 1
        assert sorted("".join(pieces)) == sorted("".join(documents))
        assert any(head + held_out[-1] in documents for head in train)


# Lines in compiled code, and several threads

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


# What is held out


def test_the_end_of_a_single_document_is_held_out(tmp_path):
    text = "".join(f"{line}\n\n" for line in stories(100))
    path = tmp_path / "a.txt"
    path.write_text(text)
    corpus = prepare(open_source(path), tmp_path / "c", vocab_size=VOCAB, held_out=0.05)
    (head,), (tail,) = decoded(corpus, "train"), decoded(corpus, "held_out")
    assert head + tail == text
    assert tail.startswith(("Story", "\n"))
    assert 0.025 * len(text) < len(tail) <= 0.05 * len(text) + 1
    assert corpus.held_out_characters == len(tail) + 1


def test_copies_are_on_one_side_and_order_does_not_matter(tmp_path):
    documents = stories(200) * 3
    one = prepare(of(*documents), tmp_path / "a", vocab_size=VOCAB, held_out=0.1)
    two = prepare(of(*documents[::-1]), tmp_path / "b", vocab_size=VOCAB, held_out=0.1)
    train, held_out = decoded(one, "train"), decoded(one, "held_out")
    assert not set(train) & set(held_out)
    assert set(held_out) == set(decoded(two, "held_out"))
    assert len(held_out) == 3 * len(set(held_out))
    assert one.tokenizer.fingerprint == two.tokenizer.fingerprint
    other = prepare(of(*documents), tmp_path / "d", vocab_size=VOCAB, held_out=0.1, seed=1)
    assert set(decoded(other, "held_out")) != set(held_out)


def split_of(documents: list, share: float, seed: int = 0) -> tuple[list[Document], list[Document]]:
    """Return (training, held-out) documents, checking that the plan lists what it does."""
    holdout = Holdout(share, seed)
    for document in of(*documents):
        holdout.add(document)
    plan = holdout.finish("test")
    sides: dict[str, list[Document]] = {"train": [], "held_out": []}
    for place, document in enumerate(of(*documents)):
        for part, side in plan.divide(document, place):
            sides[side].append(part)
    assert plan.documents == len(sides["train"]) + len(sides["held_out"])
    whole = [document.plain for document in of(*documents)]
    for document in plan.held_out:
        whole.remove(document.plain)
    trained = [*whole, *(document.plain for document in plan.heads)]
    assert sorted(d.plain for d in sides["train"]) == sorted(trained)
    return sides["train"], sides["held_out"]


@given(
    st.lists(st.one_of(wild, st.just("same words"), st.just(talk("a b", "c d"))), min_size=1),
    st.floats(0.001, 0.9),
    st.integers(0, 5),
    st.integers(1, 60),
    st.integers(1, 6),
)
def test_holdout_accounts_for_every_document(documents, share, seed, characters, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdout_module, "MOST_CHARACTERS", characters)
        patch.setattr(holdout_module, "MOST_DOCUMENTS", count)
        if len(documents) == 1 and (
            not isinstance(documents[0], str) or len("".join(documents[0].split())) < 2
        ):
            with pytest.raises(UserError, match="cannot be divided"):
                split_of(documents, share, seed)
            return
        train, held_out = split_of(documents, share, seed)
    assert train
    assert held_out
    assert len(held_out) <= count
    longest = max(document.characters for document in train + held_out)
    assert sum(document.characters for document in held_out) <= characters + longest + 1


def test_holdout_limits(monkeypatch):
    documents = stories(400)
    _, held_out = split_of(documents, 0.5)
    assert sum(map(len, documents)) * 0.48 < sum(d.characters for d in held_out)
    monkeypatch.setattr(holdout_module, "MOST_CHARACTERS", 2_000)
    _, fewer = split_of(documents, 0.5)
    assert 1_800 < sum(d.characters for d in fewer) <= 2_000
    assert {d.plain for d in fewer} < {d.plain for d in held_out}
    monkeypatch.setattr(holdout_module, "MOST_DOCUMENTS", 10)
    assert len(split_of(documents, 0.5)[1]) == 10


def test_holdout_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(holdout_module, "MOST_CHARACTERS", 1_000)
    holdout = Holdout(0.5, 0)
    for document in of(*stories(3_000)):
        holdout.add(document)
        assert len(holdout._groups) == len(holdout._heap) < 30
    monkeypatch.setattr(holdout_module, "MOST_DOCUMENTS", 5)
    for document in of(*stories(10)):
        holdout.add(document)
    assert len(holdout._groups) == 5


def test_of_few_documents_the_first_in_hash_order_is_held_out_whole():
    documents = stories(15)
    _, held_out = split_of(documents, 0.02)
    assert len(held_out) == 1
    assert held_out[0].plain in documents
    assert held_out[0].plain in {d.plain for d in split_of(documents, 0.15)[1]}


def test_few_conversations():
    train, held_out = split_of([talk("a", "b"), talk("c", "d"), talk("e", "f")], 0.02)
    assert (len(train), len(held_out)) == (2, 1)
    train, held_out = split_of([talk("a", "b")] * 2, 0.02)
    assert (len(train), len(held_out)) == (1, 1)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "no text in it"),
        (["", " \n"], "no text in it"),
        (["x"], "cannot be divided"),
        ([talk("a", "b")], "cannot be divided"),
    ],
)
def test_too_little_text(tmp_path, documents, message):
    with pytest.raises(UserError, match=f"test documents: .*{message}"):
        prepare(of(*documents), tmp_path / "c")
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_a_corpus_shorter_than_the_context(tmp_path):
    corpus = prepare(of(*stories(20)), tmp_path / "c", vocab_size=VOCAB)
    corpus.require(len(corpus.train) - 1)
    with pytest.raises(UserError, match="training tokens are too few for a context of"):
        corpus.require(len(corpus.train))


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_share_out_of_range(tmp_path, share):
    with pytest.raises(UserError, match="not between 0 and 1"):
        prepare(of("a", "b"), tmp_path, held_out=share)


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


def test_progress_and_skipped(tmp_path, corpus_file):
    with open(corpus_file, "a") as file:
        file.write("\n \n")
    said = []
    source = open_source(corpus_file, documents="line")
    corpus = prepare(source, tmp_path / "c", vocab_size=VOCAB, progress=lambda *a: said.append(a))
    assert corpus.manifest["skipped"] == {"empty": 2, "unfit": 0}
    stages = [stage for stage, _ in said]
    assert stages == sorted(stages)  # reading, then tokenizing
    assert dict(said) == {"reading": 1.0, "tokenizing": 1.0}
    assert all(0 <= share <= 1 for _, share in said)
