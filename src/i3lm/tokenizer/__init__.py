"""The chunk tokenizer: its rule, its vocabulary, its files."""

from i3lm.tokenizer.chunks import ChunkTokenizer
from i3lm.tokenizer.counting import VocabularyCounter
from i3lm.tokenizer.rule import (
    BOS,
    CONVERSATION,
    END_INST,
    EOS,
    INST,
    PAD,
    SPECIAL_TOKENS,
    UNK,
)

__all__ = [
    "BOS",
    "CONVERSATION",
    "END_INST",
    "EOS",
    "INST",
    "PAD",
    "SPECIAL_TOKENS",
    "UNK",
    "ChunkTokenizer",
    "VocabularyCounter",
]
