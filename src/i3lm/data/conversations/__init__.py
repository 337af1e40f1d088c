"""The embedded corpus: a small deterministic generator of simple conversations.

Greetings, names and other facts told and asked back, feelings, animals, colours, opposites,
numbers, days, weather, stories, jokes, and who the assistant is. Facts stay consistent inside a
conversation and facts of the world everywhere. Some combinations (`dice.reserved`) are left out
for `questions`.
"""

from collections.abc import Callable, Iterator

from i3lm.data.conversations import knowledge, people, stories
from i3lm.data.conversations.dice import Dice
from i3lm.data.conversations.questions import Question, is_right, questions
from i3lm.data.conversations.talk import Talk
from i3lm.data.documents import Message

__all__ = ["Question", "generate", "is_right", "questions"]

Topic = Callable[[Talk], None]
# Topics by how often they come up.
TOPICS: tuple[Topic, ...] = (
    people.identity, people.identity, people.feeling, people.feeling, people.out_of_scope,
    knowledge.animals, knowledge.animals, knowledge.colours, knowledge.opposites,
    knowledge.things, knowledge.weather, knowledge.calendar, knowledge.arithmetic,
    knowledge.arithmetic, stories.story, stories.story, stories.joke,
)  # fmt: skip


def generate(count: int, seed: int = 0) -> Iterator[list[Message]]:
    """Yield `count` conversations; number i is a function of (seed, i) alone.

    A conversation is a list of messages, the user first, the assistant last, mostly 100 to 600
    characters in all.
    """
    for number in range(count):
        yield conversation(seed, number)


def conversation(seed: int, number: int) -> list[Message]:
    """Return conversation `number` of the stream of `seed`."""
    dice = Dice(seed, number)
    talk = Talk(dice)
    if dice.chance(0.5):
        talk.turn(*dice.pick(people.GREETINGS))
        people.answer_back(talk)
    for topic in _plan(talk):
        topic(talk)
    if dice.chance(0.25):
        talk.turn(*dice.pick(people.THANKS))
    if dice.chance(0.25) or not talk.messages:
        talk.turn(*dice.pick(people.GOODBYES))
    return talk.messages


def _plan(talk: Talk) -> list[Topic]:
    """Choose topics; in half of the conversations also facts to tell and to ask back."""
    dice = talk.dice
    topics = [dice.pick(TOPICS) for _ in range(dice.between(1, 3))]
    if dice.chance(0.5):
        return topics
    kinds = dice.shuffled([*people.ABOUT_ME, "pet"])[: dice.between(1, 3)]
    if dice.chance(0.5) and "name" not in kinds:
        kinds[0] = "name"
    facts = people.choose_facts(talk, kinds)
    telling: list[Topic] = []
    asking: list[Topic] = []
    for kind in kinds:
        telling.append(_tell(kind, facts))
        if dice.chance(0.8):
            asking.append(_ask(kind))
    if dice.chance(0.15):  # something that was never told
        other = dice.pick([k for k in (*people.ABOUT_ME, "pet") if k not in kinds])
        asking.append(_ask(other))
    between = topics[: dice.between(0, 2)]
    return [*telling, *between, *dice.shuffled(asking)]


def _tell(kind: str, facts: dict[str, str]) -> Topic:
    if kind == "pet":
        return lambda talk: people.tell_pet(talk, facts["pet"], facts["pet name"])
    return lambda talk: people.tell(talk, kind, facts[kind])


def _ask(kind: str) -> Topic:
    return people.ask_pet if kind == "pet" else lambda talk: people.ask(talk, kind)
