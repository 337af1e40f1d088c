"""What a report says about the tokenizer and the text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from i3lm.data import Corpus
from i3lm.tokenizer.rule import FIRST_BYTE, FIRST_CHUNK

SAMPLE_TOKENS = 1_000_000  # of the training text, at its start
PIECE = 1 << 16  # tokens that are counted at once
COMMON = 24
KINDS = ("special tokens", "bytes", "1 character", "2 characters", "3 characters")


@dataclass(frozen=True)
class TokenFacts:
    """Statistics of a prepared corpus."""

    description: str
    vocabulary: int
    characters_per_token: float
    documents: int
    train_tokens: int
    held_out_tokens: int
    kinds: list[tuple[str, int, float]]  # name, tokens of the vocabulary, share of the text
    common: list[tuple[str, float]]  # the most frequent chunks and their share of the text


def token_facts(folder: Path) -> TokenFacts:
    """Read a run's `data` folder; counts over its first million training tokens."""
    corpus = Corpus.open(folder)
    tokens = corpus.tokenizer.tokens
    counts = np.zeros(len(tokens), np.int64)
    for start in range(0, min(len(corpus.train), SAMPLE_TOKENS), PIECE):
        piece = corpus.train[start : min(start + PIECE, SAMPLE_TOKENS)]
        counts += np.bincount(piece, minlength=len(tokens))
    total = max(1, int(counts.sum()))
    kind = [
        0 if i < FIRST_BYTE else 1 if i < FIRST_CHUNK else 1 + len(token)
        for i, token in enumerate(tokens)
    ]
    held = np.bincount(kind, minlength=len(KINDS))
    used = np.bincount(kind, weights=counts, minlength=len(KINDS)) / total
    order = [int(i) for i in np.argsort(-counts, kind="stable") if i >= FIRST_CHUNK and counts[i]]
    return TokenFacts(
        description=str(corpus.manifest["description"]),
        vocabulary=len(tokens),
        characters_per_token=corpus.characters_per_token,
        documents=int(corpus.manifest["train"]["documents"]),
        train_tokens=len(corpus.train),
        held_out_tokens=len(corpus.held_out),
        kinds=[(name, int(held[i]), float(used[i])) for i, name in enumerate(KINDS)],
        common=[(tokens[i], int(counts[i]) / total) for i in order[:COMMON]],
    )
