"""One conversation in the making: its turns, what was told in it, how the user writes."""

from i3lm.data.conversations.dice import Dice
from i3lm.data.conversations.flows import Flow, Slots
from i3lm.data.documents import Message

PREFIXES = (
    "Please tell me, ", "Tell me, ", "I have a question. ", "And ", "So ", "Well, ", "Hey, ",
    "Now tell me, ", "Can I ask you something? ", "One more question. ", "Okay. ", "Hmm. ",
)  # fmt: skip
SHORT_FORMS = (
    ("I am ", "I'm "), ("What is ", "What's "), ("what is ", "what's "), ("do not ", "don't "),
    ("cannot ", "can't "), ("It is ", "It's "), ("it is ", "it's "), ("You are ", "You're "),
    ("Who is ", "Who's "), ("Where is ", "Where's "), ("That is ", "That's "), ("I will ", "I'll "),
)  # fmt: skip
AMERICAN = (("colour", "color"), ("favourite", "favorite"), ("grey", "gray"))


class Talk:
    """Collects turns. `told` maps what the user said about himself to values."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.told: dict[str, str] = {}
        self.messages: list[Message] = []
        self.size = 0  # characters so far
        self._lower = dice.chance(0.3)
        self._bare = dice.chance(0.3)  # leaves the last mark away
        self._chatty = dice.chance(0.2)
        self._short = dice.chance(0.35)
        self._plain = dice.chance(0.15)  # writes no commas and apostrophes
        self._american = dice.chance(0.2)
        self._loud = dice.chance(0.01)

    def turn(self, user: str, assistant: str) -> None:
        """Add what the user says, in his style, and the answer."""
        asks = user.endswith("?") and user.strip("?.! ") != ""
        if self._chatty and self.messages and asks and self.dice.chance(0.3):
            prefix = self.dice.pick(PREFIXES)
            keep = user.startswith(("I ", "If ")) or prefix.endswith(". ")
            user = prefix + (user if keep else user[0].lower() + user[1:])
        if self._short:
            for long, short in SHORT_FORMS:
                user = user.replace(long, short)
        if self._american:
            for british, american in AMERICAN:
                user = user.replace(british, american)
        if self._plain:
            user = user.replace(",", "").replace("'", "")
        if self._lower:
            user = user.lower()
        elif self._loud:
            user = user.upper()
        if self._bare:
            user = user.rstrip(".!?") or user
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": assistant})
        self.size += len(user) + len(assistant)

    def play(self, flow: Flow, go_on: float = 0.7, **known: str) -> None:
        """Add the turns of a flow; after each turn it goes on with the given chance.

        A question of the assistant's is answered more often than not.
        """
        dice = self.dice
        slots = Slots(dice, **known)
        while True:
            answer = slots.fill(dice.pick(flow.answers))
            self.turn(slots.fill(dice.lean(flow.asks)), answer)
            if not flow.then or not dice.chance(0.9 if answer.endswith("?") else go_on):
                return
            flow = dice.lean(flow.then)
