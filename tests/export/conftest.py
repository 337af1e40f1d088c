"""A small model that looks at all its context, and what it exports to."""

import os

import pytest
import torch
from export_helpers import WINDOW

os.environ["HF_DATASETS_OFFLINE"] = "1"  # before datasets is imported

from i3lm.data.conversations import as_line, generate
from i3lm.exporting import export
from i3lm.folder import load_folder, save_folder
from i3lm.model.network import I3Network
from i3lm.presets import Architecture
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    counter = VocabularyCounter()
    counter.update(" ".join(as_line(messages) for messages in generate(200)))
    tokenizer = ChunkTokenizer(counter.build(600))
    sizes = Architecture(
        vocab_size=len(tokenizer) + 7, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=WINDOW, rank=8, state_size=4,
        used_vocab_size=len(tokenizer),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        network = I3Network(sizes)
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    path = tmp_path_factory.mktemp("model") / "model"
    save_folder(path, network, tokenizer)
    return path


@pytest.fixture(scope="session")
def loaded(folder):
    return load_folder(folder)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(as_line(messages) for messages in generate(4, seed=9)))
    return path


@pytest.fixture(scope="session")
def onnx_result(folder, text, tmp_path_factory):
    return export(folder, tmp_path_factory.mktemp("onnx") / "out", "onnx", data=[text])


@pytest.fixture(scope="session")
def executorch_result(folder, text, tmp_path_factory):
    return export(folder, tmp_path_factory.mktemp("pte") / "out", "executorch", data=[text])
