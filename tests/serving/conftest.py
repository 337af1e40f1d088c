from pathlib import Path

import pytest
import torch
from serving_helpers import WINDOW, Server

from i3lm.folder import Loaded, load_folder, save_folder
from i3lm.model.network import I3Network
from i3lm.presets import Architecture
from i3lm.tokenizer import EOS, INST, ChunkTokenizer, VocabularyCounter

TEXT = "the cat sat on the mat with the other hat and her tea, was it not for you?\n"


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A model of random weights that never ends a reply of itself."""
    counter = VocabularyCounter()
    counter.update(TEXT)
    tokenizer = ChunkTokenizer(counter.build(vocab_size=400))
    architecture = Architecture(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=WINDOW,
        rank=8,
        state_size=4,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        network = I3Network(architecture)
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        network.lm_head.bias[[EOS, INST]] -= 1e4
        network.lm_head.bias[6:262] -= 1e4  # no bytes: they would make replacement characters
    path = tmp_path_factory.mktemp("serving") / "tiny"
    save_folder(path, network, tokenizer, run=None)
    return path


@pytest.fixture(scope="session")
def loaded(folder) -> Loaded:
    return load_folder(folder)


@pytest.fixture(scope="session")
def server(folder):
    """A server process with long replies, open to all on this computer."""
    with Server(folder, "--max-new-tokens", "1000000", "--workers", "2") as running:
        yield running


@pytest.fixture(scope="module")
def public(folder):
    """For everyone on the network."""
    with Server(
        folder, "--host", "0.0.0.0", "--queue", "250", "--max-new-tokens", "1000000"
    ) as running:
        yield running
