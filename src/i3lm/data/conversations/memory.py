"""Small things to keep in mind within a talk: where something is, who has what, what to repeat."""

from collections.abc import Callable

from i3lm.data.conversations.dice import reserved
from i3lm.data.conversations.flows import capital
from i3lm.data.conversations.lexicon import (
    COLOURS,
    DAYS,
    LISTS,
    MADE_UP,
    NAMES,
    OBJECTS,
    PLACES,
    ROOMS,
    with_article,
)
from i3lm.data.conversations.talk import Talk

Turn = tuple[str, str]  # what the user says, and the answer
Key = tuple[str, ...]  # the combination that a question is about
# What is told, and what may be asked later, with the combinations
Item = tuple[Turn, list[tuple[Turn, Key]]]
WORDS = (*LISTS["word"], *OBJECTS, *COLOURS, *MADE_UP)
GOOD = ("All right.", "Okay, I will remember that.")


def _where(talk: Talk) -> Item:
    thing, room = talk.dice.pick(OBJECTS), talk.dice.pick(ROOMS)
    told = talk.dice.pick(
        (f"The {thing} is {room}.", f"I put the {thing} {room}.", f"My {thing} is {room}.")
    )
    asked = talk.dice.pick((f"Where is the {thing}?", f"Where is my {thing}?"))
    asks: list[tuple[Turn, Key]] = [((asked, f"The {thing} is {room}."), ("where", thing, room))]
    return (told, talk.dice.pick(GOOD)), asks


def _who(talk: Talk) -> Item:
    dice = talk.dice
    people, things = dice.sample(NAMES, 2), dice.sample(OBJECTS, 2)
    told = " ".join(f"{n} has {with_article(t)}." for n, t in zip(people, things, strict=True))
    asks: list[tuple[Turn, Key]] = []
    for name, thing in zip(people, things, strict=True):
        turn = dice.pick(
            (
                (f"Who has the {thing}?", f"{name} has the {thing}."),
                (f"What does {name} have?", f"{name} has {with_article(thing)}."),
            )
        )
        asks.append((turn, ("who", name, thing)))
    return (told, dice.pick(GOOD)), asks


def _colour(talk: Talk) -> Item:
    dice = talk.dice
    (one, two), (a, b) = dice.sample(("bike", "house", *OBJECTS), 2), dice.sample(COLOURS, 2)
    asks: list[tuple[Turn, Key]] = []
    asks.append(((f"What colour is my {one}?", f"Your {one} is {a}."), ("thing", one, a)))
    told = f"My {one} is {a}."
    if dice.chance(0.5):
        told = f"My {one} is {a} and my {two} is {b}."
        asks.append(((f"What colour is my {two}?", f"Your {two} is {b}."), ("thing", two, b)))
    return (told, f"{capital(a)} is a nice colour."), asks


def _plan(talk: Talk) -> Item:
    place, day = talk.dice.pick(PLACES), talk.dice.pick(DAYS)
    told = talk.dice.pick(
        (f"I will go to the {place} on {day}.", f"On {day} I will go to the {place}.")
    )
    asked = talk.dice.pick((f"When will I go to the {place}?", f"Where will I go on {day}?"))
    turn = (asked, f"You will go to the {place} on {day}.")
    return (told, f"Have fun at the {place}!"), [(turn, ("plan", place, day))]


def _word(talk: Talk) -> Item:
    word = talk.dice.pick(WORDS)
    told = talk.dice.pick((f"Remember the word {word}.", f"The secret word is {word}."))
    asked = talk.dice.pick(("What was the word?", "What is the word?", "Do you know the word?"))
    turn = (asked, f"The word is {word}.")
    return (told, f"I will remember the word {word}."), [(turn, ("word", word))]


ITEMS: tuple[Callable[[Talk], Item], ...] = (_where, _where, _who, _who, _colour, _plan, _word)


def item(talk: Talk, held_out: bool = False) -> tuple[Turn, list[Turn]]:
    """Draw something to keep in mind, kept for held-out questions or not.

    Returns what is told and what may be asked, in any order; held out: all of it.
    """
    while True:
        told, asks = talk.dice.pick(ITEMS)(talk)
        turns = [turn for turn, key in asks if reserved(*key) == held_out]
        if turns and (held_out or len(turns) == len(asks)):
            return told, talk.dice.shuffled(turns)


def repeat(talk: Talk) -> None:
    """The user wants a word repeated, perhaps twice."""
    dice = talk.dice
    word = dice.pick((*WORDS, *NAMES))
    talk.turn(
        dice.pick((f"Say {word}.", f"Repeat {word}.", f"Can you say {word}?")),
        f"{capital(word)}.",
    )
    if dice.chance(0.5):
        again = dice.pick(("Again.", "Say it again.", "Once more, please."))
        talk.turn(again, f"{capital(word)}.")
