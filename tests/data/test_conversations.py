"""The embedded conversations: repeatable, consistent, and honest about what they hold out."""

import hashlib
import itertools
import re

import pytest

from i3lm.data import open_source
from i3lm.data.conversations import (
    about_me,
    as_line,
    conversation,
    generate,
    is_right,
    knowledge,
    questions,
)
from i3lm.data.conversations.dice import Dice, reserved
from i3lm.data.conversations.flows import flows
from i3lm.data.conversations.lexicon import MADE_UP, NAMES, NUMBERS, number_word
from i3lm.data.conversations.numbers import SIGNS, result
from i3lm.data.conversations.talk import Talk
from i3lm.data.conversations.world import ANIMALS, COLOUR_OF, OPPOSITES, SIZES
from i3lm.data.documents import parse_conversation

SAMPLE = 5000
VALUE = {number_word(n): n for n in range(101)}


@pytest.fixture(scope="module")
def sample():
    return list(generate(SAMPLE, 1))


def replies_of(messages):
    return [message["content"] for message in messages[1::2]]


def test_the_stream_is_the_same_everywhere():
    text = "\n".join(as_line(messages) for messages in generate(200, 7))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "031fc8ca44a84432232a8d253f7ae4ceef83618f0b85654b7ced2ddeea72de3e", (
        "the generator changed: say so in the changelog, renew this hash"
    )


def test_a_conversation_depends_on_seed_and_number_alone():
    stream = list(generate(50, 3))
    assert stream[:5] == list(generate(5, 3))
    assert [conversation(3, number) for number in (49, 7, 20)] == [
        stream[49],
        stream[7],
        stream[20],
    ]
    assert list(generate(5, 3)) != list(generate(5, 4))


def test_roles_alternate_and_lengths_are_bounded(sample):
    lengths, turns, longest = [], [], []
    for messages in sample:
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 2 <= len(messages) <= 40
        turns.append(len(messages))
        longest.append(max(len(message["content"]) for message in messages))
        lengths.append(sum(len(message["content"]) for message in messages))
    for numbers in (lengths, turns, longest):
        numbers.sort()
    assert 200 < lengths[SAMPLE // 2] < 400
    assert lengths[int(0.95 * SAMPLE)] < 650
    assert turns[int(0.9 * SAMPLE)] <= 16
    assert longest[-1] <= 260


def test_plain_ascii_that_survives_the_line_form(sample):
    for messages in sample:
        for message in messages:
            text = message["content"]
            assert text
            assert text == " ".join(text.split())
            assert text.isascii()
            assert text.isprintable()
            assert not set(text) & set("[]{}|_<>=\\")
        assert parse_conversation(as_line(messages)) == messages


def test_the_assistant_writes_whole_sentences(sample):
    for messages in sample:
        for reply in replies_of(messages):
            assert reply[0].isupper(), reply
            assert reply[-1] in ".!?", reply
            assert "n't" not in reply, reply
            assert "..," not in reply, reply
            assert not re.search(r"\ba [aeio]", reply), reply
            assert not re.search(r"\ban (?!hour)[^aeiou]", reply), reply


def test_there_is_variety(sample):
    users = {message["content"].lower() for messages in sample for message in messages[::2]}
    replies = {reply for messages in sample for reply in replies_of(messages)}
    words = {word for text in (*users, *replies) for word in re.findall(r"[a-z]+", text.lower())}
    assert len(users) > 7000
    assert len(replies) > 4000
    assert 1200 < len(words) < 3000
    counts = {}
    for messages in sample:
        counts[messages[0]["content"]] = counts.get(messages[0]["content"], 0) + 1
    assert max(counts.values()) < SAMPLE / 20


NAME_TOLD = re.compile(
    r"\b(?:my name is|call me|i am called|it is me,?|my name's) ([a-z]+)",
    re.IGNORECASE,
)


def test_the_name_that_was_told_is_answered(sample):
    checked = 0
    for messages in sample:
        name = None
        for message in messages:
            text = message["content"]
            if match := re.match(r"(?:All right\. )?Your name is (\w+)", text):
                corrected = text.startswith("All right")
                if corrected:
                    name = match[1]
                elif name:
                    assert name == match[1], messages
                    checked += 1
            elif message["role"] == "user" and (match := NAME_TOLD.search(text)):
                name = match[1].capitalize()
            assert not (name and "I do not know your name" in text), messages
    assert checked > 150


@pytest.mark.parametrize("relation", ["brother", "sister", "friend", "dog", "cat", "turtle"])
def test_who_was_told_is_answered(sample, relation):
    told = re.compile(
        rf"\b{relation}'?s name is (\w+)|\b{relation}(?: and it)?(?: is)? called (\w+)|"
        rf"\b{relation}\. (?:his|her|its) name is (\w+)|^(?!who)(\w+) is my best {relation}",
        re.IGNORECASE,
    )
    checked = 0
    for messages in sample:
        known = set()
        for message in messages:
            text = message["content"]
            if message["role"] == "user" and (match := told.search(text)):
                known.add(next(filter(None, match.groups())).capitalize())
            elif (match := re.match(rf"Your {relation} is called (\w+)", text)) and known:
                assert match[1] in known, messages
                checked += 1
    assert checked > 2


def value_of(way: str) -> int:
    """Work out `six plus two`."""
    a, operation, b = way.split()
    return result((operation, VALUE[a], VALUE[b]))


def test_sums_are_right_and_held_out_ones_absent(sample):
    said = re.compile(r"([a-z-]+) (plus|minus) ([a-z-]+) is (.*)\. so it is ([a-z-]+)\.")
    signs = {sign: word for word, sign in SIGNS.items()}
    asked = re.compile(r"(\d+) ?(plus|minus|[-+]) ?(\d+)", re.IGNORECASE)
    checked = 0
    for messages in sample:
        for reply in replies_of(messages):
            if match := said.fullmatch(reply.lower()):
                sum_ = (match[2], VALUE[match[1]], VALUE[match[3]])
                *ways, last = match[4].split(", ")
                assert last == match[5] == number_word(result(sum_))
                assert len(ways) == sum_[2] - 1
                assert all(value_of(way) == result(sum_) for way in ways)
                assert not reserved(*sum_)
                checked += 1
        for message in messages[::2]:
            if match := asked.search(message["content"]):
                sign = match[2].lower()
                assert not reserved(signs.get(sign, sign), int(match[1]), int(match[3]))
    assert checked > 500


def test_small_problems_and_comparisons_are_right(sample):
    problem = re.compile(
        r"i have (\w+) \w+\. i (get|buy|lose|give) (\w+) .*how many", re.IGNORECASE
    )
    ages = re.compile(
        r"(\w+) is ([\w-]+) and (\w+) is ([\w-]+). who(?: i|')?s (older|younger)", re.I
    )
    checked = 0
    for messages in sample:
        for user, reply in zip(messages[::2], replies_of(messages), strict=True):
            text = user["content"]
            if match := problem.search(text):
                a, b = VALUE[match[1].lower()], VALUE[match[3].lower()]
                operation = "plus" if match[2].lower() in ("get", "buy") else "minus"
                now = result((operation, a, b))
                word = number_word(now)
                assert re.search(rf"\b{word}\. Now you have {word} \w+s\.", reply)
                assert not reserved(operation, a, b)
                checked += 1
            if match := ages.search(text):
                older_first = VALUE[match[2].lower()] > VALUE[match[4].lower()]
                first = older_first == (match[5].lower() == "older")
                assert reply.lower().startswith((match[1] if first else match[3]).lower())
                checked += 1
    assert checked > 50


def test_facts_of_the_world_are_the_same_everywhere(sample):
    colour = re.compile(r"what (?:colou?r) is ((?:an? |the )?[a-z ]+?)\??", re.IGNORECASE)
    opposite = re.compile(r"opposite of (\w+)", re.IGNORECASE)
    eaten = {knowledge.plural(a): food for a, (food, *_) in ANIMALS.items()}
    checked = 0
    for messages in sample:
        for user, reply in zip(messages[::2], replies_of(messages), strict=True):
            if (match := colour.fullmatch(user["content"])) and match[1].lower() in COLOUR_OF:
                assert reply.endswith(f" is {COLOUR_OF[match[1].lower()]}.")
                checked += 1
            if match := opposite.search(user["content"]):
                assert reply.endswith(f" is {OPPOSITES[match[1].lower()]}.")
                checked += 1
            if (match := re.match(r"(\w+) eat (.*?)\.", reply)) and match[1].lower() in eaten:
                assert match[2] == eaten[match[1].lower()]
                checked += 1
            if match := re.search(r"(bigger|smaller), an? (\w+) or an? (\w+)", user["content"]):
                one, two = sorted(match.groups()[1:], key=SIZES.index)
                assert re.search(rf"\b{two if match[1] == 'bigger' else one} is", reply.lower())
    assert checked > 700


def test_held_out_combinations_are_never_emitted(sample):
    pet = re.compile(
        r"(?:my|i have a) (\w+) (?:and it )?(?:is )?called (\w+)|my (\w+)'?s name is (\w+)|"
        r"have a (\w+)\. its name is (\w+)",
        re.IGNORECASE,
    )
    where = re.compile(r"^The (\w+) is ((?:in|on|under|behind|near) the \w+)\.$")
    day = re.compile(r"^You will go to the (\w+) on (\w+)\.$")
    age = re.compile(r"^You are ([a-z-]+) years old\.$")
    found = {"pet": 0, "where": 0, "plan": 0, "age": 0}
    for messages in sample:
        name = years = None
        for message in messages:
            text = message["content"]
            if message["role"] == "user" and (match := pet.search(text)):
                kind, called = filter(None, match.groups())
                if kind.lower() in about_me.PETS:
                    assert not reserved("pet", kind.lower(), called.capitalize())
                    found["pet"] += 1
            if message["role"] == "user":
                continue
            if (match := where.match(text)) and "lost" not in text:
                assert not reserved("where", *match.groups())
                found["where"] += 1
            if match := day.match(text):
                assert not reserved("plan", *match.groups())
                found["plan"] += 1
            if match := re.match(r"Your name is (\w+)\.", text):
                name = match[1]
            if match := age.match(text):
                years = match[1]
        if name and years:
            assert not reserved("age", name, years)
            found["age"] += 1
    assert min(found.values()) > 8, found


def test_facts_are_drawn_on_the_right_side():
    for number in range(300):
        talk = Talk(Dice(5, number))
        told = about_me.choose_facts(talk, ["name", "age", "pet"])
        assert not reserved("age", told["name"], told["age"])
        assert not reserved("pet name", told["name"], told["pet name"])
        assert not reserved("pet", told["pet"], told["pet name"])
        held_out = about_me.choose_facts(talk, ["name", "city"], held_out=True)
        assert reserved("city", held_out["name"], held_out["city"])


def test_about_a_tenth_is_held_out():
    for kind, values in (("plus", range(1, 11)), ("age", (*NAMES, *MADE_UP))):
        pairs = list(itertools.product(values, NUMBERS))
        share = sum(reserved(kind, a, b) for a, b in pairs) / len(pairs)
        assert 0.04 < share < 0.16


def test_questions_ask_and_can_be_judged():
    asked = list(questions(1000, 0))
    assert {q.kind for q in asked} == {
        "identity",
        "memory",
        "arithmetic",
        "world",
        "consistency",
    }
    for question in asked:
        assert [m["role"] for m in question.messages][::2] == ["user"] * (
            len(question.messages) // 2 + 1
        )
        assert is_right(question, question.reply), question
        assert is_right(question, question.reply.upper().replace(".", "!"))
        assert all(answer == answer.lower() for answer in question.answers)
        assert not is_right(question, "I do not know that.")
        assert not is_right(question, question.reply.replace(" ", "x"))
        assert not is_right(question, "")
    wrong = sum(is_right(a, b.reply) for a, b in itertools.pairwise(asked))
    assert wrong < len(asked) / 50  # the right reply to another question


def test_questions_are_repeatable_and_new(sample):
    assert list(questions(5, 1)) == list(questions(5, 1))
    assert list(questions(5, 1)) != list(questions(5, 2))
    seen = {as_line(messages[:n]) for messages in sample for n in range(2, len(messages) + 1, 2)}
    for question in questions(500, 3):
        whole = [*question.messages, {"role": "assistant", "content": question.reply}]
        assert as_line(whole) not in seen


def test_arithmetic_questions_are_held_out():
    for question in questions(500, 2):
        if question.kind == "arithmetic":
            said = r"(\S+) (\w+) (\S+) is .*\. so it is (\S+)\."
            match = re.fullmatch(said, question.reply.lower())
            assert reserved(match[2], VALUE[match[1]], VALUE[match[3]])
            assert not is_right(question, f"It is {number_word((VALUE[match[4]] + 1) % 99)}.")


def test_calling_oneself_by_the_users_name_is_wrong():
    question = next(q for q in questions(10) if q.kind == "identity")
    said = question.others[0]
    assert is_right(question, "My name is i3.")
    assert not is_right(question, f"I am i3, my {said}.")


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
    assert len(set(dice.sample(range(9), 4))) == 4


def test_tables_of_talk():
    first, second = flows("""
Hi. | Hello. = Hello!
  | Hey!
>Bye. = Bye, {name}.
>>Yes. = Good.
>No. = All right.
Why? = Because.
""")
    assert first.asks == ("Hi.", "Hello.")
    assert first.answers == ("Hello!", "Hey!")
    assert [flow.asks for flow in first.then] == [("Bye.",), ("No.",)]
    assert first.then[0].then[0].answers == ("Good.",)
    assert second.then == []
