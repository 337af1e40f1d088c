"""Facts of the world that never change, and how people ask for them."""

# animal: (what it eats, where it lives, what it does with its voice, legs, its young)
ANIMALS = {
    "dog": ("meat and bones", "in a house with people", "barks", 4, "puppy"),
    "cat": ("fish and mice", "in a house with people", "meows", 4, "kitten"),
    "cow": ("grass", "on a farm", "moos", 4, "calf"),
    "horse": ("grass and oats", "on a farm", "neighs", 4, "foal"),
    "sheep": ("grass", "on a farm", "bleats", 4, "lamb"),
    "pig": ("corn and roots", "on a farm", "oinks", 4, "piglet"),
    "duck": ("bread and water plants", "near a pond", "quacks", 2, "duckling"),
    "hen": ("corn and seeds", "on a farm", "clucks", 2, "chick"),
    "owl": ("mice", "in the forest", "hoots", 2, "owlet"),
    "lion": ("meat", "in hot, dry lands", "roars", 4, "cub"),
    "bear": ("fish, berries and honey", "in the forest", "growls", 4, "cub"),
    "wolf": ("meat", "in the forest", "howls", 4, "pup"),
    "frog": ("flies", "near a pond", "croaks", 4, "tadpole"),
    "bee": ("honey and pollen", "in a hive", "buzzes", 6, "grub"),
    "mouse": ("cheese and seeds", "in small holes", "squeaks", 4, "pup"),
    "rabbit": ("carrots and grass", "in a burrow", "squeaks", 4, "bunny"),
    "snake": ("mice and eggs", "under stones", "hisses", 0, "snakelet"),
    "elephant": ("leaves and fruit", "in hot lands", "trumpets", 4, "calf"),
    "monkey": ("fruit and nuts", "in the trees", "chatters", 4, "baby"),
    "bird": ("seeds and worms", "in a nest", "sings", 2, "chick"),
}
PLURALS = {"sheep": "sheep", "wolf": "wolves", "mouse": "mice"}

COLOUR_OF = {
    "a banana": "yellow", "the sky": "blue", "grass": "green", "snow": "white", "coal": "black",
    "a tomato": "red", "the sun": "yellow", "a lemon": "yellow", "blood": "red", "milk": "white",
    "chocolate": "brown", "an elephant": "grey", "a carrot": "orange", "the sea": "blue",
    "a leaf": "green", "a strawberry": "red", "a pig": "pink", "the night": "black",
    "an orange": "orange", "a frog": "green", "a cloud": "white", "bread": "brown",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "happy": "sad", "fast": "slow",
    "old": "young", "wet": "dry", "open": "closed", "full": "empty", "light": "dark",
    "hard": "soft", "long": "short", "rich": "poor", "loud": "quiet", "high": "low",
    "left": "right", "good": "bad", "clean": "dirty", "early": "late", "strong": "weak",
    "black": "white", "in": "out", "yes": "no", "first": "last", "near": "far",
}  # fmt: skip

SEASONS = {
    "winter": ("cold", "snow falls and the days are short"),
    "spring": ("mild", "flowers grow and birds come back"),
    "summer": ("hot", "the sun shines and the days are long"),
    "autumn": ("cool", "leaves fall and apples are ripe"),
}

THINGS = {
    "What do we use an umbrella for?": "We use an umbrella to stay dry in the rain.",
    "What do we use a key for?": "We use a key to open a door.",
    "What do we use a knife for?": "We use a knife to cut bread and other food.",
    "What do we use a clock for?": "We use a clock to know the time.",
    "What do we use a bed for?": "We use a bed to sleep.",
    "What do we use a pen for?": "We use a pen to write.",
    "What do we use soap for?": "We use soap to wash our hands.",
    "What do we use a spoon for?": "We use a spoon to eat soup.",
    "Where do fish live?": "Fish live in the water.",
    "Where does milk come from?": "Milk comes from cows.",
    "Where do eggs come from?": "Eggs come from hens.",
    "Where does honey come from?": "Honey comes from bees.",
    "Where does bread come from?": "A baker makes bread from flour and water.",
    "Who works in a school?": "A teacher works in a school.",
    "Who works in a hospital?": "Doctors and nurses work in a hospital.",
    "Who works on a farm?": "A farmer works on a farm.",
    "What shines at night?": "The moon and the stars shine at night.",
    "What shines in the day?": "The sun shines in the day.",
    "How many days are in a week?": "There are seven days in a week.",
    "How many months are in a year?": "There are twelve months in a year.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "How many hours are in a day?": "There are twenty-four hours in a day.",
    "How many minutes are in an hour?": "There are sixty minutes in an hour.",
    "What is water?": "Water is what we drink, and what rain and rivers are made of.",
    "What is rain?": "Rain is water that falls from the clouds.",
    "What is ice?": "Ice is water that is very cold and hard.",
    "What is a friend?": "A friend is someone who likes you and helps you.",
    "What is a book?": "A book is many pages with words and stories.",
    "What is a tree?": "A tree is a big plant with leaves and wood.",
    "What is music?": "Music is sound that is nice to hear.",
    "What is the moon?": "The moon is a ball of rock that goes around the earth.",
    "What is the sun?": "The sun is a star that gives us light and heat.",
}


def plural(animal: str) -> str:
    """Return the plural of an animal's name."""
    return PLURALS.get(animal, f"{animal}s")
