import json

import pytest
from tokenizer_texts import SAMPLE

from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter


@pytest.fixture(scope="session")
def tokenizer():
    counter = VocabularyCounter()
    counter.update(SAMPLE)
    return ChunkTokenizer(counter.build(600))


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path, 256)
    return path


@pytest.fixture(scope="session")
def fast(folder):
    """The saved folder as everybody else loads it."""
    from transformers import AutoTokenizer

    assert "auto_map" not in json.loads((folder / "tokenizer_config.json").read_text())
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def without_kernel(monkeypatch):
    for module in ("chunks", "counting"):
        monkeypatch.setattr(f"i3lm.tokenizer.{module}.library", lambda: None)
