"""A tiny random model folder, and the same model in transformers."""

import pytest
import torch

from i3lm.folder import save_folder
from i3lm.model.network import I3Network
from i3lm.presets import Architecture
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter

WINDOW = 48


@pytest.fixture(scope="session")
def network_and_tokenizer():
    counter = VocabularyCounter()
    counter.update("hello there, who are you? I am i3. Anna likes cats and the sea. " * 20)
    tokenizer = ChunkTokenizer(counter.build(400))
    architecture = Architecture(
        vocab_size=450,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=WINDOW,
        rank=4,
        state_size=4,
        used_vocab_size=len(tokenizer),
    )
    torch.manual_seed(0)
    network = I3Network(architecture).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network, tokenizer


@pytest.fixture(scope="session")
def folder(network_and_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "model"
    save_folder(path, *network_and_tokenizer)
    return path


@pytest.fixture(scope="session")
def model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="session")
def hf_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
