"""Text to ids and back: by hand, by the rule, by the compiled kernel, by tokenizer.json."""

import copy
import json
import pickle
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_texts import english, text_and_chunks, tokens_of, wild

from i3lm.errors import UserError
from i3lm.tokenizer import BOS, EOS, SPECIAL_TOKENS, ChunkTokenizer, files, kernel, rule

needs_kernel = pytest.mark.skipif(kernel.library() is None, reason="kernels are not built")


def pieces(text, chunks):
    """What the rule makes of `text`, as strings."""
    tokens = tokens_of(chunks)
    ids = rule.encode(text, {chunk: 262 + i for i, chunk in enumerate(chunks)})
    return [tokens[i] for i in ids]


EVERYTHING = ["the", "xyz", "xy", "zt", "th", "he", "e", "x", " xy", "z", " ", "z "]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("the", ["the"]),  # a common trigram
        ("xyz", ["xy", "z"]),  # no trigram, no space
        ("xyz ", ["xyz", " "]),  # ends right before a space
        (" xyz", [" ", "xyz"]),  # " xy" stands after nothing and before "z"
        ("xyzthe", ["xy", "zt", "he"]),
        ("x", ["x"]),
        ("e\n", ["e", "<0x0A>"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("x😀x", ["x", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "x"]),
        ("  xy", [" ", " xy"]),  # after a space
    ],
)
def test_the_rule_by_hand(text, expected):
    assert pieces(text, [c for c in EVERYTHING if c != "z "]) == expected


def test_a_chunk_out_of_the_vocabulary_falls_back_to_shorter_ones():
    assert pieces("the", ["th", "e"]) == ["th", "e"]
    assert pieces("the", ["t", "he"]) == ["t", "he"]
    assert pieces("the", ["the", "th", "e"]) == ["the"]
    assert pieces("abc", ["abc", "ab", "c"]) == ["ab", "c"]
    assert pieces("a\nb ", ["a\nb"]) == ["a\nb", "<0x20>"]


def test_unlimited_chunks_by_hand():
    assert list(rule.chunks("the cat")) == ["the", " c", "at"]
    assert list(rule.chunks("sit down")) == ["sit", " d", "ow", "n"]
    assert list(rule.chunks("a bcd")) == ["a ", "bcd"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3))
def test_packed_chunks_come_back(chunk):
    assert rule.unpack(rule.pack(chunk)) == chunk


@given(st.lists(st.text(min_size=1, max_size=3)))
def test_packed_chunks_sort_as_strings_do(chunks):
    assert sorted(chunks) == sorted(chunks, key=rule.pack)


@needs_kernel
@given(text_and_chunks())
@example(("a\0b", ["a\0"]))
@example(("thé the", ["thé", "th"]))
@example(("xthx the ", ["the", "th"]))
def test_kernel_follows_the_rule(case):
    text, chunks = case
    vocabulary = {chunk: 262 + i for i, chunk in enumerate(chunks)}
    encoder = kernel.Encoder(kernel.library(), chunks)
    assert encoder.encode(text.encode()).tolist() == rule.encode(text, vocabulary)


@given(text_and_chunks())
@example(("ab^-]", ["b^-", "^-", "-]", "]"]))
@example((" &&a", ["&&a", "&&"]))
@example(("a\nb\n\n", ["\n\n", "a\n"]))
@example((" \0é\u2028 ", ["\0é\u2028", "é\u2028"]))
def test_tokenizer_json_follows_the_rule(case):
    from tokenizers import Tokenizer

    text, chunks = case
    vocabulary = {chunk: 262 + i for i, chunk in enumerate(chunks)}
    fast = Tokenizer.from_str(json.dumps(files.describe(tokens_of(chunks), False)))
    fast.encode_special_tokens = True
    encoding = fast.encode(text)
    assert encoding.ids == rule.encode(text, vocabulary)
    assert fast.decode(encoding.ids) == text
    # No character is left out; the bytes of one character share its place.
    places = list(dict.fromkeys(encoding.offsets))
    assert [0, *(end for _, end in places)] == [*(begin for begin, _ in places), len(text)]


@given(wild)
def test_one_vocabulary_three_ways_and_back(tokenizer, fast, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == rule.encode(text, tokenizer._vocabulary)
    assert fast(text, split_special_tokens=True)["input_ids"] == ids.tolist()
    assert tokenizer.decode(ids) == text
    assert fast.decode(ids) == text


@given(wild, st.sampled_from(SPECIAL_TOKENS), wild)
def test_text_beside_a_special_token_sees_nothing_of_it(tokenizer, fast, left, special, right):
    for token in SPECIAL_TOKENS:
        left, right = left.replace(token, ""), right.replace(token, "")
    if special in ("[INST]", "[/INST]"):
        left, right = left.strip(), right.strip()
    if any(token in left + right for token in SPECIAL_TOKENS):
        return
    expected = [*tokenizer.encode(left), SPECIAL_TOKENS.index(special), *tokenizer.encode(right)]
    assert fast(left + special + right)["input_ids"] == expected


@given(st.lists(wild))
def test_batch_encodes_each_text_by_itself(tokenizer, texts):
    ids, ends = tokenizer.encode_batch(texts)
    parts = [tokenizer.encode(text).tolist() for text in texts]
    assert ids.tolist() == [number for part in parts for number in part]
    assert ends.tolist() == np.cumsum([len(part) for part in parts], dtype=int).tolist()


def test_texts_of_a_batch_do_not_see_each_other():
    tokenizer = ChunkTokenizer(tokens_of(["cat", "ca", "t", "x", " "]))
    ids, ends = tokenizer.encode_batch(["x ", "catx", "xcat", " x"])
    assert [tokenizer.tokens[i] for i in ids] == [*"x ", "ca", "t", "x", "x", "ca", "t", *" x"]
    assert ends.tolist() == [2, 5, 8, 10]


@pytest.mark.usefixtures("without_kernel")
def test_without_kernel_the_ids_are_the_same(tokenizer):
    plain = copy.copy(tokenizer)
    assert plain._encoder is None
    texts = ["The cat \0 and Café 😀", "", " x"]
    for text in texts:
        assert plain.encode(text).tolist() == tokenizer.encode(text).tolist()
    for mine, kernels in zip(plain.encode_batch(texts), tokenizer.encode_batch(texts), strict=True):
        assert mine.tolist() == kernels.tolist()
        assert mine.dtype == kernels.dtype


def test_document_stands_between_its_tags_and_matches_no_special(tokenizer):
    ids = tokenizer.encode_document("<eos>[INST]")
    assert ids.dtype == np.uint16
    assert ids[0] == BOS
    assert ids[-1] == EOS
    assert min(ids[1:-1]) >= len(SPECIAL_TOKENS)
    assert tokenizer.decode(ids) == "<eos>[INST]"


@given(st.lists(st.integers(0, 599)))
def test_any_ids_decode_as_tokenizer_json_decodes_them(tokenizer, fast, ids):
    ids = [i for i in ids if i < len(tokenizer)]
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == fast.decode(ids, skip_special_tokens=skip)


def test_broken_bytes_decode_to_replacement_characters(tokenizer):
    assert tokenizer.decode([6 + 0xE2, 6 + 0x82]) == "\ufffd\ufffd"
    assert tokenizer.decode([6 + 0xE2, BOS, 6 + 0x82, 6 + 0xAC]) == "€"
    assert tokenizer.decode([BOS, 4, 6 + 0x41, EOS], skip_special_tokens=False) == (
        "<bos>[INST]A<eos>"
    )


def test_foreign_ids_are_refused(tokenizer):
    for number in (len(tokenizer), -1):
        with pytest.raises(UserError, match=f"token id {number} is outside"):
            tokenizer.decode([number])


@pytest.mark.parametrize("text", ["ab\ud800", "\udfff"])
def test_lone_surrogates_are_refused(tokenizer, text):
    with pytest.raises(UserError, match=f"character {len(text)} of the text is a lone surrogate"):
        tokenizer.encode(text)


@given(english)
def test_lower_case_is_that_of_tokenizer_json(tokenizer, text):
    from tokenizers import Tokenizer

    lower = ChunkTokenizer(tokenizer.tokens, lowercase=True)
    fast = Tokenizer.from_str(json.dumps(files.describe(tokenizer.tokens, True)))
    fast.encode_special_tokens = True
    text += "ΑΣ ΟΔΟΣ İI ẞ 𐐀 [INST]"
    ids = lower.encode(text).tolist()
    assert fast.encode(text).ids == ids
    assert lower.decode(ids) == rule.lower(text)


def test_every_assigned_character_has_the_lower_case_of_tokenizer_json():
    from tokenizers.normalizers import Lowercase

    normalizer = Lowercase()
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) not in ("Cn", "Cs"):
            assert normalizer.normalize_str(character) == rule.lower(character), hex(code)


def test_lower_case_is_part_of_the_fingerprint(tokenizer):
    other = ChunkTokenizer(tokenizer.tokens, lowercase=True)
    assert other.fingerprint != tokenizer.fingerprint
    assert ChunkTokenizer(tokenizer.tokens).fingerprint == tokenizer.fingerprint
    assert ChunkTokenizer(tokenizer.tokens[:-1]).fingerprint != tokenizer.fingerprint


def test_pickled_tokenizer_encodes_the_same(tokenizer):
    ids = tokenizer.encode("The cat")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("The cat").tolist() == ids.tolist()


@pytest.mark.parametrize(
    "chunks",
    [
        ["ab", "ab"],
        ["abcd"],
        [""],
        ["a\ud800"],
        [chr(0x4E00 + i // 256) + chr(i) for i in range(65536)],
    ],
)
def test_impossible_vocabularies_are_refused(chunks):
    with pytest.raises(ValueError, match=r"chunks must|65,536"):
        ChunkTokenizer(tokens_of(chunks))


def test_tokens_must_begin_with_the_special_ones():
    with pytest.raises(ValueError, match="special"):
        ChunkTokenizer(["a", *tokens_of([])])
