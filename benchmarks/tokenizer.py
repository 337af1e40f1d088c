"""Preparing a corpus: text to token ids, a file to a token file, counting; beside tiktoken.

Rates are in bytes of UTF-8 a second.
"""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from i3lm.data import open_source, prepare
from i3lm.data.conversations import as_line, generate
from i3lm.errors import UserError
from i3lm.presets import DEFAULT_PRESET, find_preset
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter

if TYPE_CHECKING:
    import tiktoken

NAME = "tokenizer"
CORES = (1, 2)
CHECKED = 500_000  # characters compared with tokenizer.json
PEER = 4_000_000  # characters that the peer learns its merges on, and encodes in a turn


def run(
    *, rounds: int, threads: int, data: str | None = None, megabytes: float = 128.0
) -> dict[str, Any]:
    """Measure; return what the JSON holds."""
    try:
        from benchmarks.peers import bpe
    except ImportError:
        raise UserError("the peer is tiktoken; pip install 'i3lm[bench]'") from None
    size = find_preset(DEFAULT_PRESET).tokenizer_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(data) if data else write_conversations(folder / "text.txt", megabytes)
        texts = path.read_text(encoding="utf-8").split("\n")
        common.say("vocabularies")
        tokenizer = ChunkTokenizer(count(texts).build(size))
        few = first(texts, PEER)
        encoding = bpe.train(few, size)
        same = same_as_tokenizer_json(tokenizer, first(texts, CHECKED), folder / "tokenizer")
        works = {
            **ours(tokenizer, texts, path, folder / "corpus"),
            **peer(encoding, few, folder),
        }
        speeds = common.interleave(works, rounds)
        density = {
            "i3lm": sum(map(len, few)) / len(encode(tokenizer, few, 1)),
            "tiktoken": sum(map(len, few)) / len(bpe.encode(encoding, few, 1)),
        }
    middle = {name: figures["median"] for name, figures in speeds.items()}

    def ratio(what: str) -> float:
        return middle[f"i3lm {what}"] / middle[f"tiktoken {what}"]

    return {
        "ratio_tiktoken": ratio("file, cores 1"),
        "ratio_tiktoken_two_cores": ratio("file, cores 2"),
        "ratio_tiktoken_ids": ratio("ids, cores 1"),
        "two_cores": middle["i3lm file, cores 2"] / middle["i3lm file, cores 1"],
        "same_ids_as_tokenizer_json": same,
        "data": data or f"{megabytes:g} MB of built-in conversations",
        "bytes": sum(len(text.encode()) + 1 for text in texts),
        "vocabulary": {"i3lm": len(tokenizer), "tiktoken": encoding.n_vocab},
        "characters_per_token": density,
        "threads": threads,
        "rounds": rounds,
        "bytes_per_second": speeds,
    }


def ours(
    tokenizer: ChunkTokenizer, texts: Sequence[str], path: Path, folder: Path
) -> dict[str, common.Contender]:
    """Return the measurements of i3lm: parts of the work, and all of it from file to file."""

    def pack(threads: int, known: ChunkTokenizer | None) -> None:
        source = open_source(path)
        prepare(source, folder, tokenizer=known, rebuild=True, threads=threads)

    works: dict[str, Callable[[], object]] = {"i3lm counting": lambda: count(texts)}
    for n in CORES:
        works |= {
            f"i3lm ids, cores {n}": lambda n=n: encode(tokenizer, texts, n),
            f"i3lm file, cores {n}": lambda n=n: pack(n, tokenizer),
            f"i3lm counting and file, cores {n}": lambda n=n: pack(n, None),
        }
    return rates(works, path.stat().st_size)


def peer(
    encoding: "tiktoken.Encoding", texts: Sequence[str], folder: Path
) -> dict[str, common.Contender]:
    """Return the measurements of tiktoken."""
    from benchmarks.peers import bpe

    path, out = folder / "peer.txt", folder / "peer.bin"
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    works: dict[str, Callable[[], object]] = {}
    for n in CORES:
        works |= {
            f"tiktoken ids, cores {n}": lambda n=n: bpe.encode(encoding, texts, n),
            f"tiktoken file, cores {n}": lambda n=n: bpe.pack(encoding, path, out, n),
        }
    return rates(works, path.stat().st_size)


def rates(works: dict[str, Callable[[], object]], size: int) -> dict[str, common.Contender]:
    """Return for each work what measures its bytes a second over a text of `size` bytes."""

    def rate(work: Callable[[], object]) -> float:
        def run() -> int:
            work()
            return size

        return common.rate_of(run)

    return {name: lambda work=work: rate(work) for name, work in works.items()}


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


def count(texts: Sequence[str]) -> VocabularyCounter:
    """Count a vocabulary over texts."""
    counter = VocabularyCounter()
    for text in texts:
        counter.update(text)
    counter.build()
    return counter


def first(texts: Sequence[str], characters: int) -> Sequence[str]:
    """Return the first texts that together have so many characters."""
    number = 0
    while number < len(texts) and characters > 0:
        characters -= len(texts[number])
        number += 1
    return texts[:number]
