"""Counting a vocabulary."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import SAMPLE, wild

from i3lm.errors import UserError
from i3lm.tokenizer import SPECIAL_TOKENS, VocabularyCounter, counting, rule


def counted(texts, **settings):
    counter = VocabularyCounter(**settings)
    for text in texts:
        counter.update(text)
    return counter


def learned(counter, vocab_size=65536, **settings):
    return counter.build(vocab_size, **settings)[262:]


def obvious(texts, room, min_character_count):
    """The vocabulary after specials and bytes, in the plainest way."""
    characters = Counter(character for text in texts for character in text)
    chunks = Counter(chunk for text in texts for chunk in rule.chunks(text) if len(chunk) > 1)
    enough = [c for c in characters if characters[c] >= min_character_count]
    singles = sorted(enough, key=lambda c: (-characters[c], c))[:room]
    best = sorted(chunks, key=lambda c: (-chunks[c], c))[: room - len(singles)]
    return sorted(singles) + best


@given(st.lists(wild, max_size=8), st.integers(0, 80), st.integers(1, 4))
def test_vocabulary_is_the_obvious_one(texts, room, least):
    counter = counted(texts)
    assert learned(counter, 262 + room, min_character_count=least) == obvious(texts, room, least)


@pytest.mark.usefixtures("without_kernel")
def test_without_kernel_the_vocabulary_is_the_same():
    texts = [SAMPLE, "", "a", "é", "ab", "👩‍👩‍👧 " * 3, "\0\0 \0"]
    assert learned(counted(texts), min_character_count=1) == obvious(texts, 65536 - 262, 1)


@settings(max_examples=25)
@given(st.lists(wild, max_size=8), st.integers(0, 8))
def test_merged_parts_give_what_one_pass_gives(texts, cut):
    first, second = counted(texts[:cut]), counted(texts[cut:])
    whole = learned(counted(texts), 350)
    second.build(300)  # looking at a vocabulary changes nothing
    first.merge(second)
    assert learned(first, 350) == whole
    assert learned(counted(reversed(texts)), 350) == whole
    assert learned(second, 350) == learned(counted(texts[cut:]), 350)


def test_blocks_do_not_show(monkeypatch):
    texts = [SAMPLE[i : i + 50] for i in range(0, len(SAMPLE), 50)]
    whole = learned(counted(texts))
    for size in (1, 7, 1000):
        monkeypatch.setattr(counting, "_BLOCK", size)
        monkeypatch.setattr(counting, "_PENDING", size)
        assert learned(counted(texts)) == whole


def test_too_many_rare_chunks_keep_the_frequent_ones(monkeypatch):
    monkeypatch.setattr(counting, "_PENDING", 50)
    # "жз" is in every text; the other chunks are all different.
    texts = [f"жзbcde{chr(0x4E00 + i)}{chr(0x5E00 + i)}" for i in range(400)]
    results = []
    for block in (1, 100, 1 << 18):
        monkeypatch.setattr(counting, "_BLOCK", block)
        counter = counted(texts, rare_limit=10)
        results.append(learned(counter, min_character_count=10**6))
        assert len(counter._rare) == 10
        assert counter._rare_counts.max() == 400
    assert results[0] == results[1] == results[2]
    assert results[0][:3] == ["bc", "de", "жз"]
    assert len(results[0]) == 12


@pytest.mark.usefixtures("without_kernel")
def test_too_many_rare_chunks_without_kernel(monkeypatch):
    test_too_many_rare_chunks_keep_the_frequent_ones(monkeypatch)


def test_order_of_tokens_and_ties():
    tokens = counted(["zzbbaa", "bbé"]).build(4466, min_character_count=2)
    assert tokens[:262] == [*SPECIAL_TOKENS, *rule.BYTE_TOKENS]
    # z, b, a often enough, by code point; "bb" twice, then the chunks seen once by code point
    assert tokens[262:] == ["a", "b", "z", "bb", "aa", "zz"]


def test_too_many_characters_leave_the_most_frequent():
    assert learned(counted(["aaabbcdd"]), 264, min_character_count=1) == ["a", "b"]


def test_characters_must_be_seen_often_enough():
    assert "x" not in learned(counted(["aax"]))
    assert "x" in learned(counted(["aaxx"]))
    text = "a" * 3_000_000 + "bbccc"
    assert learned(counted([text]), 264) == ["a", "c"]


def test_empty_corpus_gives_specials_and_bytes_only():
    assert len(VocabularyCounter().build(4466)) == 262
    assert len(VocabularyCounter().build(262)) == 262


@pytest.mark.parametrize("size", [-1, 261, 65537])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(UserError, match="take 262 to 65,536"):
        VocabularyCounter().build(size)


def test_lower_case_counts_both_cases_as_one():
    assert learned(counted(["The THE the ΑΣ"], lowercase=True)) == learned(
        counted(["the the the ασ"])
    )
    with pytest.raises(ValueError, match="lower-cases"):
        counted([], lowercase=True).merge(counted([]))


def test_lone_surrogates_are_refused_and_leave_the_counts_alone():
    counter = counted(["abab"])
    with pytest.raises(UserError, match="lone surrogate"):
        counter.update("xx\ud812")
    assert learned(counter) == ["a", "b", "ab"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_counting_touches_only_the_pages_in_use():
    """Of 26 MB of tables for each counter; numpy's own memory would be taken as a whole."""
    code = """
import re
from i3lm.tokenizer import VocabularyCounter
def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def counted():
    counter = VocabularyCounter()
    counter.update("the cat sat on the mat and the dog ran")
    return counter
warm = counted()
warm.remove(counted())
warm.build(400)
before = resident()
counters = [counted() for _ in range(4)]
for counter in counters:
    counter.remove(warm)
    counter.merge(counted())
    counter.build(400)
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4_000_000
