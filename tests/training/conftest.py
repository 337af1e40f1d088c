"""A small corpus and the smallest run that is a run."""

from pathlib import Path

import pytest

from i3lm.training.config import TrainConfig

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank")
THINGS = ("a dog", "a red ball", "two cats", "an old house", "some bread", "the sea")


def write_conversations(path: Path, count: int = 200) -> Path:
    lines = []
    for i in range(count):
        name, thing = NAMES[i % 6], THINGS[(i // 6) % 6]
        lines.append(
            f"[INST] Hi, I am {name}. [/INST] Hello {name}! What do you like? "
            f"[INST] I like {thing}. What is my name? [/INST] Your name is {name}, number {i}."
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("text") / "talk.txt")


@pytest.fixture
def small_config(text_file, tmp_path):
    def make(**changes) -> TrainConfig:
        settings = {
            "data": (str(text_file),),
            "out": str(tmp_path / "run"),
            "preset": "i3-tiny",
            "vocab_size": 400,
            "context": 32,
            "batch_tokens": 128,
            "microbatch": 2,
            "steps": 8,
            "threads": 1,
            "precision": "fp32",
        }
        return TrainConfig(**{**settings, **changes})

    return make
