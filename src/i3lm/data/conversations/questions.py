"""Held-out questions with answers that a program can check."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from i3lm.data.conversations import knowledge, people
from i3lm.data.conversations.dice import Dice
from i3lm.data.conversations.lexicon import NAMES, number_word
from i3lm.data.conversations.talk import Talk
from i3lm.data.conversations.world import ANIMALS, COLOUR_OF, OPPOSITES
from i3lm.data.documents import Message

STREAM = -1  # questions draw from streams that no corpus uses


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the user's question.

    A reply is right when one of `answers` (lower case) stands in it as whole words, and, where
    `others` are given, none of these does. `kind` is one of `KINDS`.
    """

    messages: list[Message]
    answers: tuple[str, ...]
    kind: str
    others: tuple[str, ...] = ()


def is_right(question: Question, reply: str) -> bool:
    """Return whether a reply answers the question."""
    text = f" {' '.join(re.findall(r'[a-z0-9-]+', reply.lower()))} "
    return any(f" {answer} " in text for answer in question.answers) and not any(
        f" {other} " in text for other in question.others
    )


def questions(count: int, seed: int = 0) -> Iterator[Question]:
    """Yield `count` questions, the kinds in turn, on combinations that `generate` never emits."""
    makers = tuple(KINDS.items())
    for number in range(count):
        kind, make = makers[number % len(makers)]
        talk = Talk(Dice(STREAM - seed, number))
        answers, others = make(talk)
        yield Question(talk.messages[:-1], answers, kind, others)


Answers = tuple[tuple[str, ...], tuple[str, ...]]


def _memory(talk: Talk) -> Answers:
    """Two facts told, another topic between, one asked back."""
    kinds = ["name", talk.dice.pick([k for k in people.ABOUT_ME if k != "name"])]
    facts = people.choose_facts(talk, kinds, held_out=True)
    for kind in talk.dice.shuffled(kinds):
        people.tell(talk, kind, facts[kind])
    if talk.dice.chance(0.5):
        knowledge.weather(talk)
    asked = talk.dice.pick(kinds)
    people.ask(talk, asked)
    return (facts[asked].lower(),), ()


def _arithmetic(talk: Talk) -> Answers:
    """A sum that never stood in the corpus."""
    sum_ = knowledge.draw_sum(talk, held_out=True)
    value = knowledge.result(sum_)
    talk.turn(knowledge.sum_question(talk, sum_), "")
    return (f"is {number_word(value)}", f"is {value}"), ()


def _identity(talk: Talk) -> Answers:
    """Who the assistant is, after the user told a name."""
    facts = people.choose_facts(talk, ["name", "city"], held_out=True)
    for kind in ("name", "city"):
        people.tell(talk, kind, facts[kind])
    talk.turn(talk.dice.pick(("Who are you?", "What is your name?", "What should I call you?")), "")
    return ("i3",), tuple(name.lower() for name in NAMES)


def _world(talk: Talk) -> Answers:
    """A fact of the world, after the user told a name and an age that never stood together."""
    facts = people.choose_facts(talk, ["name", "age"], held_out=True)
    for kind in ("name", "age"):
        people.tell(talk, kind, facts[kind])
    choice = talk.dice.between(0, 2)
    if choice == 0:
        thing = talk.dice.pick(tuple(COLOUR_OF))
        talk.turn(f"What colour is {thing}?", "")
        return (COLOUR_OF[thing],), ()
    if choice == 1:
        word = talk.dice.pick(tuple(OPPOSITES))
        talk.turn(f"What is the opposite of {word}?", "")
        return (OPPOSITES[word],), ()
    animal = talk.dice.pick(tuple(ANIMALS))
    talk.turn(*knowledge.animal_facts(animal)[4])
    return (ANIMALS[animal][2],), ()


def _consistency(talk: Talk) -> Answers:
    """A pet told, asked twice."""
    facts = people.choose_facts(talk, ["pet"], held_out=True)
    pet, name = facts["pet"], facts["pet name"]
    people.tell_pet(talk, pet, name)
    talk.turn(f"What is my {pet} called?", f"Your {pet} is called {name}.")
    people.feeling(talk)
    talk.turn(f"What is the name of my {pet}?", "")
    return (name.lower(),), ()


KINDS: dict[str, Callable[[Talk], Answers]] = {
    "identity": _identity,
    "memory": _memory,
    "arithmetic": _arithmetic,
    "world": _world,
    "consistency": _consistency,
}
