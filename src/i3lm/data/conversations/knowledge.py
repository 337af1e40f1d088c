"""Talk about the world: animals, colours, opposites, numbers, days, weather, things."""

from i3lm.data.conversations.dice import reserved
from i3lm.data.conversations.lexicon import DAYS, MONTHS, number_word
from i3lm.data.conversations.talk import Talk
from i3lm.data.conversations.world import (
    ANIMALS,
    COLOUR_OF,
    OPPOSITES,
    SEASONS,
    THINGS,
    plural,
)  # fmt: skip

Sum = tuple[str, int, int]  # "plus", "minus" or "times", and the two numbers
WEATHER = (
    ("It is raining.", "Then take an umbrella with you."),
    ("It is sunny today.", "How nice! You could go for a walk."),
    ("It is snowing!", "Put on a warm coat and make a snowman."),
    ("It is windy.", "Hold on to your hat!"),
    ("It is very cold outside.", "Put on a warm coat."),
    ("It is very hot today.", "Drink some water and stay in the shade."),
    ("How is the weather?", "I can not see outside. What is the weather like?"),
    ("What is the weather like?", "I can not see outside. Is it sunny?"),
    ("Is it raining?", "I do not know, I can not see outside."),
    ("What should I wear in the rain?", "Wear a rain coat and boots."),
    ("What should I wear in winter?", "Wear a warm coat, a hat and gloves."),
    ("What should I wear in summer?", "Wear a light shirt and a hat."),
)
LEGS = {0: "no legs", 2: "two legs", 4: "four legs", 6: "six legs"}


def animals(talk: Talk) -> None:
    """One or two questions about an animal."""
    animal = talk.dice.pick(tuple(ANIMALS))
    for question, answer in talk.dice.shuffled(animal_facts(animal))[: talk.dice.between(1, 2)]:
        talk.turn(question, answer)


def animal_facts(animal: str) -> list[tuple[str, str]]:
    """Return all questions and answers about an animal."""
    food, home, voice, legs, young = ANIMALS[animal]
    a = f"{'an' if animal[0] in 'aeiou' else 'a'} {animal}"
    many = plural(animal)
    baby = f"{'an' if young[0] in 'aeiou' else 'a'} {young}"
    return [
        (f"What do {many} eat?", f"{many.capitalize()} eat {food}."),
        (f"What does {a} eat?", f"{a.capitalize()} eats {food}."),
        (f"Where do {many} live?", f"{many.capitalize()} live {home}."),
        (f"Where does {a} live?", f"{a.capitalize()} lives {home}."),
        (f"What sound does {a} make?", f"{a.capitalize()} {voice}."),
        (f"What does {a} say?", f"{a.capitalize()} {voice}."),
        (f"How many legs does {a} have?", f"{a.capitalize()} has {LEGS[legs]}."),
        (f"What is a baby {animal} called?", f"A baby {animal} is called {baby}."),
    ]


def colours(talk: Talk) -> None:
    """The colour of a thing."""
    thing = talk.dice.pick(tuple(COLOUR_OF))
    word = talk.dice.pick(("colour", "colour", "color"))
    verb = "are" if thing.endswith("clouds") else "is"
    asked = talk.dice.pick((f"What {word} {verb} {thing}?", f"Which {word} {verb} {thing}?"))
    talk.turn(asked, f"{thing[0].upper()}{thing[1:]} is {COLOUR_OF[thing]}.")


def opposites(talk: Talk) -> None:
    """One or two opposites."""
    for word in talk.dice.shuffled(tuple(OPPOSITES))[: talk.dice.between(1, 2)]:
        asked = talk.dice.pick(
            (f"What is the opposite of {word}?", f"What's the opposite of {word}?")
        )
        talk.turn(asked, f"The opposite of {word} is {OPPOSITES[word]}.")


def things(talk: Talk) -> None:
    """What things are, are for, or come from."""
    question = talk.dice.pick(tuple(THINGS))
    talk.turn(question, THINGS[question])


def weather(talk: Talk) -> None:
    """Weather and clothes."""
    talk.turn(*talk.dice.pick(WEATHER))


def calendar(talk: Talk) -> None:
    """Days, months and seasons."""
    names = talk.dice.pick((DAYS, MONTHS))
    i = talk.dice.between(0, len(names) - 1)
    before, name, after = names[i - 1], names[i], names[(i + 1) % len(names)]
    word = "day" if names is DAYS else "month"
    if talk.dice.chance(0.25):
        season = talk.dice.pick(tuple(SEASONS))
        kind, what = SEASONS[season]
        if talk.dice.chance(0.5):
            talk.turn(f"Is it cold in {season}?", f"In {season} it is {kind}.")
        else:
            talk.turn(f"What happens in {season}?", f"In {season} {what}.")
    elif talk.dice.chance(0.5):
        talk.turn(f"What {word} comes after {name}?", f"{after} comes after {name}.")
    else:
        talk.turn(f"What {word} comes before {name}?", f"{before} comes before {name}.")


def result(sum_: Sum) -> int:
    """Return the value of a sum."""
    operation, a, b = sum_
    return a + b if operation == "plus" else a - b if operation == "minus" else a * b


def draw_sum(talk: Talk, held_out: bool = False) -> Sum:
    """Draw a small sum, kept for held-out questions or not."""
    while True:
        operation = talk.dice.pick(("plus", "plus", "minus", "times"))
        if operation == "times":
            a, b = talk.dice.between(1, 5), talk.dice.between(1, 9)
        else:
            a, b = talk.dice.between(1, 10), talk.dice.between(1, 10)
        if operation == "minus" and b > a:
            a, b = b, a
        if reserved(operation, a, b) == held_out:
            return operation, a, b


def sum_question(talk: Talk, sum_: Sum) -> str:
    """Return a way to ask for a sum."""
    operation, a, b = sum_
    one, two = number_word(a), number_word(b)
    if talk.dice.chance(0.2):
        one, two = str(a), str(b)
    return talk.dice.pick(
        (
            f"What is {one} {operation} {two}?",
            f"What is {one} {operation} {two}?",
            f"How much is {one} {operation} {two}?",
            f"{one.capitalize()} {operation} {two}?",
        )
    )


def arithmetic(talk: Talk) -> None:
    """One to three sums, or a question about numbers."""
    for _ in range(talk.dice.between(1, 3)):
        if talk.dice.chance(0.75):
            sum_ = draw_sum(talk)
            operation, a, b = sum_
            answer = f"{number_word(a)} {operation} {number_word(b)} is {number_word(result(sum_))}"
            talk.turn(sum_question(talk, sum_), f"{answer[0].upper()}{answer[1:]}.")
            continue
        n = talk.dice.between(1, 30)
        word, before, after = number_word(n), number_word(n - 1), number_word(n + 1)
        question, answer = talk.dice.pick(
            (
                (f"What number comes after {word}?", f"{after.capitalize()} comes after {word}."),
                (
                    f"What number comes before {word}?",
                    f"{before.capitalize()} comes before {word}.",
                ),
                (f"Which is bigger, {word} or {after}?", f"{after.capitalize()} is bigger."),
                (f"Which is smaller, {word} or {after}?", f"{word.capitalize()} is smaller."),
            )
        )
        talk.turn(question, answer)
