"""Evaluate a model on text: bits per character and perplexities."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from i3lm.data import open_source
from i3lm.data.documents import Division
from i3lm.errors import UserError
from i3lm.generation import Model, open_model
from i3lm.scoring import check_window, score_tokens, window_rule

Spec = str | Path


def evaluate(
    model: Model,
    data: Spec | Sequence[Spec],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch: int = 8,
    documents: Division = "auto",
    text_column: str | None = None,
    split: str = "train",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return how well a model predicts the documents of `data`; less is better throughout.

    The documents, each with its special tokens, form one stream of tokens, which is scored in
    windows of `context` tokens (default: the model's window) every `stride` tokens (default: half
    the context; `stride=context` sets them side by side). Every token but the first counts once.

    - `bits_per_character`: all nats / ln 2 / all characters. Characters are code points of the
      text, line ends and the tags of conversations included; the nats of special tokens count.
    - `perplexity_per_token`, `perplexity_per_word`: exp of all nats by the number of tokens, and of
      words between white space; None where that overflows.
    - `loss_per_token` in nats; `tokens`, `characters`, `words`, `documents`; `context`, `stride`
      and their `rule` in words; `data`, `seconds`.

    model, data: as in `i3lm.load` and `i3lm train --data`. `progress` gets the tokens done and
    in all. UserError for unreadable or empty data, or a context beyond the model's window.
    """
    loaded = open_model(model)
    context, stride = check_window(loaded.network, context, stride)
    source = open_source(data, documents=documents, text_column=text_column, split=split)
    parts, characters, words = [], 0, 0
    for document in source:
        if document.messages is None:
            parts.append(loaded.tokenizer.encode_document(document.plain))
        else:
            parts.append(loaded.tokenizer.encode_conversation(document.messages))
        characters += document.characters
        words += len(document.plain.split())
    if not parts:
        raise UserError(f"{source.description}: no text in it; give a file with text")
    tokens = np.concatenate(parts)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, len(tokens) - 1)

    begin = time.monotonic()
    nats, count = score_tokens(loaded.network, tokens, context, stride, batch, advance)
    return {
        "bits_per_character": nats / math.log(2) / characters,
        "perplexity_per_token": _perplexity(nats, count),
        "perplexity_per_word": _perplexity(nats, words),
        "loss_per_token": nats / count,
        "tokens": count,
        "characters": characters,
        "words": words,
        "documents": len(parts),
        "context": context,
        "stride": stride,
        "rule": window_rule(context, stride),
        "data": source.description,
        "seconds": round(time.monotonic() - begin, 3),
    }


def _perplexity(nats: float, count: int) -> float | None:
    try:
        return math.exp(nats / count)
    except OverflowError:
        return None
