"""What the user tells about himself, and asks back later."""

from i3lm.data.conversations.dice import Dice, reserved
from i3lm.data.conversations.flows import Slots, capital
from i3lm.data.conversations.lexicon import (
    ANIMALS_LIKED,
    BOYS,
    CITIES,
    COLOURS,
    DRINKS,
    FOODS,
    GIRLS,
    HOBBIES,
    JOBS,
    MADE_UP,
    MONTHS,
    NAMES,
    PET_NAMES,
    PETS,
    number_word,
)
from i3lm.data.conversations.talk import Talk

# kind: (statements, answers, questions, answers to them, answer when it was never told)
ABOUT_ME = {
    "name": (
        ("My name is {x}.", "My name is {x}.", "I am {x}.", "Call me {x}.", "You can call me {x}.",
         "Hi, I am {x}.", "Hello, my name is {x}.", "I am called {x}.", "It is me, {x}."),
        ("Nice to meet you, {x}!", "Hello {x}! Nice to meet you."),
        ("What is my name?", "What is my name?", "Who am I?", "Do you know my name?",
         "Do you remember my name?", "Do you know me?",
         "Do you know who I am?", "What am I called?", "Can you tell me my name?"),
        ("Your name is {x}.",),
        "I do not know your name yet. What is your name?",
    ),
    "age": (
        ("I am {x} years old.", "I am {x}.", "My age is {x}.", "I am {n} years old."),
        ("{X} is a good age!", "{X} years old! That is nice."),
        ("How old am I?", "How old am I?", "What is my age?", "Do you know my age?",
         "Do you know how old I am?"),
        ("You are {x} years old.",),
        "I do not know how old you are.",
    ),
    "city": (
        ("I live in {x}.", "I am from {x}.", "My home is in {x}.", "I come from {x}."),
        ("{X} is a nice place.", "I hope you like {x}."),
        ("Where do I live?", "Where is my home?", "What city do I live in?",
         "Do you know where I live?"),
        ("You live in {x}.",),
        "I do not know where you live.",
    ),
    "colour": (
        ("My favourite colour is {x}.", "I like the colour {x}.", "{X} is my favourite colour.",
         "I like {x} best."),
        ("{X} is a beautiful colour.", "{X} is a nice colour."),
        ("What is my favourite colour?", "Which colour do I like?",
         "Do you know my favourite colour?"),
        ("Your favourite colour is {x}.",),
        "I do not know your favourite colour yet.",
    ),
    "food": (
        ("I like {x}.", "My favourite food is {x}.", "I love to eat {x}.", "I like to eat {x}."),
        ("I hear that {x} can be very good.", "Many people like {x}."),
        ("What is my favourite food?", "What do I like to eat?", "Which food do I like?"),
        ("You like {x}.",),
        "I do not know what you like to eat.",
    ),
    "drink": (
        ("I like to drink {x}.", "My favourite drink is {x}."),
        ("{X} is a good drink.",),
        ("What is my favourite drink?", "What do I like to drink?"),
        ("You like to drink {x}.",),
        "I do not know what you like to drink.",
    ),
    "animal": (
        ("My favourite animals are {x}.", "I like {x}.", "I love {x}."),
        ("{X} are wonderful animals.", "I like {x}, too."),
        ("What are my favourite animals?", "Which animals do I like?"),
        ("You like {x}.",),
        "I do not know which animals you like.",
    ),
    "hobby": (
        ("My hobby is {x}.", "I enjoy {x}.", "I like {x} very much.", "{X} is my hobby."),
        ("{X} is a nice hobby.", "{X} sounds like fun!"),
        ("What is my hobby?", "What do I enjoy?", "What do I like to do?"),
        ("Your hobby is {x}.",),
        "I do not know your hobby yet.",
    ),
    "job": (
        ("I am {x}.", "I work as {x}.", "My job is to be {x}."),
        ("It must be interesting to be {x}.", "That is a good job."),
        ("What is my job?", "What do I do for work?", "Do you know my job?"),
        ("You are {x}.",),
        "I do not know your job.",
    ),
    "birthday": (
        ("My birthday is in {x}.", "I was born in {x}.", "I have my birthday in {x}."),
        ("{X} is a nice month for a birthday.",),
        ("When is my birthday?", "In which month is my birthday?", "When was I born?"),
        ("Your birthday is in {x}.",),
        "I do not know when your birthday is.",
    ),
    "brother": (
        ("My brother is called {x}.", "I have a brother. His name is {x}.",
         "I have a brother called {x}.", "My brother's name is {x}."),
        ("{X} is a nice name for a brother.",),
        ("What is my brother called?", "What is the name of my brother?", "Who is my brother?",
         "What is my brother's name?"),
        ("Your brother is called {x}.",),
        "I do not know the name of your brother.",
    ),
    "sister": (
        ("My sister is called {x}.", "I have a sister. Her name is {x}.",
         "I have a sister called {x}.", "My sister's name is {x}."),
        ("{X} is a nice name for a sister.",),
        ("What is my sister called?", "What is the name of my sister?", "Who is my sister?",
         "What is my sister's name?"),
        ("Your sister is called {x}.",),
        "I do not know the name of your sister.",
    ),
    "friend": (
        ("My best friend is called {x}.", "{X} is my best friend.", "My best friend is {x}.",
         "My friend is called {x}."),
        ("It is nice to have a friend like {x}.",),
        ("Who is my best friend?", "What is my friend called?", "What is the name of my friend?"),
        ("Your friend is called {x}.",),
        "I do not know the name of your friend.",
    ),
}  # fmt: skip
CHOICES = {
    "name": NAMES, "city": CITIES, "colour": COLOURS, "food": FOODS, "hobby": HOBBIES, "job": JOBS,
    "age": tuple(number_word(n) for n in range(4, 90)), "brother": BOYS, "sister": GIRLS,
    "friend": NAMES, "birthday": MONTHS, "drink": DRINKS, "animal": ANIMALS_LIKED,
}  # fmt: skip
_DIGITS = {number_word(n): str(n) for n in range(100)}
_NAMED = ("name", "friend")  # now and then a made-up name
KINDS = (*ABOUT_ME, "pet")
_RELATED = ("brother", "sister", "friend")
# what no other topic speaks of, so that the assistant can say that it was never told
PRIVATE = ("name", "age", "city", "job", "brother", "sister", "pet")


def tell(talk: Talk, kind: str, value: str) -> None:
    """The user tells something about himself."""
    dice = talk.dice
    statements, answers, *_ = ABOUT_ME[kind]
    talk.told[kind] = value
    slots = Slots(dice, x=value, X=capital(value), n=digits(value))
    said = dice.lean(statements)
    if said == "I am {x}." and kind == "age" and "job" in talk.told:
        said = "I am {x} years old."
    said = slots.fill(said)
    if talk.messages and said.startswith(("Hi, ", "Hello, ")):
        said = capital(said.split(", ", 1)[1])
    if kind == "name" and dice.chance(0.15):
        asked = dice.pick(("And you?", "What is your name?", "And who are you?"))
        talk.turn(f"{said} {asked}", f"Nice to meet you, {value}! My name is i3.")
    else:
        talk.turn(said, slots.fill(dice.pick(answers)))


def _first_person(kind: str, value: str) -> str:
    """Return a fact as the user says it, inside a sentence: `my name is Anna`, `I am ten ...`."""
    said = ABOUT_ME[kind][3][0].replace("{x}", value)
    if said.startswith("Your "):
        return f"my {said[5:]}"
    return said.replace("You are ", "I am ").replace("You ", "I ")


def tell_both(talk: Talk, name: str, kind: str, value: str) -> None:
    """The user tells his name and something else at once."""
    talk.told["name"], talk.told[kind] = name, value
    first = talk.dice.pick((f"My name is {name}", f"I am {name}"))
    talk.turn(f"{first} and {_first_person(kind, value)}", f"Nice to meet you, {name}!")


def ask(talk: Talk, kind: str) -> None:
    """The user asks what he told, or did not tell."""
    _, _, questions, answers, unknown = ABOUT_ME[kind]
    value = talk.told.get(kind)
    dice = talk.dice
    if value is None:
        talk.turn(dice.lean(questions), unknown)
        if kind == "name" and dice.chance(0.6):
            while True:
                name = draw(dice, kind)
                if not is_reserved({**talk.told, kind: name}):
                    break
            tell(talk, kind, name)
    elif kind in _RELATED and dice.chance(0.2):
        talk.turn(f"Who is {value}?", f"{value} is your {kind}.")
    else:
        answer = Slots(dice, x=value, X=capital(value)).fill(dice.pick(answers))
        talk.turn(dice.lean(questions), answer)


def digits(value: str) -> str:
    """Return a number word in digits, anything else as it is."""
    return _DIGITS.get(value, value)


def correct(talk: Talk, kind: str, value: str) -> None:
    """The user tells another value than before, and the new one counts from now on."""
    old = talk.told[kind]
    talk.told[kind] = value
    new = ABOUT_ME[kind][3][0].replace("{x}", value)
    said = _first_person(kind, value)
    begin = talk.dice.pick(("No, sorry, ", f"I am not {old}, ", "I was wrong, "))
    if kind != "name" and begin.startswith("I am not"):
        begin = "Sorry, "
    talk.turn(f"{begin}{said}", f"All right. {new}")


def tell_pet(talk: Talk, pet: str, name: str) -> None:
    """The user tells of a pet."""
    talk.told["pet"], talk.told["pet name"] = pet, name
    if talk.dice.chance(0.2):
        talk.turn(f"I have a {pet}.", f"How nice! What is your {pet} called?")
        said = talk.dice.pick((f"{name}.", f"Its name is {name}.", f"It is called {name}."))
        talk.turn(said, f"{name} is a lovely name.")
        return
    said = talk.dice.pick(
        (f"I have a {pet}. Its name is {name}.", f"My {pet} is called {name}.",
         f"I have a {pet} called {name}.", f"I have a {pet} and it is called {name}.",
         f"My {pet}'s name is {name}.")
    )  # fmt: skip
    talk.turn(
        said, talk.dice.pick((f"{name} is a nice name for a {pet}.", f"{name} is a lovely name."))
    )


def ask_pet(talk: Talk) -> None:
    """The user asks about the pet that he told of, or has not told of."""
    dice = talk.dice
    pet, name = talk.told.get("pet"), talk.told.get("pet name")
    if pet is None:
        pet = dice.pick(PETS)
        talk.turn(f"What is my {pet} called?", f"I do not know the name of your {pet}.")
    elif dice.chance(0.7):
        asked = (f"What is my {pet} called?", f"What is the name of my {pet}?",
                 f"Do you know the name of my {pet}?", f"What is my {pet}'s name?")  # fmt: skip
        talk.turn(dice.pick(asked), f"Your {pet} is called {name}.")
    elif dice.chance(0.5):
        talk.turn(
            dice.pick(("What pet do I have?", "Which animal do I have?", "Do I have a pet?")),
            f"You have a {pet} called {name}.",
        )
    else:
        talk.turn(f"Who is {name}?", f"{name} is your {pet}.")


def summary(talk: Talk) -> None:
    """The user asks what the assistant knows about him."""
    told = [kind for kind in ABOUT_ME if kind in talk.told][:2]
    said = [ABOUT_ME[k][3][0].replace("{x}", talk.told[k])[:-1] for k in told]
    if "pet" in talk.told and len(said) < 2:
        said.append(f"You have a {talk.told['pet']} called {talk.told['pet name']}")
    asked = talk.dice.pick(("What do you know about me?", "Tell me about me.",
                            "What did I tell you?"))  # fmt: skip
    if not said:
        talk.turn(asked, "I do not know much about you yet.")
    elif len(said) == 1:
        talk.turn(asked, f"{said[0]}.")
    else:
        talk.turn(asked, f"{said[0]} and {said[1][0].lower()}{said[1][1:]}.")


def is_reserved(told: dict[str, str]) -> bool:
    """Return whether what was told together is kept for held-out questions."""
    pairs = [(kind, value) for kind, value in told.items() if kind not in ("name", "pet")]
    return any(reserved(kind, told["name"], value) for kind, value in pairs if "name" in told) or (
        "pet" in told and reserved("pet", told["pet"], told["pet name"])
    )


def draw(dice: Dice, kind: str) -> str:
    """Draw a value."""
    if kind in _NAMED and dice.chance(0.2):
        return dice.pick(MADE_UP)
    return dice.pick(CHOICES[kind])


def choose_facts(talk: Talk, kinds: list[str], held_out: bool = False) -> dict[str, str]:
    """Draw a value for each kind ("pet" too), until the combination is as wanted."""
    dice = talk.dice
    while True:
        facts: dict[str, str] = {}
        for kind in kinds:
            if kind == "pet":
                facts["pet"] = dice.pick(PETS)
                facts["pet name"] = dice.pick(PET_NAMES)
            else:
                facts[kind] = draw(dice, kind)
        people = [facts[k] for k in ("name", "brother", "sister", "friend") if k in facts]
        if is_reserved(facts) == held_out and len(set(people)) == len(people):
            return facts
