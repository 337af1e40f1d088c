"""The embedded conversations: repeatable, consistent, and honest about what they hold out."""

import hashlib
import itertools
import re

import pytest

from i3lm.data import open_source
from i3lm.data.conversations import generate, is_right, questions
from i3lm.data.conversations.dice import Dice, reserved
from i3lm.data.conversations.knowledge import result
from i3lm.data.conversations.lexicon import NUMBERS, number_word
from i3lm.data.conversations.people import is_reserved
from i3lm.data.documents import line_form

SAMPLE = 3000


@pytest.fixture(scope="module")
def sample():
    return list(generate(SAMPLE, 1))


def test_the_stream_is_the_same_everywhere():
    text = "\n".join(line_form(messages) for messages in generate(200, 7))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "33f0d9bed86855a79b0e6dd5d64e2adba5599a7e40933dab0f801d25845ca115", (
        "the generator changed: say so in the changelog, renew this hash"
    )


def test_a_conversation_depends_on_seed_and_number_alone():
    assert list(generate(5, 3)) == list(itertools.islice(generate(50, 3), 5))
    assert list(generate(5, 3)) != list(generate(5, 4))


def test_roles_alternate_and_lengths_are_bounded(sample):
    lengths = []
    for messages in sample:
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 2 <= len(messages) <= 40
        assert all(0 < len(message["content"]) <= 220 for message in messages)
        lengths.append(sum(len(message["content"]) for message in messages))
    lengths.sort()
    assert 100 < lengths[SAMPLE // 2] < 600
    assert lengths[int(0.98 * SAMPLE)] < 800


def test_plain_ascii_without_tags(sample):
    text = "".join(message["content"] for messages in sample for message in messages)
    assert text.isascii()
    assert text.isprintable()
    assert "[" not in text
    assert "{" not in text


def test_there_is_variety(sample):
    users = {m["content"].lower() for messages in sample for m in messages[::2]}
    replies = {m["content"] for messages in sample for m in messages[1::2]}
    words = {w for r in (*users, *replies) for w in re.findall(r"[a-z]+", r.lower())}
    assert len(users) > 2000
    assert len(replies) > 1500
    assert 500 < len(words) < 4000


def test_what_was_told_is_what_is_answered(sample):
    checked = 0
    for messages in sample:
        names = set()
        for message in messages:
            text = message["content"]
            if message["role"] == "user":
                pattern = r"(?:my name is|call me) ([A-Z]?[a-z]+)"
                if match := re.search(pattern, text, re.IGNORECASE):
                    names.add(match[1].capitalize())
            elif (match := re.match(r"Your name is (\w+)\.", text)) and names:
                assert names == {match[1]}
                checked += 1
    assert checked > 50


def test_sums_are_right(sample):
    value = {number_word(n): n for n in range(100)}
    checked = 0
    for messages in sample:
        for message in messages[1::2]:
            text = message["content"].lower()
            if match := re.fullmatch(
                r"([a-z-]+) (plus|minus|times) ([a-z-]+) is ([a-z-]+)\.", text
            ):
                sum_ = (match[2], value[match[1]], value[match[3]])
                assert result(sum_) == value[match[4]]
                assert not reserved(*sum_)
                checked += 1
    assert checked > 500


def test_held_out_combinations_are_never_emitted(sample):
    told = re.compile(r"my (\w+) is called (\w+)", re.IGNORECASE)
    for messages in sample:
        for message in messages[::2]:
            if match := told.search(message["content"]):
                kind, name = match[1].lower(), match[2].capitalize()
                if kind not in ("brother", "sister"):
                    assert not is_reserved({"pet": kind, "pet name": name})


def test_about_a_tenth_is_held_out():
    pairs = itertools.product(NUMBERS, NUMBERS)
    share = sum(reserved("x", a, b) for a, b in pairs) / len(NUMBERS) ** 2
    assert 0.05 < share < 0.15


def test_questions_ask_and_can_be_judged():
    asked = list(questions(250, 0))
    assert {q.kind for q in asked} == {
        "identity",
        "memory",
        "arithmetic",
        "world",
        "consistency",
    }
    for question in asked:
        assert question.messages[-1]["role"] == "user"
        assert is_right(question, f"It is so: {question.answers[0].upper()}!")
        assert not is_right(question, "I do not know that.")
        assert not is_right(question, "x" + question.answers[0])
    assert list(questions(5, 1)) == list(questions(5, 1))
    assert list(questions(5, 1)) != list(questions(5, 2))


def test_naming_the_user_is_no_answer_to_who_the_assistant_is():
    question = next(q for q in questions(10) if q.kind == "identity")
    assert is_right(question, "My name is i3.")
    assert not is_right(question, "My name is i3, Anna.")
    assert not is_right(question, "Your name is Anna.")


def test_it_is_the_default_source():
    source = open_source(None, size=10, seed=5)
    documents = list(source)
    assert [d.messages for d in documents] == list(generate(10, 5))
    assert source.files == ()


def test_dice_are_fair_enough():
    dice = Dice(0, 0)
    rolls = [dice.between(1, 6) for _ in range(6000)]
    assert {rolls.count(n) > 800 for n in range(1, 7)} == {True}
    assert sorted(dice.shuffled(range(9))) == list(range(9))
