"""Preparing a corpus: text to token ids, a file to a token file, counting; beside tiktoken.

Rates are in bytes of UTF-8 a second.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.peers import bpe
from i3lm.data import open_source, prepare
from i3lm.data.conversations import as_line, generate
from i3lm.errors import UserError
from i3lm.presets import DEFAULT_PRESET, find_preset
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter

NAME = "tokenizer"
CHECKED = 500_000  # characters compared with tokenizer.json
TRAINED = 4_000_000  # characters that the peer's merges are learnt on


def run(
    *, rounds: int, threads: int, data: str | None = None, megabytes: float = 16.0
) -> dict[str, Any]:
    """Measure; return what the JSON holds."""
    size = find_preset(DEFAULT_PRESET).tokenizer_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(data) if data else write_conversations(folder / "text.txt", megabytes)
        texts = path.read_text(encoding="utf-8").splitlines()
        total = path.stat().st_size
        common.say("vocabularies")
        tokenizer = ChunkTokenizer(_count(texts).build(size))
        encoding = bpe.train(_first(texts, TRAINED), size)
        same = same_as_tokenizer_json(tokenizer, _first(texts, CHECKED), folder / "tokenizer")
        works: dict[str, Callable[[], object]] = {"i3lm counting": lambda: _count(texts)}
        for n in (1, 2):
            works |= {
                f"i3lm ids, cores {n}": lambda n=n: encode(tokenizer, texts, n),
                f"tiktoken ids, cores {n}": lambda n=n: bpe.encode(encoding, texts, n),
                f"i3lm file, cores {n}": lambda n=n: prepare(
                    open_source(path),
                    folder / "corpus",
                    tokenizer=tokenizer,
                    rebuild=True,
                ),
                f"tiktoken file, cores {n}": lambda n=n: bpe.pack(
                    encoding, path, folder / "tiktoken.bin", n
                ),
            }
        speeds = common.interleave(
            {
                name: lambda work=work: common.rate_of(lambda: (work(), total)[1])
                for name, work in works.items()
            },
            rounds,
        )
    middle = {name: figures["median"] for name, figures in speeds.items()}
    return {
        "ratio_tiktoken": middle["i3lm file, cores 1"] / middle["tiktoken file, cores 1"],
        "ratio_tiktoken_two_cores": middle["i3lm file, cores 2"] / middle["tiktoken file, cores 2"],
        "ratio_tiktoken_ids": middle["i3lm ids, cores 1"] / middle["tiktoken ids, cores 1"],
        "two_cores": middle["i3lm file, cores 2"] / middle["i3lm file, cores 1"],
        "same_ids_as_tokenizer_json": same,
        "data": data or f"{megabytes:g} MB of built-in conversations",
        "bytes": total,
        "vocabulary": {"i3lm": len(tokenizer), "tiktoken": encoding.n_vocab},
        "characters_per_token": {
            "i3lm": _density(texts, encode(tokenizer, texts, 1)),
            "tiktoken": _density(texts, bpe.encode(encoding, texts, 1)),
        },
        "threads": threads,
        "rounds": rounds,
        "bytes_per_second": speeds,
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    common.print_table(
        f"preparing {result['data']}",
        ["what", "MB/s", "spread"],
        [
            [name, *common.cells(speed, 1e6, 1)]
            for name, speed in result["bytes_per_second"].items()
        ],
    )
    names = ("ratio_tiktoken", "ratio_tiktoken_two_cores", "ratio_tiktoken_ids", "two_cores")
    common.print_table("ratios", ["of", "ratio"], [[n, f"{result[n]:.2f}"] for n in names])


def write_conversations(path: Path, megabytes: float) -> Path:
    """Write so much of the embedded conversations, a line each."""
    size, seed = 0, 0
    with open(path, "w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for messages in generate(256, seed):
                size += file.write(as_line(messages) + "\n")
            seed += 1
    return path


def encode(tokenizer: ChunkTokenizer, texts: Sequence[str], threads: int) -> np.ndarray:
    """Return the ids of all texts, by `threads` threads."""
    if threads == 1:
        return tokenizer.encode_batch(texts)[0]
    step = -(-len(texts) // (4 * threads)) or 1
    parts = [texts[begin : begin + step] for begin in range(0, len(texts), step)]
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(lambda part: tokenizer.encode_batch(part)[0], parts)))


def same_as_tokenizer_json(tokenizer: ChunkTokenizer, texts: Sequence[str], folder: Path) -> bool:
    """Return True; an error where `tokenizers` gives other ids by tokenizer.json."""
    from tokenizers import Tokenizer

    tokenizer.save(folder)
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = [text.replace("[", "(") for text in texts]  # tags would become special tokens there
    for text, theirs in zip(
        plain, other.encode_batch(plain, add_special_tokens=False), strict=True
    ):
        if tokenizer.encode(text).tolist() != theirs.ids:
            raise UserError(f"tokenizer.json gives other ids for {text[:60]!r}; report it")
    return True


def _count(texts: Sequence[str]) -> VocabularyCounter:
    counter = VocabularyCounter()
    for text in texts:
        counter.update(text)
    counter.build()
    return counter


def _first(texts: Sequence[str], characters: int) -> Sequence[str]:
    """Return the first texts, of about so many characters."""
    number = 0
    while number < len(texts) and characters > 0:
        characters -= len(texts[number])
        number += 1
    return texts[:number]


def _density(texts: Sequence[str], ids: np.ndarray) -> float:
    return sum(map(len, texts)) / len(ids)
