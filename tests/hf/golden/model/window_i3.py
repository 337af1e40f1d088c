"""What a model reads of a text that is longer than its window. Needs torch alone.

Of a conversation the oldest whole turns fall out, so that RESERVE tokens are left for the reply; of
other texts the newest window is read. Generation that fills the window goes on from the newest half
of it. `i3lm.chatting` and `i3lm.generation` follow the same rule.
"""

import torch
from torch import Tensor

INST, END_INST = 4, 5  # the ids of [INST] and [/INST] in every i3 vocabulary
RESERVE = 64  # tokens of the window that history leaves to the reply


def reserve(window: int) -> int:
    """Return how many tokens of the window a conversation leaves to the reply."""
    return min(RESERVE, window // 4)


def kept_of_prompt(ids: list[int], window: int, bos: int | None) -> tuple[list[int], str]:
    """Return the tokens of a prompt that are read, and a sentence on what is not ('': all are)."""
    head, body = (ids[:1], ids[1:]) if ids[:1] == [bos] else ([], ids)
    if body[:1] == [INST] and END_INST in body:
        room = window - reserve(window)
        if len(ids) <= room:
            return ids, ""
        begins = [i for i, token in enumerate(body) if token == INST]
        fitting = [i for i in begins if len(head) + len(body) - i <= room]
        if fitting:
            return [*head, *body[fitting[0] :]], (
                f"the conversation outgrows the model's window of {window} tokens: "
                "its oldest turns are forgotten, and a system message with the first of them"
            )
        newest = body[begins[-1] + 1 :][-(room - len(head) - 1) :]
        if END_INST in newest:
            return [*head, INST, *newest], (
                f"the message is longer than the model's window of {window} tokens: "
                f"only the last {len(newest) - 1} are read"
            )
    if len(ids) <= window:
        return ids, ""
    return ids[-window:], (
        f"the prompt has {len(ids)} tokens and the model's window {window}: "
        "only the newest of them are read"
    )


def last_before_move(length: int, window: int) -> int:
    """Return up to what length a text of `length` tokens is read from where it is read now."""
    step = window + 1 - max(1, window // 2)
    return window + max(0, -(-(length - window) // step)) * step


def starts(first: Tensor, length: int, window: int) -> Tensor:
    """Return where each row of a text is read from: first (B,) int64, `length` columns -> (B,).

    A row begins at `first`. Each time it would hold more than the window it goes on from the newest
    half window.
    """
    step = window + 1 - max(1, window // 2)
    over = (length - first - window).clamp(min=0)
    return first + torch.div(over + step - 1, step, rounding_mode="floor") * step
