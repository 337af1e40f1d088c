"""The tokenizer's rule, written plainly: what the C kernel and tokenizer.json have to agree with.

Greedy, left to right. At a position take the next three characters if they are a common trigram,
or stand right after a space, or right before one, and are in the vocabulary. Otherwise the
next two if they are in the vocabulary, otherwise one, otherwise the bytes of that one in UTF-8.
Only the text itself is looked at: nothing stands before its first character or after its last.
"""

from collections.abc import Iterator, Mapping

import numpy as np

SPECIAL_TOKENS = ("<unk>", "<pad>", "<bos>", "<eos>", "[INST]", "[/INST]")
UNK, PAD, BOS, EOS, INST, END_INST = range(6)
CONVERSATION = BOS, INST  # how a conversation opens, and no other document
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIRST_BYTE = len(SPECIAL_TOKENS)
FIRST_CHUNK = FIRST_BYTE + len(BYTE_TOKENS)  # the first id that stands for characters
_COMMON = """
the and ing ion tio for tha ter hat his ere ent her was you are not but can all whi one our out whe
hav thi wit
"""
TRIGRAMS = frozenset(_COMMON.split())


def is_long(text: str, start: int) -> bool:
    """Return whether the rule asks for three characters at `start`, and they are there."""
    end = start + 3
    return end <= len(text) and (
        text[start:end] in TRIGRAMS
        or (start > 0 and text[start - 1] == " ")
        or text[end : end + 1] == " "
    )


def encode(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the ids of `text`; `vocabulary` maps chunks of 1 to 3 characters to ids."""
    ids: list[int] = []
    start = 0
    while start < len(text):
        for length in (3, 2, 1) if is_long(text, start) else (2, 1):
            chunk = text[start : start + length]
            if len(chunk) == length and chunk in vocabulary:
                ids.append(vocabulary[chunk])
                break
        else:
            ids += [FIRST_BYTE + byte for byte in text[start].encode()]
        start += length
    return ids


def chunks(text: str) -> Iterator[str]:
    """Yield the chunks of `text` that the rule takes when every chunk is in the vocabulary."""
    start = 0
    while start < len(text):
        length = 3 if is_long(text, start) else 2
        yield text[start : start + length]
        start += length


def lower(text: str) -> str:
    """Return `text` with every character lower-cased by itself, whatever its neighbours.

    Python alone knows the final sigma; without it tokenizer.json does the same. Cased letters that
    are newer than this Python's Unicode tables stay as they are.
    """
    return text.replace("Σ", "σ").lower()


# Chunks as numbers, for numpy and C: 21 bits a character, its code point plus one, the first
# character highest. Zero stands for none, so numbers sort as their strings do.
_BITS = 21
_MASK = (1 << _BITS) - 1


def pack(chunk: str) -> int:
    """Return the number of a chunk of 1 to 3 characters."""
    number = 0
    for position in range(3):
        code = ord(chunk[position]) + 1 if position < len(chunk) else 0
        number = number << _BITS | code
    return number


def unpack(number: int) -> str:
    """Return the chunk that `pack` gave this number."""
    codes = (number >> 2 * _BITS, number >> _BITS & _MASK, number & _MASK)
    return "".join(chr(code - 1) for code in codes if code)


def common_table() -> np.ndarray:
    """Return uint8 (32768,): 1 for the common trigrams, at the low 5 bits of their letters."""
    table = np.zeros(1 << 15, np.uint8)
    for trigram in TRIGRAMS:
        a, b, c = (byte & 31 for byte in trigram.encode())
        table[a << 10 | b << 5 | c] = 1
    return table
