"""Held-out questions with answers that a program can check.

Held out, by `dice.reserved`, are about one in ten of: a name with any other fact told of the user
(age, city, pet's name, brother, ...); a pet with its name; two operands with their operation (the
sum is never asked; the way to the result of another may come past it); an object with its place,
its owner or its colour; a place with a day; a word to remember.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from i3lm.data.conversations import about_me, daily, knowledge, memory, numbers, smalltalk
from i3lm.data.conversations.dice import Dice
from i3lm.data.conversations.lexicon import number_word
from i3lm.data.conversations.talk import Talk
from i3lm.data.conversations.world import ANIMALS, COLOUR_OF, COUNTRIES, OPPOSITES
from i3lm.data.documents import Message

STREAM = -1  # questions draw from streams that no corpus uses


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the user's question.

    A reply is right when one of `answers` (lower case) stands in it as whole words, and, where
    `others` are given, none of these does; of a sum only the last sentence counts, since the way
    there names other numbers. `kind` is one of `KINDS`; `reply` is a right reply.
    """

    messages: list[Message]
    answers: tuple[str, ...]
    kind: str
    others: tuple[str, ...]
    reply: str


def is_right(question: Question, reply: str) -> bool:
    """Return whether a reply answers the question."""
    if question.kind == "arithmetic":
        reply = re.split(r"(?<=[.!?])\s+", reply.strip())[-1]
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
        yield Question(talk.messages[:-1], answers, kind, others, talk.messages[-1]["content"])


def held_out(count: int, seed: int = 0) -> Iterator[list[Message]]:
    """Yield `count` whole conversations: each of `questions` with its right reply."""
    for question in questions(count, seed):
        yield [*question.messages, {"role": "assistant", "content": question.reply}]


Answers = tuple[tuple[str, ...], tuple[str, ...]]


def _number(value: int) -> tuple[str, ...]:
    return (number_word(value), str(value))


def _between(talk: Talk) -> None:
    """Talk about something else, perhaps."""
    choice = talk.dice.between(0, 3)
    if choice == 0:
        talk.play(talk.dice.pick(daily.WEATHER), 0)
    elif choice == 1:
        talk.play(talk.dice.pick(smalltalk.THANKS), 0)
    elif choice == 2:
        knowledge.colours(talk)


def _tell(talk: Talk, *kinds: str) -> dict[str, str]:
    facts = about_me.choose_facts(talk, list(kinds), held_out=True)
    for kind in talk.dice.shuffled(kinds):
        about_me.tell(talk, kind, facts[kind])
    return facts


def _news(question: str, reply: str) -> str:
    """Return what a reply adds to the question: the answer itself."""
    asked = {*re.findall(r"[a-z0-9]+", question.lower()), "your", "you", "has", "a", "an"}
    words = re.findall(r"[a-z0-9]+", reply.lower())
    new = [i for i, word in enumerate(words) if word not in asked]
    return " ".join(words[new[0] : new[-1] + 1])


def _memory(talk: Talk) -> Answers:
    """Facts told, another topic between, one asked back."""
    if talk.dice.chance(0.3):
        told, asks = memory.item(talk, held_out=True)
        talk.turn(*told)
        _between(talk)
        talk.turn(*asks[0])
        return (_news(*asks[0]),), ()
    other = talk.dice.pick([k for k in about_me.ABOUT_ME if k != "name"])
    facts = _tell(talk, "name", other)
    _between(talk)
    wanted, rest = talk.dice.shuffled(("name", other))
    about_me.ask(talk, wanted)
    answer = facts[wanted].lower()
    answers = (answer, about_me.digits(answer)) if wanted == "age" else (answer,)
    return answers, (facts[rest].lower(),)


def _arithmetic(talk: Talk) -> Answers:
    """A sum that never stood in the corpus."""
    sum_ = numbers.draw_sum(talk, held_out=True)
    value = numbers.result(sum_)
    talk.turn(numbers.sum_question(talk, sum_), numbers.sum_answer(sum_))
    # A reply may repeat the sum: an operand that equals the result must not count.
    forms = _number(value)
    return forms if value not in sum_[1:] else tuple(f"is {form}" for form in forms), ()


def _identity(talk: Talk) -> Answers:
    """Who the assistant is, after the user told his name."""
    name = _tell(talk, "name", "city")["name"].lower()
    asked = talk.dice.pick(("Who are you?", "What is your name?", "What should I call you?"))
    answer = "My name is i3." if "name" in asked else "I am i3, a small language model."
    talk.turn(asked, answer)
    return ("i3",), tuple(f"{said} {name}" for said in ("name is", "i am", "call me"))


def _world(talk: Talk) -> Answers:
    """A fact of the world, after a name and an age that never stood together."""
    dice = talk.dice
    _tell(talk, "name", "age")
    choice = dice.between(0, 3)
    if choice == 0:
        thing = dice.pick(tuple(COLOUR_OF))
        talk.turn(f"What colour is {thing}?", f"It is {COLOUR_OF[thing]}.")
        return (COLOUR_OF[thing],), ()
    if choice == 1:
        word = dice.pick(tuple(OPPOSITES))
        talk.turn(f"What is the opposite of {word}?", f"It is {OPPOSITES[word]}.")
        return (OPPOSITES[word],), ()
    if choice == 2:
        country = dice.pick(tuple(COUNTRIES))
        talk.turn(f"What is the capital of {country}?", f"It is {COUNTRIES[country][0]}.")
        return (COUNTRIES[country][0].lower(),), ()
    animal = dice.pick(tuple(ANIMALS))
    food, home, *_ = ANIMALS[animal]
    place, (question, answer) = dice.pick(tuple(enumerate(knowledge.animal_facts(animal)[:2])))
    talk.turn(question, answer)
    return ((food, home)[place].replace(",", ""),), ()


def _consistency(talk: Talk) -> Answers:
    """A pet told, asked twice with another topic between."""
    facts = about_me.choose_facts(talk, ["pet"], held_out=True)
    pet, name = facts["pet"], facts["pet name"]
    about_me.tell_pet(talk, pet, name)
    answer = f"Your {pet} is called {name}."
    talk.turn(f"What is my {pet} called?", answer)
    _between(talk)
    talk.turn(f"What is the name of my {pet}?", answer)
    return (name.lower(),), ()


KINDS: dict[str, Callable[[Talk], Answers]] = {
    "identity": _identity,
    "memory": _memory,
    "arithmetic": _arithmetic,
    "world": _world,
    "consistency": _consistency,
}
