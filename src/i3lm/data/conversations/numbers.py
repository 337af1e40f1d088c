"""Small arithmetic in words, counting and comparing.

The assistant works a sum out aloud before it answers. A model of a few million parameters does not
learn in minutes to add in one step, but it does learn to count up and down (docs/log.md); such a
way there is known as a scratchpad (Nye et al., 2021, arxiv.org/abs/2112.00114).
"""

from i3lm.data.conversations.dice import reserved
from i3lm.data.conversations.flows import capital
from i3lm.data.conversations.lexicon import NAMES, number_word
from i3lm.data.conversations.talk import Talk

Sum = tuple[str, int, int]  # "plus" or "minus", and the two numbers
SIGNS = {"plus": "+", "minus": "-"}
COUNTED = ("apples", "balls", "books", "cookies", "eggs", "pens", "cups", "hats", "coins")


def result(sum_: Sum) -> int:
    """Return the value of a sum."""
    operation, a, b = sum_
    return a + b if operation == "plus" else a - b


def draw_sum(talk: Talk, held_out: bool = False) -> Sum:
    """Draw a small sum, kept for held-out questions or not."""
    dice = talk.dice
    while True:
        operation = dice.pick(("plus", "plus", "minus"))
        a = dice.between(1, 10 if operation == "plus" else 20)
        b = dice.between(1, 10 if operation == "plus" else min(a, 10))
        if reserved(operation, a, b) == held_out:
            return operation, a, b


def sum_question(talk: Talk, sum_: Sum) -> str:
    """Return a way to ask for a sum."""
    operation, a, b = sum_
    one, two = number_word(a), number_word(b)
    if talk.dice.chance(0.35):
        one, two = str(a), str(b)
        if talk.dice.chance(0.5):
            operation = SIGNS[operation]
            if talk.dice.chance(0.5):
                space = talk.dice.pick(("", " "))
                return f"{one}{space}{operation}{space}{two}"
    return talk.dice.pick(
        (
            f"What is {one} {operation} {two}?",
            f"What is {one} {operation} {two}?",
            f"How much is {one} {operation} {two}?",
            f"{capital(one)} {operation} {two}?",
            f"Can you tell me what {one} {operation} {two} is?",
        )
    )


def sum_answer(sum_: Sum) -> str:
    """Return the answer: the way there, then the result."""
    return f"{worked_out(sum_)} So it is {number_word(result(sum_))}."


def worked_out(sum_: Sum) -> str:
    """Return a sum as a sentence of equal sums, each a step nearer to its result.

    Each follows from the one before alone: two plus three is three plus two, four plus one, five.
    """
    operation, a, b = sum_
    one, two, value = number_word(a), number_word(b), number_word(result(sum_))
    step = 1 if operation == "plus" else -1
    ways = [f"{number_word(a + step * n)} {operation} {number_word(b - n)}" for n in range(1, b)]
    return f"{capital(one)} {operation} {two} is {', '.join((*ways, value))}."


def arithmetic(talk: Talk) -> None:
    """One to three sums or questions about numbers."""
    for _ in range(talk.dice.between(1, 3)):
        if talk.dice.chance(0.65):
            sum_ = draw_sum(talk)
            talk.turn(sum_question(talk, sum_), sum_answer(sum_))
        else:
            talk.dice.pick((_neighbour, _neighbour, _compare, _counting, _problem, _older))(talk)


def _neighbour(talk: Talk) -> None:
    n = talk.dice.between(1, 40)
    word, before, after = number_word(n), number_word(n - 1), number_word(n + 1)
    talk.turn(
        *talk.dice.pick(
            (
                (f"What number comes after {word}?", f"{capital(after)} comes after {word}."),
                (f"What comes after {word}?", f"{capital(after)} comes after {word}."),
                (f"What is the next number after {word}?",
                 f"{capital(after)} comes after {word}."),
                (f"What number comes before {word}?", f"{capital(before)} comes before {word}."),
            )
        )
    )  # fmt: skip


def _compare(talk: Talk) -> None:
    small, big = sorted(talk.dice.sample(range(1, 31), 2))
    one, two = talk.dice.shuffled((number_word(small), number_word(big)))
    word, answer = talk.dice.pick((("bigger", big), ("smaller", small)))
    which = talk.dice.pick(("Which", "What"))
    talk.turn(f"{which} is {word}, {one} or {two}?", f"{capital(number_word(answer))} is {word}.")


def _counting(talk: Talk) -> None:
    first = talk.dice.pick((1, 1, 1, 2, 3, 5))
    last = talk.dice.between(first + 2, 10)
    asked = f"Count to {number_word(last)}." if first == 1 else (
        f"Count from {number_word(first)} to {number_word(last)}."
    )  # fmt: skip
    talk.turn(asked, f"{capital(', '.join(number_word(n) for n in range(first, last + 1)))}.")


def _problem(talk: Talk) -> None:
    """A sum told as a tiny story."""
    dice = talk.dice
    while True:
        operation, a, b = draw_sum(talk)
        if 2 <= a <= 10 and (operation == "plus" or (operation == "minus" and a > b + 1)):
            break
    things = dice.pick(COUNTED)
    now = result((operation, a, b))
    one = number_word(b)
    then = (
        dice.pick((f"I get {one} more.", f"I buy {one} more."))
        if operation == "plus"
        else dice.pick((f"I lose {one}.", f"I give {one} away."))
    )
    talk.turn(
        f"I have {number_word(a)} {things}. {then} How many {things} do I have now?",
        f"{worked_out((operation, a, b))} Now you have {number_word(now)} {things}.",
    )


def _older(talk: Talk) -> None:
    """Two people's ages compared."""
    dice = talk.dice
    one, two = dice.sample(NAMES, 2)
    a, b = dice.sample(range(3, 20), 2)
    word = dice.pick(("older", "younger"))
    answer = one if (a > b) == (word == "older") else two
    talk.turn(
        f"{one} is {number_word(a)} and {two} is {number_word(b)}. Who is {word}?",
        f"{answer} is {word}.",
    )
