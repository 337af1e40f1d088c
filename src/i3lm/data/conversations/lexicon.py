"""The words of the embedded conversations."""

GIRLS = (
    "Anna", "Carla", "Emma", "Grace", "Ida", "Kate", "Mia", "Olga", "Rosa", "Tina", "Wendy", "Lily",
    "Sara", "Nina", "Julia", "Clara", "Eva", "Alice", "Maria", "Lucy",
)  # fmt: skip
BOYS = (
    "Ben", "David", "Frank", "Henry", "Jack", "Leo", "Noah", "Paul", "Sam", "Victor", "Max", "Tom",
    "Peter", "Oscar", "Adam", "Martin", "Simon", "Bob", "John", "Felix",
)  # fmt: skip
NAMES = GIRLS + BOYS
PET_NAMES = (
    "Rex", "Luna", "Milo", "Bella", "Coco", "Max", "Daisy", "Rocky", "Nala", "Simba", "Kiki",
    "Bruno", "Fluffy", "Spot", "Ginger", "Pepper", "Tiger", "Snowy", "Biscuit", "Shadow",
)  # fmt: skip
PETS = ("dog", "cat", "rabbit", "bird", "fish", "horse", "hamster", "turtle")
COLOURS = (
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "black", "white", "brown", "grey",
)  # fmt: skip
FOODS = (
    "pizza", "soup", "rice", "bread", "cheese", "pasta", "salad", "apples", "bananas", "cake",
    "chocolate", "ice cream", "pancakes", "potatoes", "noodles", "eggs", "fish", "strawberries",
)  # fmt: skip
CITIES = (
    "Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Lisbon", "Athens", "Dublin",
    "Prague", "Warsaw", "Tokyo", "Cairo", "Boston", "Chicago", "Sydney", "Toronto",
)  # fmt: skip
HOBBIES = (
    "reading", "swimming", "singing", "dancing", "cooking", "painting", "running", "fishing",
    "gardening", "football", "chess", "music", "cycling", "drawing", "walking", "sewing",
)  # fmt: skip
JOBS = (
    "a teacher", "a nurse", "a baker", "a farmer", "a driver", "a cook", "a student", "a doctor",
    "a gardener", "a painter", "a singer", "a builder",
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


def number_word(number: int) -> str:
    """Return a number from 0 to 99 in words."""
    if number <= 20:
        return NUMBERS[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{NUMBERS[ones]}" if ones else "")


def with_article(noun: str) -> str:
    """Return `a dog`, `an apple`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
