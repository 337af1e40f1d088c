"""From documents to token files: nothing lost, and nothing taken for what it is not."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing_helpers import INST, VOCAB, decoded, divide, of, stories, talk, wild

from i3lm.data.documents import Document
from i3lm.data.packing import prepare
from i3lm.data.sources import open_source
from i3lm.errors import UserError
from i3lm.tokenizer import VocabularyCounter


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


def test_a_corpus_shorter_than_the_context(tmp_path):
    corpus = prepare(of(*stories(20)), tmp_path / "c", vocab_size=VOCAB)
    corpus.require(len(corpus.train) - 1)
    with pytest.raises(UserError, match="training tokens are too few for a context of"):
        corpus.require(len(corpus.train))


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
