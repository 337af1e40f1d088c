"""The documents of our task files for lm-evaluation-harness, generated here: no network, no cache.

A conversation stands in its line form, `[INST] user [/INST] assistant [INST] ...`, which our model
class reads as one (`i3lm.tasks.harness`).
"""

import re
from typing import Any

from i3lm.data.conversations import Question, held_out, is_right, questions
from i3lm.data.conversations.about_me import ABOUT_ME
from i3lm.data.conversations.about_me import CHOICES as CHOICES_TOLD
from i3lm.data.conversations.dice import Dice
from i3lm.data.conversations.lexicon import OBJECTS, PETS, ROOMS, number_word
from i3lm.data.documents import line_form
from i3lm.tasks.minimal_pairs import minimal_pairs

QUESTIONS, CONVERSATIONS = 500, 300
CHOICES = 4
_STREAM = -2000  # of the order of choices
_OWNER = re.compile(r"^[A-Z]\w+ has\b")
_THING = re.compile(rf"\b({'|'.join((*OBJECTS, *PETS))})\b")
Documents = dict[str, Any]


def pairs(phenomenon: str, **_: Any) -> Documents:
    """Minimal pairs. The grammatical one comes first in half of them: a tie is no advantage."""
    rows = []
    for number, pair in enumerate(minimal_pairs(phenomenon)):
        answer = Dice(_STREAM, number).between(0, 1)
        rows.append({"choices": [*pair] if answer == 0 else [*pair][::-1], "answer": answer})
    return _split(rows)


def asked(**_: Any) -> Documents:
    """Held-out questions, to be answered freely."""
    return _split([_row(question) for question in questions(QUESTIONS)])


def chosen(**_: Any) -> Documents:
    """Held-out questions with four replies, of which one is right."""
    every = list(questions(QUESTIONS))
    values: dict[str, list[str]] = {}
    for question in every:
        values.setdefault(_sort(question), []).append(_answer(question))
    rows = []
    for number, question in enumerate(every):
        dice, right = Dice(_STREAM, number), _answer(question)
        near = dice.shuffled(_wrong(question, values))
        replies = dict.fromkeys(_with(question.reply, right, value) for value in near)
        wrong = [reply for reply in replies if not is_right(question, reply)][: CHOICES - 1]
        order = dice.shuffled([question.reply, *wrong])
        rows.append(_row(question) | {"choices": order, "answer": order.index(question.reply)})
    return _split(rows)


def conversations(**_: Any) -> Documents:
    """Held-out conversations as a whole, for bits per byte."""
    return _split([{"text": line_form(messages)} for messages in held_out(CONVERSATIONS)])


def score_reply(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score a free reply.

    `acc`: the answer stands in it as whole words, and nothing else that was told (`is_right`).
    `exact_match`: it is the right reply, but for case, punctuation and white space.
    """
    question = Question([], tuple(doc["answers"]), doc["kind"], tuple(doc["others"]), doc["reply"])
    reply = results[0]
    return {
        "acc": float(is_right(question, reply)),
        "exact_match": float(_plain(reply) == _plain(question.reply)),
    }


def _split(rows: list[dict[str, Any]]) -> Documents:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _row(question: Question) -> dict[str, Any]:
    return {
        "prompt": f"{line_form(question.messages)} [/INST]",
        "reply": question.reply,
        "kind": question.kind,
        "answers": list(question.answers),
        "others": list(question.others),
    }


def _answer(question: Question) -> str:
    """Return the answer as the right reply writes it."""
    for answer in question.answers:
        word = rf"(?<!\w){re.escape(answer.removeprefix('is '))}(?!\w)"
        if found := re.findall(word, question.reply, re.IGNORECASE):
            return found[-1]  # a sum may hold its result
    return question.reply


def _with(reply: str, right: str, value: str) -> str:
    """Return `reply` with another value in the place of the last right one."""
    before, _, after = reply.rpartition(right)
    return f"{before}{value if before else value[:1].upper() + value[1:]}{after}"


def _sort(question: Question) -> str:
    """Return what answers that could stand for each other have in common."""
    if question.kind == "world":
        words = question.messages[-1]["content"].lower().split()
        named = next((word for word in ("opposite", "capital") if word in words), None)
        return f"world {named or ' '.join(words[:2])}"
    reply = _with(question.reply, _answer(question), "_")
    return f"{question.kind} {_OWNER.sub('Name has', _THING.sub('thing', reply))}"


def _wrong(question: Question, values: dict[str, list[str]]) -> list[str]:
    """Return wrong answers of the right sort: near numbers, or what might have been told."""
    if question.kind == "identity":
        return [question.others[0].rsplit(" ", 1)[1].capitalize(), "Anna", "Ben", "Luna"]
    if question.kind == "arithmetic":
        value = int(question.answers[1].removeprefix("is "))
        return [number_word(value + by) for by in (-3, -2, -1, 1, 2, 3) if value + by >= 0]
    if _answer(question) in ROOMS:
        return list(ROOMS)
    for told, (_, _, _, (reply, *_), _) in ABOUT_ME.items():
        if question.reply == reply.replace("{x}", _answer(question)):
            return list(CHOICES_TOLD[told])
    near = values[_sort(question)]
    if len({*near}) <= CHOICES:
        near = [v for sort in values if sort.startswith(question.kind) for v in values[sort]]
    return [*dict.fromkeys(near)]


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
