"""What is held out: no text on both sides, whatever the order, and never too much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packing_helpers import VOCAB, decoded, of, stories, talk, wild

from i3lm.data import holdout as holdout_module
from i3lm.data.documents import Document
from i3lm.data.holdout import Holdout
from i3lm.data.packing import prepare
from i3lm.data.sources import open_source
from i3lm.errors import UserError


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


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_share_out_of_range(tmp_path, share):
    with pytest.raises(UserError, match="not between 0 and 1"):
        prepare(of("a", "b"), tmp_path, held_out=share)
