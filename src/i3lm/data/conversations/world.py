"""Facts of the world that never change."""

from i3lm.data.conversations.flows import flows
from i3lm.data.conversations.lexicon import words

# animal: (what it eats, where it lives, its voice or "", legs, its young)
ANIMALS = {
    "dog": ("meat and bones", "in a house with people", "barks", 4, "puppy"),
    "cat": ("fish and mice", "in a house with people", "meows", 4, "kitten"),
    "cow": ("grass", "on a farm", "moos", 4, "calf"),
    "horse": ("grass and oats", "on a farm", "neighs", 4, "foal"),
    "sheep": ("grass", "on a farm", "bleats", 4, "lamb"),
    "goat": ("grass and leaves", "on a farm", "bleats", 4, "kid"),
    "pig": ("corn and roots", "on a farm", "oinks", 4, "piglet"),
    "duck": ("seeds and water plants", "near a pond", "quacks", 2, "duckling"),
    "goose": ("grass", "on a farm", "honks", 2, "gosling"),
    "hen": ("corn and seeds", "on a farm", "clucks", 2, "chick"),
    "owl": ("mice", "in the forest", "hoots", 2, "owlet"),
    "lion": ("meat", "in hot, dry lands", "roars", 4, "cub"),
    "tiger": ("meat", "in the jungle", "roars", 4, "cub"),
    "bear": ("fish, berries and honey", "in the forest", "growls", 4, "cub"),
    "wolf": ("meat", "in the forest", "howls", 4, "pup"),
    "fox": ("mice and berries", "in the forest", "barks", 4, "cub"),
    "frog": ("flies", "near a pond", "croaks", 4, "tadpole"),
    "bee": ("honey and pollen", "in a hive", "buzzes", 6, "grub"),
    "ant": ("seeds and leaves", "under the ground", "", 6, "grub"),
    "mouse": ("seeds and cheese", "in small holes", "squeaks", 4, "pup"),
    "rabbit": ("carrots and grass", "in a burrow", "squeaks", 4, "bunny"),
    "snake": ("mice and eggs", "under stones", "hisses", 0, "snakelet"),
    "elephant": ("leaves and fruit", "in hot lands", "trumpets", 4, "calf"),
    "giraffe": ("leaves", "in hot, dry lands", "hums", 4, "calf"),
    "monkey": ("fruit and nuts", "in the trees", "chatters", 4, "infant"),
    "squirrel": ("nuts", "in the trees", "chatters", 4, "kit"),
    "bird": ("seeds and worms", "in a nest", "sings", 2, "chick"),
    "penguin": ("fish", "in the cold south", "honks", 2, "chick"),
    "whale": ("small fish", "in the sea", "sings", 0, "calf"),
    "dolphin": ("fish", "in the sea", "clicks", 0, "calf"),
    "shark": ("fish", "in the sea", "", 0, "pup"),
    "turtle": ("leaves and small fish", "near the water", "", 4, "hatchling"),
    "spider": ("flies", "in a web", "", 8, "spiderling"),
    "camel": ("dry grass", "in the desert", "grunts", 4, "calf"),
}
PLURALS = {"sheep": "sheep", "wolf": "wolves", "mouse": "mice", "goose": "geese", "fox": "foxes"}
SIZES = (
    "ant", "bee", "mouse", "rat", "rabbit", "cat", "fox", "sheep", "pig", "lion", "cow", "camel",
    "elephant", "whale",
)  # fmt: skip
# what animals can do: (who can, who cannot)
CAN = {
    "fly": (words("bird owl bee duck goose"), words("dog cat cow horse pig lion whale mouse bear")),
    "swim": (words("duck fish frog whale dolphin penguin turtle"), words("hen bee ant spider")),
    "climb a tree": (words("cat monkey squirrel bear"), words("cow horse pig whale duck")),
    "read a book": ((), words("dog cat cow horse bird frog bear")),
    "talk": ((), words("dog cow horse pig fish rabbit")),
}

COLOUR_OF = {
    "a banana": "yellow", "the sky": "blue", "grass": "green", "snow": "white", "coal": "black",
    "a tomato": "red", "the sun": "yellow", "a lemon": "yellow", "blood": "red", "milk": "white",
    "chocolate": "brown", "an elephant": "grey", "a carrot": "orange", "the sea": "blue",
    "a leaf": "green", "a strawberry": "red", "a pig": "pink", "the night": "black",
    "an orange": "orange", "a frog": "green", "a cloud": "white", "bread": "brown",
    "a cherry": "red", "an egg": "white", "sand": "yellow", "salt": "white", "sugar": "white",
    "a mouse": "grey", "a polar bear": "white", "a tree": "green", "a pea": "green",
    "coffee": "brown", "a plum": "purple", "corn": "yellow", "a cucumber": "green",
    "fire": "orange", "a penguin": "black and white", "a zebra": "black and white",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "happy": "sad", "fast": "slow",
    "old": "young", "wet": "dry", "open": "closed", "full": "empty", "light": "dark",
    "hard": "soft", "long": "short", "rich": "poor", "loud": "quiet", "high": "low",
    "left": "right", "good": "bad", "clean": "dirty", "early": "late", "strong": "weak",
    "black": "white", "in": "out", "yes": "no", "first": "last", "near": "far", "tall": "short",
    "thick": "thin", "true": "false", "hello": "goodbye", "push": "pull", "buy": "sell",
    "begin": "end", "win": "lose", "summer": "winter", "above": "below", "before": "after",
    "easy": "difficult", "heavy": "light", "sweet": "sour", "always": "never", "love": "hate",
    "laugh": "cry", "small": "big", "cold": "hot", "sad": "happy", "night": "day", "slow": "fast",
    "short": "long", "dark": "light", "bad": "good", "down": "up", "empty": "full", "dry": "wet",
}  # fmt: skip

# kind: (its plural, members with an article)
KINDS_OF = {
    "fruit": ("fruits", ("an apple", "a banana", "an orange", "a pear", "a lemon", "a cherry")),
    "vegetable": ("vegetables", ("a carrot", "a potato", "an onion", "a bean", "a cucumber")),
    "flower": ("flowers", ("a rose", "a tulip", "a daisy", "a lily", "a sunflower")),
    "tool": ("tools", ("a hammer", "a saw", "a spade", "a brush")),
    "toy": ("toys", ("a doll", "a kite", "a puzzle", "a teddy bear")),
    "colour": ("colours", ("red", "blue", "green", "yellow", "pink")),
    "drink": ("drinks", ("lemonade", "milk", "tea", "coffee", "juice")),
    "day": ("days", ("Monday", "Tuesday", "Friday", "Sunday")),
    "month": ("months", ("May", "June", "March", "October")),
    "sport": ("sports", ("football", "tennis", "hockey", "swimming")),
    "animal": ("animals", ("a dog", "a cat", "a cow", "a lion", "a bear", "an owl", "a frog")),
}

# country: (capital, language)
COUNTRIES = {
    "France": ("Paris", "French"), "Italy": ("Rome", "Italian"), "Spain": ("Madrid", "Spanish"),
    "Germany": ("Berlin", "German"), "England": ("London", "English"),
    "Portugal": ("Lisbon", "Portuguese"), "Greece": ("Athens", "Greek"),
    "Norway": ("Oslo", "Norwegian"), "Austria": ("Vienna", "German"),
    "Poland": ("Warsaw", "Polish"), "Japan": ("Tokyo", "Japanese"), "Egypt": ("Cairo", "Arabic"),
    "Ireland": ("Dublin", "English"), "Peru": ("Lima", "Spanish"),
}  # fmt: skip

# job: (what the person does, where)
JOBS = {
    "baker": ("bakes bread and cakes", "in a bakery"),
    "farmer": ("grows food and keeps animals", "on a farm"),
    "teacher": ("teaches children", "in a school"),
    "doctor": ("helps sick people", "in a hospital"),
    "nurse": ("cares for sick people", "in a hospital"),
    "cook": ("makes meals", "in a kitchen"),
    "pilot": ("flies a plane", "in a plane"),
    "driver": ("drives a bus or a car", "on the road"),
    "gardener": ("grows flowers", "in a garden"),
    "builder": ("builds houses", "in many places"),
    "painter": ("paints pictures", "in a studio"),
    "singer": ("sings songs", "on a stage"),
    "waiter": ("brings the food", "in a restaurant"),
    "dentist": ("cares for teeth", "in an office"),
    "sailor": ("works on a ship", "on the sea"),
    "writer": ("writes books", "at a desk"),
}

# tool: what it is for
USES = {
    "an umbrella": "stay dry in the rain", "a key": "open a door", "a knife": "cut bread",
    "a clock": "know the time", "a bed": "sleep", "a pen": "write", "soap": "wash our hands",
    "a spoon": "eat soup", "a cup": "drink tea", "a chair": "sit", "a lamp": "see in the dark",
    "a broom": "sweep the floor", "a towel": "dry our hands", "a comb": "comb our hair",
    "a coat": "stay warm", "a phone": "talk with people", "a car": "drive to other places",
    "a boat": "cross the water", "a bag": "carry things", "a mirror": "see our face",
    "a toothbrush": "clean our teeth", "a hammer": "hit nails", "an oven": "bake bread",
    "a ladder": "climb up high", "glasses": "see better", "money": "buy things",
}  # fmt: skip

SEASONS = {
    "winter": ("cold", "snow falls and the days are short"),
    "spring": ("mild", "flowers grow and birds come back"),
    "summer": ("hot", "the sun shines and the days are long"),
    "autumn": ("cool", "leaves fall and apples are ripe"),
}

FAMILY = {
    "the mother of your mother": "grandmother", "the father of your mother": "grandfather",
    "the mother of your father": "grandmother", "the father of your father": "grandfather",
    "the sister of your mother": "aunt", "the brother of your mother": "uncle",
    "the sister of your father": "aunt", "the brother of your father": "uncle",
    "the son of your uncle": "cousin", "the daughter of your aunt": "cousin",
}  # fmt: skip

THINGS = flows("""
Where do fish live? | Where does a fish live? = Fish live in the water.
Where does milk come from? | Who gives us milk? = Milk comes from cows.
Where do eggs come from? | Who lays eggs? = Eggs come from hens.
Where does honey come from? | Who makes honey? = Honey comes from bees.
Where does wool come from? | Who gives us wool? = Wool comes from sheep.
Where does bread come from? | Who makes bread? = A baker makes bread from flour and water.
Where do apples grow? | Where do apples come from? = Apples grow on trees.
Where do potatoes grow? | Where do carrots grow? = They grow in the ground.
What shines at night? | What can I see at night? = The moon and the stars shine at night.
What shines in the day? | What gives us light? = The sun shines in the day.
How many days are in a week? | How many days does a week have? = There are seven days in a week.
How many months are in a year? | How many months does a year have?
  = There are twelve months in a year.
How many seasons are there? | What are the seasons? | Name the seasons.
  = There are four seasons: spring, summer, autumn and winter.
How many hours are in a day? | How many hours does a day have?
  = There are twenty-four hours in a day.
How many minutes are in an hour? = There are sixty minutes in an hour.
How many fingers does a hand have? | How many fingers are on a hand? = A hand has five fingers.
How many eyes do people have? | How many eyes does a person have? = People have two eyes.
How many wheels does a car have? = A car has four wheels.
How many wheels does a bike have? = A bike has two wheels.
What is water? = Water is what we drink, and what rain and rivers are made of.
What is rain? | Where does rain come from? = Rain is water that falls from the clouds.
What is ice? = Ice is water that is very cold and hard.
What is snow? = Snow is frozen water that falls from the clouds.
What is love? = Love is a warm feeling for somebody.
What is a friend? = A friend is someone who likes you and helps you.
What is a book? = A book is many pages with words and stories.
What is a tree? = A tree is a big plant with leaves and wood.
What is music? = Music is sound that is nice to hear.
What is the moon? = The moon is a ball of rock that goes around the earth.
What is the sun? = The sun is a star that gives us light and heat.
What is a computer? = A computer is a machine that works with numbers and words.
What is a river? = A river is water that runs to the sea.
What is a mountain? = A mountain is a very high hill.
What is a garden? = A garden is a place where flowers grow.
What is a farm? = A farm is a place with fields and animals.
What is a library? = A library is a house full of books.
What is a forest? = A forest is a place with many trees.
What do plants need? | What does a flower need? = Plants need water and light.
What do we see with? | What are eyes for? = We see with our eyes.
What do we hear with? | What are ears for? = We hear with our ears.
What do we smell with? | What is a nose for? = We smell with our nose.
Why is the sky blue? = I do not know why, but it is a beautiful colour.
What is the biggest animal? | Which animal is the biggest? = The biggest animal is the whale.
Which animal has a long neck? = The giraffe has a long neck.
Which animal has a long trunk? = The elephant has a long trunk.
Which bird cannot fly? = A penguin cannot fly.
What do birds lay? = Birds lay eggs.
Is the sun hot? = Yes, the sun is very hot.
Is ice cold? | Is snow cold? = Yes, it is very cold.
Is fire hot? = Yes, fire is very hot. Do not touch it.
Is the earth round? = Yes, the earth is round like a ball.
Where do we sleep? = We sleep in a bed.
When do we sleep? = We sleep at night.
Where do we learn? = We learn at school.
Where can I buy bread? = You can buy bread in a bakery.
Where can I read books? = You can read books in a library.
Where can I swim? = You can swim in a lake or in the sea.
""")


def plural(animal: str) -> str:
    """Return the plural of an animal's name."""
    return PLURALS.get(animal, f"{animal}s")
