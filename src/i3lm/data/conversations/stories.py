"""Very short stories, questions about them, jokes and riddles."""

from i3lm.data.conversations.flows import Slots, capital
from i3lm.data.conversations.lexicon import BOYS, GIRLS, with_article
from i3lm.data.conversations.talk import Talk

HEROES = ("dog", "cat", "rabbit", "bird", "bear", "mouse", "duck", "fox", "frog", "horse", "owl",
          "lion", "monkey", "cow", "pig", "elephant", "fish", "robot", "turtle")  # fmt: skip
PEOPLE = ("girl", "boy", "king", "queen", "farmer", "baker", "princess", "prince", "sailor")
WOMEN, MEN = ("girl", "queen", "princess"), ("boy", "king", "prince")
# the first is not said of children
KINDS = ("old", "little", "brave", "lazy", "kind", "funny", "young", "clever", "shy", "small")
PLACES = ("in a forest", "by the sea", "on a farm", "in a small house", "near a river",
          "in a garden", "on a hill", "in a big city", "in a village", "near a lake")  # fmt: skip
VALUES = {
    "lost": ("ball", "hat", "key", "book", "cake", "lamp", "boat", "drum", "bell", "map", "ring"),
    "found": ("under a tree", "behind a door", "in a box", "near a stone", "in the grass",
              "under a bed", "in the water", "on a roof"),
    "wish": ("fly", "swim", "sing", "dance", "read", "climb", "paint", "skate"),
    "way": ("tried every day", "asked a friend for help", "worked hard", "practised at night"),
    "meal": ("bread", "soup", "cake", "cheese", "honey", "rice"),
    "seed": ("apple tree", "rose", "sunflower", "pear tree", "tulip"),
    "weather": ("heavy rain", "a big storm", "a strong wind", "deep snow"),
    "home": ("a cave", "an old house", "a barn", "a hollow tree"),
    "gift": ("a scarf", "a drum", "a kite", "a lamp", "a song", "a flower"),
    "noise": ("an owl", "the wind", "a mouse", "an old door", "a little cat"),
    "made": ("a boat", "a kite", "a house", "a big cake", "a snowman"),
    "job": ("carry water", "clean the house", "pick apples", "paint the door"),
    "far": ("the moon", "the sea", "the high mountain", "the big city", "the old castle"),
    "felt": ("sad", "lonely", "afraid", "bored"),
}  # fmt: skip
# plot: what happens, and (question, answer) pairs; {name} {he} {his} {him} {friend} are people
PLOTS = (
    ("One day {name} lost a {lost}. {He} looked everywhere. At last {name} found the {lost} "
     "{found} and was happy.",
     (("What did {name} lose?", "{name} lost a {lost}."),
      ("Where was the {lost}?", "The {lost} was {found}."),
      ("Where did {name} find the {lost}?", "{name} found the {lost} {found}."))),
    ("{name} wanted to {wish}, but {he} could not. {name} {way}, and soon {he} could {wish} very "
     "well.",
     (("What did {name} want?", "{name} wanted to {wish}."),
      ("What did {name} want to do?", "{name} wanted to {wish}."),
      ("What did {name} do?", "{name} {way}."))),
    ("One day {name} met {a_friend}. They ate {meal} together and became good friends.",
     (("Who did {name} meet?", "{name} met {a_friend}."),
      ("What did they eat?", "They ate {meal} together."))),
    ("{name} planted {a_seed}. {He} gave it water every day. In summer it was big and beautiful, "
     "and {name} was proud.",
     (("What did {name} plant?", "{name} planted {a_seed}."),
      ("Was {name} proud?", "Yes, {name} was proud."))),
    ("One day {weather} came, and {name} was cold. {He} found {home} and was safe and warm.",
     (("What came?", "{Weather} came."),
      ("Where was {name} safe?", "{name} was safe in {home}."))),
    ("{name} had no friends and was {felt}. Then {a_friend} gave {him} {gift}. From that day they "
     "played together.",
     (("Who gave {name} {gift}?", "{A_friend} gave {name} {gift}."),
      ("What did {name} get?", "{name} got {gift}."),
      ("How did {name} feel?", "{name} was {felt}."))),
    ("One night {name} heard a noise and was afraid. But it was only {noise}. {name} laughed and "
     "went to sleep.",
     (("What was the noise?", "It was only {noise}."),
      ("What did {name} hear?", "{name} heard {noise}."))),
    ("{name} wanted to make {made}. {A_friend} came to help. They worked all day, "
     "and in the evening it was done.",
     (("What did {name} make?", "{name} made {made}."),
      ("Who helped {name}?", "{A_friend} helped {name}."))),
    ("{name} did not like to {job}. But one day {he} did it with {a_friend}, and it was fun.",
     (("What did {name} not like?", "{name} did not like to {job}."),
      ("Who was with {name}?", "{A_friend} was with {name}."))),
    ("{name} wanted to see {far}. {He} walked for many days. {Far} was beautiful, but "
     "home was best.",
     (("What did {name} want to see?", "{name} wanted to see {far}."),
      ("What was best?", "Home was best."))),
    ("One day {a_friend} fell into the water. {name} pulled it out. The {friend} said thank "
     "you and gave {name} some {meal}.",
     (("Who fell into the water?", "{A_friend} fell into the water."),
      ("What did {name} do?", "{name} pulled it out."),
      ("What did {name} get?", "{name} got some {meal}."))),
    ("{name} had some {meal}, and {a_friend} had none. So they shared it, and both were happy.",
     (("What did {name} have?", "{name} had some {meal}."),
      ("What did {name} share?", "{name} shared the {meal}."),
      ("Who had none?", "{A_friend} had none."))),
)  # fmt: skip
ASKS = ("Tell me a story.", "Can you tell me a story?", "I want to hear a story.", 
        "A story, please.", "Please tell me a story.", "Do you know a story?",
        "Tell me a short story.")  # fmt: skip
MORE = ("Tell me another story.", "Another story, please.", "One more story.")
JOKE_ASKS = ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Tell me something funny.",
             "Tell me another joke.", "Can you tell me a joke?",
             "Say something funny.")  # fmt: skip
RIDDLE_ASKS = ("Tell me a riddle.", "Do you know a riddle?", "Ask me a riddle.")
RIDDLES = (
    ("What has hands but cannot clap?", "clock"), ("What gets wet while it dries?", "towel"),
    ("What has keys but opens no door?", "piano"), ("What has teeth but cannot bite?", "comb"),
    ("What has legs but cannot walk?", "table"), ("What has pages but is no tree?", "book"),
    ("What is full of holes but holds water?", "sponge"), ("What has one eye but cannot see?",
    "needle"), ("What runs but has no legs?", "river"), ("What has a neck but no head?", "bottle"),
)  # fmt: skip
JOKES = (
    "Why did the hen cross the road? To get to the other side!",
    "What is brown and sticky? A stick!",
    "Why was the maths book sad? It had too many problems!",
    "What do you call a bear with no teeth? A gummy bear!",
    "Why do bees hum? They do not know the words!",
    "What did one wall say to the other wall? We meet at the corner!",
    "Why did the cookie see a doctor? It felt crumby!",
    "What do you call a sleeping cow? A bulldozer!",
    "Where do cows go on Sunday? To the moo-vies!",
)
AFTER = ("That is a nice story.", "I like this story.", "What a nice story!", "Good story!")
AFTER_ANSWERS = ("I am glad that you like it.", "Thank you! I like it, too.")
_JOKE_ANSWERS = (
    ("Haha!", "I am glad that you like it."),
    ("That is funny.", "I am glad that you like it."),
    ("That is not funny.", "I am sorry. I know only simple jokes."),
)


def story(talk: Talk, asked: str | None = None) -> None:
    """A story of a hero, perhaps of the user's choice, and questions about it.

    `asked` is what the user says to get it; None: one of the usual ways.
    """
    dice = talk.dice
    hero = dice.pick(HEROES if dice.chance(0.65) else PEOPLE)
    girl = hero in WOMEN or (hero not in MEN and dice.chance(0.5))
    name = dice.pick(GIRLS if girl else BOYS)
    he, his, him = ("she", "her", "her") if girl else ("he", "his", "him")
    if asked is None:
        asked = dice.lean(ASKS)
        about = dice.between(0, 5)
        if about < 3:
            asked = f"{asked[:-1]} about {with_article(hero)}{asked[-1]}".replace(", please", "")
        elif about == 3:
            asked = f"Tell me a story about {with_article(hero)} called {name}."
    kind = dice.pick(KINDS[1:] if hero in ("girl", "boy") else KINDS)
    place = dice.pick(PLACES)
    slots = Slots(dice, name=name, he=he, his=his, him=him)
    slots.update({key: dice.pick(values) for key, values in VALUES.items()})
    slots["friend"] = dice.pick([h for h in HEROES if h != hero])
    start = f"Once there was {with_article(kind)} {hero} called {name} who lived {place}."
    plot, asks = dice.pick(PLOTS)
    questions = [
        (f"What was the {hero} called?", f"The {hero} was called {name}."),
        (f"Where did {name} live?", f"{name} lived {place}."),
        (f"Who was {name}?", f"{name} was {with_article(kind)} {hero}."),
        *asks,
        *asks,
    ]
    talk.turn(asked, f"{start} {slots.fill(plot)}")
    seen: set[str] = set()
    for question, answer in dice.sample(questions, dice.between(0, 3)):
        if answer not in seen:
            seen.add(answer)
            talk.turn(slots.fill(question), capital(slots.fill(answer)))
    if dice.chance(0.2):
        talk.turn(dice.pick(AFTER), dice.pick(AFTER_ANSWERS))


def joke(talk: Talk) -> None:
    """A joke or a riddle."""
    dice = talk.dice
    if dice.chance(0.5):
        talk.turn(dice.lean(JOKE_ASKS), dice.pick(JOKES))
        if dice.chance(0.3):
            talk.turn(*dice.pick(_JOKE_ANSWERS))
        return
    riddle, thing = dice.pick(RIDDLES)
    talk.turn(dice.pick(RIDDLE_ASKS), riddle)
    if dice.chance(0.5):
        said = dice.pick((f"{capital(with_article(thing))}.", f"Is it a {thing}?", f"A {thing}!"))
        talk.turn(said, f"Yes, it is {with_article(thing)}! Well done.")
    else:
        said = dice.pick(("I do not know.", "Tell me.", "What is it?", "I give up."))
        talk.turn(said, f"It is {with_article(thing)}!")


def sequel(talk: Talk) -> None:
    """Two stories in a row."""
    story(talk)
    story(talk, talk.dice.pick(MORE))
