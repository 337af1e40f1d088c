"""The embedded corpus: a small deterministic generator of simple conversations.

Users write in many ways, the assistant in one: many wordings of a question share an answer, so a
small model learns them in minutes. What is told stays true inside a conversation, facts of the
world everywhere. About a tenth of the combinations is left out for `questions`, which says which.
"""

from collections.abc import Callable, Iterator

from i3lm.data.conversations import (
    about_me,
    assistant,
    daily,
    knowledge,
    memory,
    numbers,
    smalltalk,
    stories,
)
from i3lm.data.conversations.dice import Dice
from i3lm.data.conversations.flows import Flow
from i3lm.data.conversations.questions import Question, held_out, is_right, questions
from i3lm.data.conversations.talk import Talk
from i3lm.data.documents import Message
from i3lm.data.documents import line_form as as_line

__all__ = ["Question", "as_line", "conversation", "generate", "held_out", "is_right", "questions"]

Topic = Callable[[Talk], None]


def _one_of(table: tuple[Flow, ...]) -> Topic:
    return lambda talk: talk.play(talk.dice.lean(table))


_WEATHER, _LIFE, _UNCLEAR = map(_one_of, (daily.WEATHER, daily.LIFE, smalltalk.UNCLEAR))
# Topics by how often they come up. A small model learns what it meets often, so what `questions`
# asks comes up more than stories and small talk.
TOPICS: tuple[Topic, ...] = (
    *[assistant.identity] * 6, assistant.out_of_scope, *[smalltalk.feeling] * 3, smalltalk.help_,
    *[_LIFE] * 3, _WEATHER, _UNCLEAR, *knowledge.TOPICS * 4, *[numbers.arithmetic] * 16,
    *[stories.story] * 2, stories.sequel, stories.joke, memory.repeat,
)  # fmt: skip
# No new topic after so many characters: most conversations fit the model's window.
ENOUGH = 300


def generate(count: int, seed: int = 0) -> Iterator[list[Message]]:
    """Yield `count` conversations; number i is a function of (seed, i) alone.

    A conversation is a list of messages, the user first, the assistant last, mostly 100 to 700
    characters in all.
    """
    for number in range(count):
        yield conversation(seed, number)


def conversation(seed: int, number: int) -> list[Message]:
    """Return conversation `number` of the stream of `seed`."""
    dice = Dice(seed, number)
    talk = Talk(dice)
    if dice.chance(0.45):
        smalltalk.greet(talk)
    before, topics, after = _plan(talk)
    for topic in before:
        topic(talk)
    for topic in topics:
        if talk.size < ENOUGH:
            topic(talk)
    for topic in after:
        topic(talk)
    if dice.chance(0.2) and talk.size < ENOUGH:
        talk.play(dice.lean(smalltalk.THANKS))
    if dice.chance(0.25) or not talk.messages:
        _goodbye(talk)
    return talk.messages


def _goodbye(talk: Talk) -> None:
    talk.play(talk.dice.lean(smalltalk.GOODBYES))
    name = talk.told.get("name")
    answer = talk.messages[-1]["content"]
    if name and answer.startswith("Bye!"):
        talk.messages[-1]["content"] = f"Bye, {name}! See you soon."


def _plan(talk: Talk) -> tuple[list[Topic], list[Topic], list[Topic]]:
    """Choose facts to tell, in half of the conversations; topics; and what to ask back.

    Facts are asked back often, and soon more often than not: from one such answer in a hundred
    tokens a model of a few million parameters learns within minutes to look back, from one in
    three hundred it does not (docs/log.md).
    """
    dice = talk.dice
    topics = list(dict.fromkeys(dice.pick(TOPICS) for _ in range(dice.between(1, 3))))
    if dice.chance(0.45):
        return [], topics, []
    between = topics[: dice.pick((0, 0, 1))]
    if dice.chance(0.25):
        told, asks = memory.item(talk)
        return [_turn(told)], between, [_turn(ask) for ask in asks]
    kinds = dice.sample(about_me.KINDS, dice.pick((1, 1, 2, 2, 3)))
    if dice.chance(0.5) and "name" not in kinds:
        kinds[0] = "name"
    facts = about_me.choose_facts(talk, kinds)
    asking = [_ask(kind) for kind in kinds for _ in range(dice.pick((1, 1, 2)))]
    if dice.chance(0.1):
        asking.append(about_me.summary)
    if dice.chance(0.1):  # something that was never told
        asking.append(_ask(dice.pick([k for k in about_me.PRIVATE if k not in kinds])))
    return _telling(talk, kinds, facts), between, dice.shuffled(asking)


def _telling(talk: Talk, kinds: list[str], facts: dict[str, str]) -> list[Topic]:
    """Return turns that tell all facts, now and then two at once, or one corrected."""
    dice = talk.dice
    other = next((kind for kind in kinds if kind in ("age", "city", "hobby", "food")), None)
    if "name" in kinds and other and dice.chance(0.3):
        name, value = facts["name"], facts[other]
        rest = [_tell(kind, facts) for kind in kinds if kind not in ("name", other)]
        return [lambda talk: about_me.tell_both(talk, name, other, value), *rest]
    telling = [_tell(kind, facts) for kind in kinds]
    if kinds[0] != "pet" and dice.chance(0.07):
        telling += _correction(talk, kinds[0], facts)
    return telling


def _correction(talk: Talk, kind: str, facts: dict[str, str]) -> list[Topic]:
    """Return a turn that gives a fact another value, unless that would be a reserved one."""
    value = about_me.draw(talk.dice, kind)
    if value in facts.values() or about_me.is_reserved({**facts, kind: value}):
        return []
    return [lambda talk: about_me.correct(talk, kind, value)]


def _turn(turn: tuple[str, str]) -> Topic:
    return lambda talk: talk.turn(*turn)


def _tell(kind: str, facts: dict[str, str]) -> Topic:
    if kind == "pet":
        return lambda talk: about_me.tell_pet(talk, facts["pet"], facts["pet name"])
    return lambda talk: about_me.tell(talk, kind, facts[kind])


def _ask(kind: str) -> Topic:
    return about_me.ask_pet if kind == "pet" else lambda talk: about_me.ask(talk, kind)
