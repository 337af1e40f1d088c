"""Documents to pack, and what was packed taken apart again."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from i3lm.data.documents import Document
from i3lm.data.packing import Corpus
from i3lm.data.sources import Source

BOS, EOS, INST = 2, 3, 4
VOCAB = 400

wild = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(str.strip)


def stories(count: int) -> list[str]:
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "red", "bird", "house"]
    rng = np.random.default_rng(7)
    return [f"Story {n}: " + " ".join(rng.choice(words, 12)) + "." for n in range(count)]


def lines_file(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def of(*documents: str | list) -> Source:
    def read(advance):
        for number, item in enumerate(documents):
            text, messages = (item, None) if isinstance(item, str) else (None, item)
            yield Document(text, messages, f"document {number}")

    return Source("test documents", {"test": len(documents)}, read)


def talk(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


def divide(tokens: np.ndarray) -> list[np.ndarray]:
    """Take a token stream apart at `<bos>` and `<eos>`."""
    ends = np.flatnonzero(tokens == EOS) + 1
    documents = np.split(tokens, ends)[:-1]
    assert ends[-1] == len(tokens)
    assert all(document[0] == BOS and (document == BOS).sum() == 1 for document in documents)
    return documents


def decoded(corpus: Corpus, split: str) -> list[str]:
    return [corpus.tokenizer.decode(ids) for ids in divide(getattr(corpus, split))]
