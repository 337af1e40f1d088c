"""Tables of talk in a compact text form, and their parser.

A line is `what the user says | another way = the answer | another answer`; common lines and
wordings stand first and are drawn more often (`Dice.lean`). Lines that begin with `>` are ways to
go on after the line above, `>>` after those. An indented line continues the one above. `{food}`
is filled from the list of that name in the lexicon, the same within one talk; `{food2}` is another
one, `{Food}` has a capital, `{a_food}` an article.
"""

from typing import NamedTuple

from i3lm.data.conversations.dice import Dice
from i3lm.data.conversations.lexicon import LISTS, with_article


class Flow(NamedTuple):
    """One turn in several wordings, and the turns that may follow it."""

    asks: tuple[str, ...]
    answers: tuple[str, ...]
    then: "list[Flow]"


class Slots(dict[str, str]):
    """Values for the slots of one talk, drawn when first needed."""

    def __init__(self, dice: Dice, **known: str) -> None:
        super().__init__(known)
        self._dice = dice

    def __missing__(self, key: str) -> str:
        if key[0].isupper():
            value = capital(self[key[0].lower() + key[1:]])
        elif key.startswith("a_"):
            value = with_article(self[key[2:]])
        elif key.endswith("2"):
            first = self[key[:-1]]
            value = self._dice.pick([item for item in LISTS[key[:-1]] if item != first])
        else:
            value = self._dice.pick(LISTS[key])
        self[key] = value
        return value

    def fill(self, template: str) -> str:
        """Return the template with its slots filled."""
        return template.format_map(self) if "{" in template else template


def capital(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[0].upper() + text[1:]


def flows(table: str) -> tuple[Flow, ...]:
    """Parse a table."""
    top: list[Flow] = []
    levels: list[list[Flow]] = [top]
    for line in table.strip().replace("\n  ", " ").splitlines():
        text = line.lstrip(">")
        depth = len(line) - len(text)
        asks, answers = text.split(" = ")
        flow = Flow(_ways(asks), _ways(answers), [])
        levels[depth].append(flow)
        levels[depth + 1 :] = [flow.then]
    return tuple(top)


def _ways(text: str) -> tuple[str, ...]:
    return tuple(way.strip() for way in text.split(" | "))
