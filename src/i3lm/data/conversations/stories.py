"""Very short stories, questions about them, and jokes."""

from i3lm.data.conversations.lexicon import BOYS, GIRLS, NAMES, with_article
from i3lm.data.conversations.talk import Talk

HEROES = ("dog", "cat", "rabbit", "bird", "bear", "mouse", "duck", "fox", "frog", "horse", "owl")
PEOPLE = ("girl", "boy", "king", "queen", "farmer", "baker")
NAMES_OF = {"girl": GIRLS, "queen": GIRLS, "boy": BOYS, "king": BOYS}
KINDS = ("little", "brave", "lazy", "kind", "funny", "young", "old", "clever", "shy")
PLACES = ("in a forest", "by the sea", "on a farm", "in a small house", "near a river",
          "in a garden", "on a hill", "in a big city")  # fmt: skip
LOST = ("ball", "hat", "key", "book", "cake", "lamp", "boat", "drum", "bell", "map")
FOUND = ("under a tree", "behind a door", "in a box", "near a stone", "in the grass",
         "under the bed", "in the water")  # fmt: skip
WANTED = ("fly", "swim", "sing", "dance", "read", "climb")
TRIES = ("tried every day", "asked a friend for help", "worked hard", "practised at night")
MEALS = ("bread", "soup", "cake", "apples", "cheese", "honey")
ASKS = ("Tell me a story.", "Can you tell me a story?", "I want to hear a story.",
        "Please tell me a story.")  # fmt: skip
JOKES = (
    ("Why did the hen cross the road? To get to the other side!"),
    ("What is brown and sticky? A stick!"),
    ("What has hands but can not clap? A clock!"),
    ("What gets wet while it dries? A towel!"),
    ("What has keys but opens no door? A piano!"),
    ("What has teeth but can not bite? A comb!"),
    ("What goes up but never comes down? Your age!"),
)
AFTER = ("That is a nice story.", "I like this story.", "What a nice story!")
AFTER_ANSWERS = ("I am glad that you like it.", "Thank you! I like it, too.")


def story(talk: Talk, asked: str | None = None) -> None:
    """A story of three sentences, perhaps about a hero of the user's choice, and questions.

    `asked` is what the user says to get it; None: one of the usual ways.
    """
    dice = talk.dice
    hero = dice.pick(HEROES if dice.chance(0.7) else PEOPLE)
    if asked is None:
        asked = dice.pick(ASKS)
        if dice.chance(0.5):
            asked = f"{asked[:-1]} about {with_article(hero)}{asked[-1]}"
    kind, place = dice.pick(KINDS), dice.pick(PLACES)
    name = dice.pick(NAMES_OF.get(hero, NAMES))
    start = f"Once there was {with_article(kind)} {hero} called {name} who lived {place}."
    questions = [
        (f"What was the {hero} called?", f"The {hero} was called {name}."),
        (f"Where did {name} live?", f"{name} lived {place}."),
        (f"Who was {name}?", f"{name} was {with_article(kind)} {hero}."),
    ]
    plot = dice.between(0, 2)
    if plot == 0:
        thing, where = dice.pick(LOST), dice.pick(FOUND)
        rest = f"One day {name} lost a {thing}. At last {name} found it {where} and was happy."
        questions += [
            (f"What did {name} lose?", f"{name} lost a {thing}."),
            (f"Where was the {thing}?", f"The {thing} was {where}."),
        ]
    elif plot == 1:
        wish, way = dice.pick(WANTED), dice.pick(TRIES)
        rest = f"{name} wanted to {wish}. {name} {way}, and soon {name} could {wish} very well."
        questions += [
            (f"What did {name} want?", f"{name} wanted to {wish}."),
            (f"What did {name} do?", f"{name} {way}."),
        ]
    else:
        friend = dice.pick([h for h in HEROES if h != hero])
        meal = dice.pick(MEALS)
        rest = (
            f"One day {name} met {with_article(friend)}. They ate {meal} together and became "
            "good friends."
        )
        questions += [
            (f"Who did {name} meet?", f"{name} met {with_article(friend)}."),
            ("What did they eat?", f"They ate {meal} together."),
        ]
    talk.turn(asked, f"{start} {rest}")
    for question, answer in dice.shuffled(questions)[: dice.between(0, 2)]:
        talk.turn(question, answer)
    if dice.chance(0.2):
        talk.turn(dice.pick(AFTER), dice.pick(AFTER_ANSWERS))


def joke(talk: Talk) -> None:
    """A joke."""
    asked = talk.dice.pick(("Tell me a joke.", "Do you know a joke?", "Make me laugh."))
    talk.turn(asked, talk.dice.pick(JOKES))
