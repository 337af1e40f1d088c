"""Talk about the user and about the assistant: names, facts told and asked back, feelings."""

from i3lm.data.conversations.dice import reserved
from i3lm.data.conversations.lexicon import (
    BOYS,
    CITIES,
    COLOURS,
    FOODS,
    GIRLS,
    HOBBIES,
    JOBS,
    NAMES,
    PET_NAMES,
    PETS,
    number_word,
)
from i3lm.data.conversations.stories import story
from i3lm.data.conversations.talk import Talk

GREETINGS = (
    ("Hi!", "Hello! How are you?"),
    ("Hello!", "Hello! Nice to meet you."),
    ("Hey!", "Hey! What do you want to talk about?"),
    ("Good morning!", "Good morning! Did you sleep well?"),
    ("Good evening!", "Good evening! How was your day?"),
    ("Good afternoon!", "Good afternoon! How is your day?"),
    ("Hi there!", "Hi! It is nice to talk with you."),
    ("Hello, how are you?", "I am fine, thank you. How are you?"),
    ("How are you?", "I am fine, thank you. And you?"),
    ("How are you doing?", "I am doing well, thank you. And you?"),
    ("How are you today?", "I am fine today, thank you. And you?"),
    ("What's up?", "Not much. I am happy to talk with you."),
    ("Can we talk?", "Of course! What do you want to talk about?"),
    ("Are you there?", "Yes, I am here. How can I help you?"),
    ("Nice to meet you.", "Nice to meet you, too!"),
)
WELL = (
    ("I am fine.", "I am glad to hear that."),
    ("I am fine, thank you.", "That is good to hear."),
    ("I'm good.", "Good! What shall we talk about?"),
    ("Good.", "I am glad to hear that."),
    ("Not bad.", "That is good to hear."),
    ("Very well, thanks.", "I am glad to hear that."),
    ("Not so good.", "I am sorry to hear that. What happened?"),
    ("Bad.", "I am sorry to hear that. What happened?"),
)
YES_OR_NO = (
    ("Yes.", "I am glad to hear that."),
    ("Yes, thank you.", "That is good to hear."),
    ("No.", "I am sorry to hear that."),
    ("Not really.", "I am sorry to hear that."),
)
# how the user may answer a question of the assistant's
REPLIES = {
    "How are you?": WELL,
    "And you?": WELL,
    "How was your day?": WELL,
    "How is your day?": WELL,
    "Did you sleep well?": YES_OR_NO,
    "Do you want to talk about it?": (
        ("Yes.", "I am listening. What happened?"),
        ("Yes, please.", "I am listening. Tell me more."),
        ("No.", "All right. I am here if you need me."),
        ("No, thank you.", "All right. I am here if you need me."),
    ),
}
IDENTITY = (
    ("Who are you?", "I am i3, a small language model trained on this computer."),
    ("What are you?", "I am a small language model. My name is i3."),
    ("What is your name?", "My name is i3."),
    ("What's your name?", "My name is i3."),
    ("What should I call you?", "You can call me i3."),
    ("Tell me about yourself.", "I am i3, a small language model. I like short talks."),
    ("Are you a robot?", "No, I am i3, a small language model. I have no body."),
    ("Are you a human?", "No, I am not a human. I am i3, a small language model."),
    ("Are you a person?", "No, I am not a person. I am i3, a small language model."),
    ("Are you real?", "I am a real program, but I am not a person."),
    ("How old are you?", "I have no age. I was trained a short time ago."),
    ("Where do you live?", "I live in this computer."),
    ("Who made you?", "I was trained on this computer with i3lm."),
    ("Do you have a body?", "No, I have no body. I am only a program."),
    ("Do you have a family?", "No, I have no family. But I like to talk with you."),
    ("Do you sleep?", "No, I do not sleep. I wait until you write to me."),
    ("Do you eat?", "No, I do not eat. I am only a program."),
    ("Can you see me?", "No, I can not see. I can only read what you write."),
    ("Can you hear me?", "No, I can not hear. I can only read what you write."),
    ("Are you smart?", "I am small, so I know only simple things."),
    ("Are you big?", "No, I am a very small language model."),
    ("What can you do?", "I can talk about simple things, do small sums and tell short stories."),
    ("What do you know?", "I know simple things about animals, colours, numbers and days."),
    ("Can you help me?", "I will try. What do you need?"),
    ("I need help.", "I will try to help you. What do you need?"),
    ("What do you like?", "I like short talks with friendly people."),
    ("Do you like me?", "Yes, I like to talk with you."),
    ("Are you my friend?", "Yes, I am happy to be your friend."),
    ("Do you speak English?", "Yes, I speak simple English."),
    ("What language do you speak?", "I speak simple English."),
)
UNKNOWN = (
    "Who is the president?", "What is the news today?", "What time is it?", "What is the date?",
    "Who won the game?", "How much does a car cost?", "What is the capital of Peru?",
    "Can you write a program?", "What is the meaning of life?", "Who will win the election?",
    "How do I build a house?", "What is quantum physics?", "Can you call my mother?",
    "What is my password?", "How far is the moon?", "What should I do with my money?",
)  # fmt: skip
UNKNOWN_ANSWERS = (
    "I am sorry, I do not know that.",
    "I do not know that. I know only simple things.",
)
FEELINGS = {
    "sad": "I am sorry that you are sad. Do you want to talk about it?",
    "happy": "I am glad that you are happy!",
    "tired": "You should rest a little.",
    "hungry": "You should eat something.",
    "thirsty": "You should drink some water.",
    "bored": "Shall I tell you a story?",
    "angry": "I am sorry that you are angry. Take a deep breath.",
    "sick": "I am sorry to hear that. I hope you feel better soon.",
    "cold": "Put on a warm coat and drink some tea.",
    "hot": "Drink some cold water and sit in the shade.",
    "scared": "Do not be afraid. I am here with you.",
    "lonely": "I am here. We can talk as long as you like.",
    "worried": "I am sorry that you are worried. Tell me more.",
    "excited": "That is great! Why are you excited?",
}
WHY = {
    "sad": ("I lost my {x}.", ("key", "hat", "book", "ball", "bag"),
            "I hope you find your {x} soon."),
    "happy": ("I got a new {x}.", ("bike", "book", "ball", "hat", "toy"), "A new {x}! How nice."),
    "tired": ("I worked all {x}.", ("day", "night", "week"), "All {x}! Then you need some rest."),
    "excited": ("I will visit my {x}.", ("sister", "uncle", "friend", "aunt"),
                "Have fun with your {x}!"),
    "worried": ("I have a test on {x}.", ("Monday", "Tuesday", "Friday"),
                "I am sure you will do well on {x}."),
}  # fmt: skip
THANKS = (
    ("Thank you!", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("Thank you very much.", "You are welcome. I am glad to help."),
    ("That is nice.", "I am glad that you like it."),
    ("You are funny.", "Thank you! I like to make you smile."),
    ("You are nice.", "Thank you! You are nice, too."),
    ("I like you.", "Thank you! I like you, too."),
    ("Sorry.", "That is all right."),
    ("That is wrong.", "I am sorry. I am small and make mistakes."),
    ("Okay.", "Good! What else do you want to talk about?"),
)
GOODBYES = (
    ("Bye!", "Bye! See you soon."),
    ("Goodbye!", "Goodbye! It was nice to talk with you."),
    ("Good night!", "Good night! Sleep well."),
    ("See you later!", "See you later! Have a nice day."),
    ("I have to go.", "All right. Goodbye, and have a nice day!"),
    ("See you tomorrow!", "See you tomorrow!"),
)
# what the user tells: (statements, answers, questions, answers to them, answer when never told)
ABOUT_ME = {
    "name": (
        ("My name is {x}.", "I am {x}.", "I'm {x}.", "Call me {x}."),
        ("Nice to meet you, {x}!", "Hello {x}! Nice to meet you."),
        ("What is my name?", "Who am I?", "What's my name?", "Do you know my name?"),
        ("Your name is {x}.",),
        "I do not know your name yet.",
    ),
    "age": (
        ("I am {x} years old.", "I'm {x} years old.", "My age is {x}."),
        ("{X} is a good age!", "{X} years old! That is nice."),
        ("How old am I?", "What is my age?", "Do you know my age?"),
        ("You are {x} years old.",),
        "I do not know how old you are.",
    ),
    "city": (
        ("I live in {x}.", "I am from {x}.", "My home is in {x}."),
        ("{X} is a nice place.", "I hope you like {x}."),
        ("Where do I live?", "Where am I from?", "What city do I live in?"),
        ("You live in {x}.",),
        "I do not know where you live.",
    ),
    "colour": (
        ("My favourite colour is {x}.", "I like the colour {x}.", "I love {x}, it is my colour."),
        ("{X} is a beautiful colour.", "I like {x}, too."),
        ("What is my favourite colour?", "Which colour do I like?"),
        ("Your favourite colour is {x}.",),
        "I do not know your favourite colour yet.",
    ),
    "food": (
        ("I like {x}.", "My favourite food is {x}.", "I love to eat {x}."),
        ("I hear that {x} can be very good.", "Many people like {x}."),
        ("What is my favourite food?", "What do I like to eat?"),
        ("You like {x}.",),
        "I do not know what you like to eat.",
    ),
    "hobby": (
        ("My hobby is {x}.", "I enjoy {x}.", "In my free time I do a lot of {x}."),
        ("{X} is a nice hobby.", "{X} sounds like fun!"),
        ("What is my hobby?", "What do I enjoy?"),
        ("Your hobby is {x}.",),
        "I do not know your hobby yet.",
    ),
    "job": (
        ("I am {x}.", "I work as {x}.", "I'm {x}."),
        ("It must be interesting to be {x}.", "That is a good job."),
        ("What is my job?", "What do I do for work?"),
        ("You are {x}.",),
        "I do not know your job.",
    ),
    "brother": (
        ("My brother is called {x}.", "I have a brother. His name is {x}."),
        ("{X} is a nice name for a brother.", "How old is {x}?"),
        ("What is my brother called?", "What is the name of my brother?"),
        ("Your brother is called {x}.",),
        "I do not know your brother.",
    ),
    "sister": (
        ("My sister is called {x}.", "I have a sister. Her name is {x}."),
        ("{X} is a nice name for a sister.", "Is {x} older than you?"),
        ("What is my sister called?", "What is the name of my sister?"),
        ("Your sister is called {x}.",),
        "I do not know your sister.",
    ),
}
CHOICES = {
    "name": NAMES, "city": CITIES, "colour": COLOURS, "food": FOODS, "hobby": HOBBIES, "job": JOBS,
    "age": tuple(number_word(n) for n in range(5, 90)), "brother": BOYS, "sister": GIRLS,
}  # fmt: skip


def fill(template: str, value: str) -> str:
    """Put a value into {x}, or with a capital into {X}."""
    return template.replace("{x}", value).replace("{X}", value[0].upper() + value[1:])


def tell(talk: Talk, kind: str, value: str) -> None:
    """The user tells something about himself."""
    statements, answers, *_ = ABOUT_ME[kind]
    talk.told[kind] = value
    talk.turn(fill(talk.dice.pick(statements), value), fill(talk.dice.pick(answers), value))


def ask(talk: Talk, kind: str) -> None:
    """The user asks what he told, or did not tell."""
    _, _, questions, answers, unknown = ABOUT_ME[kind]
    value = talk.told.get(kind)
    answer = unknown if value is None else fill(talk.dice.pick(answers), value)
    talk.turn(talk.dice.pick(questions), answer)


def tell_pet(talk: Talk, pet: str, name: str) -> None:
    """The user tells of a pet."""
    talk.told["pet"], talk.told["pet name"] = pet, name
    said = talk.dice.pick(
        (f"I have a {pet}. Its name is {name}.", f"My {pet} is called {name}.",
         f"I have a {pet} called {name}.")
    )  # fmt: skip
    talk.turn(said, talk.dice.pick((f"{name} is a nice name for a {pet}.", f"I like {name}!")))


def ask_pet(talk: Talk) -> None:
    """The user asks about the pet that he told of, or has none."""
    pet, name = talk.told.get("pet"), talk.told.get("pet name")
    if pet is None:
        pet = talk.dice.pick(PETS)
        talk.turn(f"What is my {pet} called?", f"I do not know the name of your {pet}.")
    elif talk.dice.chance(0.7):
        asked = talk.dice.pick((f"What is my {pet} called?", f"What is the name of my {pet}?"))
        talk.turn(asked, f"Your {pet} is called {name}.")
    else:
        talk.turn("What pet do I have?", f"You have a {pet} called {name}.")


def is_reserved(told: dict[str, str]) -> bool:
    """Return whether what was told together is kept for held-out questions."""
    pairs = [(kind, told[kind]) for kind in sorted(told) if kind not in ("name", "pet")]
    return any(reserved(kind, told["name"], value) for kind, value in pairs if "name" in told) or (
        "pet" in told and reserved("pet", told["pet"], told["pet name"])
    )


def choose_facts(talk: Talk, kinds: list[str], held_out: bool = False) -> dict[str, str]:
    """Draw a value for each kind ("pet" too), until the combination is as wanted."""
    while True:
        facts: dict[str, str] = {}
        for kind in kinds:
            if kind == "pet":
                facts["pet"] = talk.dice.pick(PETS)
                facts["pet name"] = talk.dice.pick(PET_NAMES)
            else:
                facts[kind] = talk.dice.pick(CHOICES[kind])
        if is_reserved(facts) == held_out:
            return facts


def answer_back(talk: Talk) -> None:
    """The user answers, more often than not, when the assistant has just asked how things are."""
    said = talk.messages[-1]["content"]
    asked = next((question for question in REPLIES if said.endswith(question)), None)
    if asked and talk.dice.chance(0.7):
        talk.turn(*talk.dice.pick(REPLIES[asked]))


def feeling(talk: Talk) -> None:
    """The user tells how he feels, perhaps why."""
    word = talk.dice.pick(tuple(FEELINGS))
    said = talk.dice.pick((f"I am {word}.", f"I'm {word}.", f"I feel {word} today."))
    talk.turn(said, FEELINGS[word])
    if word in WHY and talk.dice.chance(0.6):
        reason, values, answer = WHY[word]
        value = talk.dice.pick(values)
        talk.turn(fill(reason, value), fill(answer, value))
    elif word == "bored" and talk.dice.chance(0.7):
        if talk.dice.chance(0.3):
            talk.turn("No, thank you.", "All right. What do you want to talk about?")
        else:
            story(talk, talk.dice.pick(("Yes.", "Yes, please.", "Yes!", "Okay.")))
    else:
        answer_back(talk)


def out_of_scope(talk: Talk) -> None:
    """The user asks what a small model cannot know."""
    talk.turn(talk.dice.pick(UNKNOWN), talk.dice.pick(UNKNOWN_ANSWERS))


def identity(talk: Talk) -> None:
    """The user asks who the assistant is."""
    for question, answer in talk.dice.shuffled(IDENTITY)[: talk.dice.between(1, 2)]:
        talk.turn(question, answer)
