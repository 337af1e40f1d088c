"""A byte-level BPE of any vocabulary size in tiktoken, and the plain way to a token file."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tiktoken

# The pattern that tiktoken has for GPT-2, the faster one of its patterns.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
LINES = 512  # encoded at a time by a thread


def train(documents: Sequence[str], size: int) -> tiktoken.Encoding:
    """Return an encoding of `size` tokens in all, merged on `documents`; the last is the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    vocabulary, byte_of = tokenizer.get_vocab(), dict(zip(_alphabet(), range(256), strict=True))
    ranks = {
        bytes(byte_of[character] for character in token): rank
        for rank, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))
    }
    return tiktoken.Encoding(
        "bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|end|>": len(ranks)}
    )


def _alphabet() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary (GPT-2's rule)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def encode(encoding: tiktoken.Encoding, texts: Sequence[str], threads: int) -> np.ndarray:
    """Return the ids of all texts, uint16, the way that costs tiktoken least: no Python lists."""

    def part(some: Sequence[str]) -> np.ndarray:
        ids = [encoding.encode_to_numpy(text, disallowed_special=()) for text in some]
        return np.concatenate(ids).astype(np.uint16)

    return np.concatenate(_map(part, list(_parts(texts)), threads))


def pack(encoding: tiktoken.Encoding, path: Path, out: Path, threads: int) -> int:
    """Write the lines of a text file as uint16 ids, an end token after each; return their number.

    Reads the whole file: no bookkeeping, no held-out part, no limit on memory.
    """
    end = np.array([encoding.n_vocab - 1], np.uint32)

    def part(lines: Sequence[str]) -> np.ndarray:
        ids = []
        for line in lines:
            ids += [encoding.encode_to_numpy(line, disallowed_special=()), end]
        return np.concatenate(ids).astype(np.uint16)

    lines = path.read_text(encoding="utf-8").splitlines()
    ids = np.concatenate(_map(part, list(_parts(lines)), threads))
    ids.tofile(out)
    return len(ids)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[begin : begin + LINES] for begin in range(0, len(texts), LINES))


def _map(
    work: Callable[[Sequence[str]], np.ndarray], parts: list[Sequence[str]], threads: int
) -> list[np.ndarray]:
    if threads == 1:
        return list(map(work, parts))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))
