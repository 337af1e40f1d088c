"""One conversation in the making: its turns, what was told in it, how the user writes."""

from i3lm.data.conversations.dice import Dice
from i3lm.data.documents import Message

PREFIXES = ("Please tell me: ", "Tell me, ", "I have a question. ", "And ", "So ", "Well, ")


class Talk:
    """Collects turns. `told` maps what the user said about himself to values."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.told: dict[str, str] = {}
        self.messages: list[Message] = []
        self._lower = dice.chance(0.3)
        self._bare = dice.chance(0.3)  # leaves the last mark away
        self._chatty = dice.chance(0.2)

    def turn(self, user: str, assistant: str) -> None:
        """Add what the user says, in his style, and the answer."""
        if self._chatty and self.messages and user.endswith("?") and self.dice.chance(0.3):
            prefix = self.dice.pick(PREFIXES)
            first = user.split(" ", 1)[0]
            keep = first == "I" or prefix.endswith(". ")
            user = prefix + (user if keep else user[0].lower() + user[1:])
        if self._lower:
            user = user.lower()
        if self._bare:
            user = user.rstrip(".!?")
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": assistant})
