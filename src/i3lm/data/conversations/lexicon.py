"""The words of the embedded conversations."""


def words(text: str) -> tuple[str, ...]:
    """Split at white space; `_` stands for a space inside an item."""
    return tuple(word.replace("_", " ") for word in text.split())


GIRLS = words("""
Anna Carla Emma Grace Ida Kate Mia Olga Rosa Tina Wendy Lily Sara Nina Julia Clara Eva Alice Maria
Lucy Amy Bella Cora Diana Ella Fiona Gina Hanna Irene Jane Kim Laura Mary Nora Olivia Paula Ruth
Sophie Tess Vera Zoe Elena Lena Ivy Amara Aisha Leila Yuki Mei Priya Sofia Marta Helen Linda Susan
""")
BOYS = words("""
Ben David Frank Henry Jack Leo Noah Paul Sam Victor Max Tom Peter Oscar Adam Martin Simon Bob John
Felix Alex Bruno Carl Daniel Eric Fred George Hugo Ian James Kevin Liam Mark Nick Oliver Philip
Robert Steve Tim Will Luke Marco Ivan Omar Ali Kenji Ravi Chen Diego Pablo Andrew Michael Thomas
""")
NAMES = GIRLS + BOYS
# Made-up names, so that a model learns to copy a name, not to choose from a list.
_STARTS = words("Ba Da Fe Ga Ka Lo Ma Ne Pa Ra Sa Ta Vi Zo Mi Ro Te Lu Jo Ki")
_ENDS = words("bel dan fin gor kas lin mar nik pol ran sim tor vin zan lis mon ret dor kin lam")
MADE_UP = tuple(start + end for start in _STARTS for end in _ENDS)
PET_NAMES = words("""
Rex Luna Milo Bella Coco Max Daisy Rocky Nala Simba Kiki Bruno Fluffy Spot Ginger Pepper Tiger Snowy
Biscuit Shadow Lucky Honey Cookie Teddy Sunny Bubbles Muffin Ziggy Oreo Pip Toby Lulu Bingo Star
Peanut Domino Misty Sparky Felix Lola
""")
PETS = words("dog cat rabbit bird fish horse hamster turtle")
COLOURS = words("red blue green yellow orange purple pink black white brown grey")
FOODS = words("""
pizza soup rice bread cheese pasta salad apples bananas cake chocolate ice_cream pancakes potatoes
noodles eggs fish strawberries chicken beans carrots honey cookies grapes corn
""")
DRINKS = words("water milk tea coffee juice lemonade cocoa")
CITIES = words("""
Paris London Rome Berlin Madrid Vienna Oslo Lisbon Athens Dublin Prague Warsaw Tokyo Cairo Boston
Chicago Sydney Toronto Lima Delhi Helsinki Budapest Naples Munich Seattle Nairobi Bergen Geneva
""")
HOBBIES = words("""
reading swimming singing dancing cooking painting running fishing gardening football chess music
cycling drawing walking sewing tennis baking knitting hiking sailing skating
""")
JOBS = words("""
a_teacher a_nurse a_baker a_farmer a_driver a_cook a_student a_doctor a_gardener a_painter a_singer
a_builder a_pilot a_writer a_waiter a_dentist
""")
ANIMALS_LIKED = words("""
dogs cats horses lions elephants rabbits birds dolphins monkeys bears owls penguins foxes tigers
""")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("""
January February March April May June July August September October November December
""")
NUMBERS = words("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty
""")
TENS = ("", "", *words("twenty thirty forty fifty sixty seventy eighty ninety"))
OBJECTS = words("""
key book ball hat bag cup pen lamp spoon map box coin letter ring bell phone shoe toy scarf photo
""")
ROOMS = words("""
in_the_kitchen in_the_garden under_the_bed on_the_table in_the_car behind_the_door on_the_shelf
in_the_drawer under_the_chair in_the_bedroom near_the_window in_the_bathroom
""")
PLACES = words("park market library beach zoo cinema museum lake farm pool circus castle")
FRUITS = words("apple banana orange pear lemon cherry grape plum peach strawberry")
# Lists for the slots of flows.
LISTS: dict[str, tuple[str, ...]] = {
    "name": NAMES, "girl": GIRLS, "boy": BOYS, "pet": PETS, "colour": COLOURS, "food": FOODS,
    "drink": DRINKS, "city": CITIES, "hobby": HOBBIES, "day": DAYS, "month": MONTHS,
    "object": OBJECTS, "room": ROOMS, "place": PLACES, "fruit": FRUITS, "liked": ANIMALS_LIKED,
    "toy": words("ball doll kite puzzle train car drum boat bike robot"),
    "relative": words("mother father brother sister uncle aunt grandmother grandfather cousin"),
    "wear": words("coat shirt dress hat scarf jacket sweater skirt"),
    "sport": words("football tennis basketball volleyball hockey"),
    "subject": words("maths history music art English science"),
    "instrument": words("piano guitar violin drum flute trumpet"),
    "time": words("morning afternoon evening"),
    "small": words("two three four five six"),
    "flower": words("rose tulip daisy lily sunflower"),
    "job": tuple(job.removeprefix("a ") for job in JOBS),
    "petname": PET_NAMES,
    "dish": words("pizza soup rice pasta pancakes noodles potatoes eggs salad"),
    "word": words("apple house river green happy table music summer flower window garden tiger"),
}  # fmt: skip


def number_word(number: int) -> str:
    """Return a number from 0 to 100 in words."""
    if number <= 20:
        return NUMBERS[number]
    if number == 100:
        return "one hundred"
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{NUMBERS[ones]}" if ones else "")


def with_article(noun: str) -> str:
    """Return `a dog`, `an apple`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
