"""Talk about the world: animals, colours, opposites, kinds of things, countries, jobs, days."""

from collections.abc import Callable

from i3lm.data.conversations.flows import capital
from i3lm.data.conversations.lexicon import DAYS, MONTHS, with_article
from i3lm.data.conversations.talk import Talk
from i3lm.data.conversations.world import (
    ANIMALS,
    CAN,
    COLOUR_OF,
    COUNTRIES,
    FAMILY,
    JOBS,
    KINDS_OF,
    OPPOSITES,
    SEASONS,
    SIZES,
    THINGS,
    USES,
    plural,
)

Pair = tuple[str, str]  # a question and its answer
LEGS = {0: "no legs", 2: "two legs", 4: "four legs", 6: "six legs", 8: "eight legs"}


def animals(talk: Talk) -> None:
    """One to three questions about an animal, or a comparison."""
    dice = talk.dice
    choice = dice.between(0, 9)
    if choice == 0:
        i = dice.between(0, len(SIZES) - 4)
        small, big = SIZES[i], SIZES[dice.between(i + 3, len(SIZES) - 1)]
        one, two = dice.shuffled((with_article(small), with_article(big)))
        word, answer = dice.pick((("bigger", big), ("smaller", small)))
        said = f"{capital(with_article(answer))} is {word}."
        talk.turn(f"Which is {word}, {one} or {two}?", said)
    elif choice == 1:
        what = dice.pick(tuple(CAN))
        yes = bool(CAN[what][0]) and dice.chance(0.5)
        who = with_article(dice.pick(CAN[what][0 if yes else 1]))
        answer = f"Yes, {who} can {what}." if yes else f"No, {who} cannot {what}."
        talk.turn(f"Can {who} {what}?", answer)
    else:
        animal = dice.lean(tuple(ANIMALS))
        for question, answer in dice.sample(animal_facts(animal), dice.between(1, 3)):
            talk.turn(question, answer)


def animal_facts(animal: str) -> list[Pair]:
    """Return all questions and answers about an animal; the first ones are on food and home."""
    food, home, voice, legs, young = ANIMALS[animal]
    a, many = with_article(animal), plural(animal)
    eat = f"{capital(many)} eat {food}."
    live = f"{capital(many)} live {home}."
    both = f"{eat} They live {home}."
    facts = [
        (f"What do {many} eat?", eat),
        (f"Where do {many} live?", live),
        (f"What does {a} eat?", eat),
        (f"What do {many} like to eat?", eat),
        (f"Where does {a} live?", live),
        (f"How many legs does {a} have?", f"{capital(a)} has {LEGS[legs]}."),
        (f"What is a baby {animal} called?", f"A baby {animal} is called {with_article(young)}."),
        (f"What is {a}?", f"{capital(a)} is an animal. {live}"),
        (f"Tell me about {many}.", both),
        (f"What do you know about {many}?", both),
    ]
    if voice:
        facts += [
            (f"What sound does {a} make?", f"{capital(a)} {voice}."),
            (f"What does {a} say?", f"{capital(a)} {voice}."),
        ]
    return facts


def colours(talk: Talk) -> None:
    """The colours of one or two things."""
    for thing in talk.dice.sample(tuple(COLOUR_OF), talk.dice.between(1, 2)):
        colour = COLOUR_OF[thing]
        if talk.dice.chance(0.15):
            talk.turn(f"Is {thing} {colour}?", f"Yes, {thing} is {colour}.")
            continue
        asked = talk.dice.pick(
            (
                f"What colour is {thing}?",
                f"Which colour is {thing}?",
                f"Tell me the colour of {thing}.",
            )
        )
        talk.turn(asked, f"{capital(thing)} is {colour}.")


def opposites(talk: Talk) -> None:
    """One to three opposites, perhaps as a game."""
    dice = talk.dice
    words = dice.sample(tuple(OPPOSITES), dice.between(1, 3))
    if dice.chance(0.15):
        talk.turn("I say a word, and you say the opposite.", "All right! I will say the opposite.")
        for word in words:
            talk.turn(f"{capital(word)}.", f"{capital(OPPOSITES[word])}.")
        return
    for word in words:
        asked = dice.pick(
            (
                f"What is the opposite of {word}?",
                f"What is the opposite of {word}?",
                f"Tell me the opposite of {word}.",
                f"The opposite of {word}?",
            )
        )
        talk.turn(asked, f"The opposite of {word} is {OPPOSITES[word]}.")


def kinds(talk: Talk) -> None:
    """What kind of thing something is, or an example of a kind."""
    dice = talk.dice
    kind = dice.pick(tuple(KINDS_OF))
    many, members = KINDS_OF[kind]
    member, second = dice.sample(members, 2)
    a_kind = with_article(kind)
    other = dice.pick([k for k in KINDS_OF if k != kind])
    choices = [
        (f"Tell me {a_kind}.", f"{capital(member)} is {a_kind}."),
        (f"Name {a_kind}.", f"{capital(member)} is {a_kind}."),
        (f"What is {member}?", f"{capital(member)} is {a_kind}."),
        (f"Is {member} {a_kind}?", f"Yes, {member} is {a_kind}."),
        (f"Is {member} {with_article(other)}?", f"No, {member} is {a_kind}."),
        (f"Tell me two {many}.", f"{capital(member)} and {second}."),
    ]
    if kind == "animal":  # what an animal is, `animal_facts` answers
        choices.pop(2)
    talk.turn(*dice.pick(choices))


def countries(talk: Talk) -> None:
    """Capitals and languages of countries."""
    country = talk.dice.pick(tuple(COUNTRIES))
    city, language = COUNTRIES[country]
    capital_is = f"{city} is the capital of {country}."
    talk.turn(
        *talk.dice.pick(
            (
                (f"What is the capital of {country}?", capital_is),
                (f"Tell me the capital of {country}.", capital_is),
                (f"Where is {city}?", f"{city} is in {country}."),
                (f"What language do people speak in {country}?",
                 f"People in {country} speak {language}."),
            )
        )
    )  # fmt: skip


def jobs(talk: Talk) -> None:
    """What people do and where they work."""
    job = talk.dice.pick(tuple(JOBS))
    does, where = JOBS[job]
    a = with_article(job)
    talk.turn(
        *talk.dice.pick(
            (
                (f"What does {a} do?", f"{capital(a)} {does}."),
                (f"What is {a}?", f"{capital(a)} {does}."),
                (f"Where does {a} work?", f"{capital(a)} works {where}."),
            )
        )
    )


def uses(talk: Talk) -> None:
    """What things are for."""
    thing = talk.dice.pick(tuple(USES))
    verb = "are" if thing == "glasses" else "is"
    asked = talk.dice.pick(
        (
            f"What do we use {thing} for?",
            f"What {verb} {thing} for?",
            f"What can I do with {thing}?",
            f"Why do I need {thing}?",
        )
    )
    talk.turn(asked, f"We use {thing} to {USES[thing]}.")


def family(talk: Talk) -> None:
    """Words for relatives."""
    who = talk.dice.pick(tuple(FAMILY))
    asked = who.replace("your", "my")
    talk.turn(f"Who is {asked}?", f"{capital(who)} is your {FAMILY[who]}.")


def things(talk: Talk) -> None:
    """What things are, where they come from, how many there are."""
    for flow in talk.dice.sample(THINGS, talk.dice.between(1, 2)):
        talk.play(flow)


def calendar(talk: Talk) -> None:
    """Days, months and seasons."""
    dice = talk.dice
    if dice.chance(0.25):
        season = dice.pick(tuple(SEASONS))
        weather, what = SEASONS[season]
        talk.turn(
            *dice.pick(
                (
                    (f"Is it cold in {season}?", f"In {season} it is {weather}."),
                    (f"How is the weather in {season}?", f"In {season} it is {weather}."),
                    (f"What happens in {season}?", f"In {season} {what}."),
                    (f"Tell me about {season}.", f"In {season} {what}."),
                )
            )
        )
        return
    names, word = dice.pick(((DAYS, "day"), (MONTHS, "month")))
    i = dice.between(0, len(names) - 1)
    before, name, after = names[i - 1], names[i], names[(i + 1) % len(names)]
    choices = [
        (f"What {word} comes after {name}?", f"{after} comes after {name}."),
        (f"Which {word} is after {name}?", f"{after} comes after {name}."),
        (f"What {word} comes before {name}?", f"{before} comes before {name}."),
        (f"What comes after {name}?", f"{after} comes after {name}."),
    ]
    if word == "day":
        choices += [
            (f"If today is {name}, what day is tomorrow?", f"Then tomorrow is {after}."),
            (f"If today is {name}, what day was yesterday?", f"Then yesterday was {before}."),
            ("What are the days of the week?", f"{', '.join(DAYS[:-1])} and {DAYS[-1]}."),
        ]
    talk.turn(*dice.pick(choices))


TOPICS: tuple[Callable[[Talk], None], ...] = (
    animals, animals, animals, colours, colours, opposites, opposites, kinds, countries, countries,
    jobs, uses, family, things, things, calendar, calendar,
)  # fmt: skip
