"""Minimal pairs in the manner of BLiMP (Warstadt et al., arXiv 1912.00582), in simple words.

Two sentences that differ in one point of grammar, of (nearly) the same length; a model is right
where it takes the grammatical one for likelier. The words are those of the embedded conversations;
the sentences are generated here, and few of them stand there.
"""

from collections.abc import Callable, Iterator

from i3lm.data.conversations.dice import Dice
from i3lm.data.conversations.flows import capital
from i3lm.data.conversations.lexicon import (
    BOYS,
    COLOURS,
    FOODS,
    GIRLS,
    JOBS,
    OBJECTS,
    PETS,
    PLACES,
    with_article,
)
from i3lm.data.conversations.world import ANIMALS, plural

Pair = tuple[str, str]  # grammatical, not
STREAM = -1000  # of dice that no corpus uses
_PLURAL = {"hobby": "hobbies", "box": "boxes", "fish": "fish", "scarf": "scarves"}
_BEASTS = tuple(a for a in ANIMALS if plural(a) != a)
_VERBS = ("like", "eat", "know", "see", "want", "need", "find", "love")
_ADJECTIVES = ("big", "small", "old", "young", "happy", "hungry", "tired", "nice", "good", "fast")
_FRUIT = ("apples", "bananas", "carrots", "cookies", "potatoes", "grapes", "strawberries", "eggs")
_COUNTED = tuple(n for n in OBJECTS if n not in _PLURAL)
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_MEN = ("brother", "father", "uncle", "grandfather", "son")
_WOMEN = ("sister", "mother", "aunt", "grandmother", "daughter")
_VOWEL = ("apple", "orange", "egg", "owl", "ant", "elephant", "onion", "uncle", "aunt", "animal")
_CAN = ("swim", "fly", "sing", "dance", "read", "talk", "run", "sleep", "play", "jump")


def _many(noun: str) -> str:
    return _PLURAL.get(noun, f"{noun}s")


def _agreement(dice: Dice) -> Pair:
    """The dog likes apples. / The dog like apples."""
    beast, verb, food = dice.pick(_BEASTS), dice.pick(_VERBS), dice.pick(_FRUIT)
    one, many = f"The {beast} {verb}s {food}.", f"The {beast} {verb} {food}."
    if dice.chance(0.5):
        return one, many
    many_of = plural(beast)
    return f"The {many_of} {verb} {food}.", f"The {many_of} {verb}s {food}."


def _copula(dice: Dice) -> Pair:
    """The balls in the park are red. / The balls in the park is red."""
    thing, colour = dice.pick(_COUNTED), dice.pick(COLOURS)
    where = dice.pick(("", f" in the {dice.pick(PLACES)}", f" of my {dice.pick(_MEN + _WOMEN)}"))
    if dice.chance(0.5):
        return f"The {thing}{where} is {colour}.", f"The {thing}{where} are {colour}."
    many = _many(thing)
    return f"The {many}{where} are {colour}.", f"The {many}{where} is {colour}."


def _determiner_noun(dice: Dice) -> Pair:
    """I have three books. / I have three book."""
    thing, verb = dice.pick(_COUNTED), dice.pick(("have", "see", "need", "want", "found"))
    many = _many(thing)
    if dice.chance(0.5):
        word = dice.pick((*_NUMBERS, "these", "many"))
        return f"I {verb} {word} {many}.", f"I {verb} {word} {thing}."
    word = dice.pick(("one", "this", "a small", "a big", "a new", "an old"))
    return f"I {verb} {word} {thing}.", f"I {verb} {word} {many}."


def _article(dice: Dice) -> Pair:
    """My sister saw an owl. / My sister saw a owl."""
    who, verb = dice.pick(_MEN + _WOMEN), dice.pick(("has", "saw", "wants", "found", "likes"))
    noun = dice.pick(_VOWEL if dice.chance(0.5) else (*PETS, *_COUNTED))
    right = with_article(noun)
    wrong = f"a {noun}" if right.startswith("an ") else f"an {noun}"
    return f"My {who} {verb} {right}.", f"My {who} {verb} {wrong}."


def _anaphora(dice: Dice) -> Pair:
    """My sister is called Anna. She is a teacher. / My sister is called Anna. He is a teacher."""
    man = dice.chance(0.5)
    who, name = dice.pick(_MEN if man else _WOMEN), dice.pick(BOYS if man else GIRLS)
    rest = dice.pick((f"is {dice.pick(JOBS)}", f"likes {dice.pick(FOODS)}"))
    first = f"My {who} is called {name}."
    right, wrong = ("He", "She") if man else ("She", "He")
    return f"{first} {right} {rest}.", f"{first} {wrong} {rest}."


def _word_order(dice: Dice) -> Pair:
    """Where does the cat sleep? / Where the cat does sleep?"""
    beast, verb, food = dice.pick(_BEASTS), dice.pick(_VERBS), dice.pick(_FRUIT)
    choice = dice.between(0, 2)
    if choice == 0:
        ask, verb = dice.pick(("Where", "When", "Why", "How")), dice.pick(_CAN)
        return f"{ask} does the {beast} {verb}?", f"{ask} the {beast} does {verb}?"
    if choice == 1:
        return f"The {beast} {verb}s {food}.", f"{verb.capitalize()}s the {beast} {food}."
    adjective = dice.pick(_ADJECTIVES)
    return f"I see {with_article(adjective)} {beast}.", f"I see a {beast} {adjective}."


def _negative_polarity(dice: Dice) -> Pair:
    """No dog has ever been in the park. / The dog has ever been in the park."""
    beast, place = dice.pick(_BEASTS), dice.pick(PLACES)
    rest = dice.pick((f"been in the {place}", f"seen {with_article(dice.pick(PETS))}"))
    if dice.chance(0.5):
        return f"No {beast} has ever {rest}.", f"The {beast} has ever {rest}."
    thing = _many(dice.pick(_COUNTED))
    verb = dice.pick(("have", "see", "need", "want"))
    return f"I do not {verb} any {thing}.", f"I do now {verb} any {thing}."


def _verb_form(dice: Dice) -> Pair:
    """Can a dog swim? / Can a dog swims?"""
    beast, verb = dice.pick(_BEASTS), dice.pick(_CAN)
    a = with_article(beast)
    choice = dice.between(0, 2)
    if choice == 0:
        return f"Can {a} {verb}?", f"Can {a} {verb}s?"
    if choice == 1:
        cannot = dice.pick(("can", "cannot", "will"))
        return f"{capital(a)} {cannot} {verb}.", f"{capital(a)} {cannot} {verb}s."
    return f"I want to {verb} with {a}.", f"I want to {verb}s with {a}."


def _pronoun_case(dice: Dice) -> Pair:
    """She likes my dog. / Her likes my dog."""
    thing = dice.pick((*PETS, *_COUNTED))
    right, wrong = dice.pick((("She", "Her"), ("He", "Him"), ("We", "Us"), ("They", "Them")))
    verb, owner = dice.pick(_VERBS), dice.pick(("my", "your", "the"))
    s = "s" if right in ("She", "He") else ""
    if dice.chance(0.5):
        return f"{right} {verb}{s} {owner} {thing}.", f"{wrong} {verb}{s} {owner} {thing}."
    who = capital(f"{owner} {dice.pick(_MEN + _WOMEN)}")
    return f"{who} {verb}s {wrong.lower()}.", f"{who} {verb}s {right.lower()}."


PHENOMENA: dict[str, Callable[[Dice], Pair]] = {
    "agreement": _agreement,
    "copula": _copula,
    "determiner_noun": _determiner_noun,
    "article": _article,
    "anaphora": _anaphora,
    "word_order": _word_order,
    "negative_polarity": _negative_polarity,
    "verb_form": _verb_form,
    "pronoun_case": _pronoun_case,
}


def minimal_pairs(phenomenon: str, count: int = 300) -> Iterator[Pair]:
    """Yield `count` different pairs (grammatical, not) of one of `PHENOMENA`, the same each time.

    KeyError for another phenomenon.
    """
    make, seen, number = PHENOMENA[phenomenon], set[Pair](), 0
    while len(seen) < count:
        pair = make(Dice(STREAM - list(PHENOMENA).index(phenomenon), number))
        number += 1
        if pair not in seen:
            seen.add(pair)
            yield pair
