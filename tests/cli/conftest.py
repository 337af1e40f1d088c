from pathlib import Path

import pytest
import torch
from cli_models import TEXT, WINDOW

from i3lm.__main__ import main
from i3lm.folder import Loaded, load_folder, save_folder
from i3lm.model.network import I3Network
from i3lm.presets import Architecture
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Products of this size are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A model of random weights that looks at all its context."""
    counter = VocabularyCounter()
    counter.update(TEXT)
    tokenizer = ChunkTokenizer(counter.build(vocab_size=400))
    architecture = Architecture(
        vocab_size=len(tokenizer) + 7,
        used_vocab_size=len(tokenizer),
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
            if parameter.ndim == 2:  # the compiled decoding step reads factors as bfloat16
                parameter.copy_(parameter.bfloat16())
    path = tmp_path_factory.mktemp("model")
    save_folder(path, network, tokenizer, run=None)
    return path


@pytest.fixture(scope="session")
def loaded(folder) -> Loaded:
    return load_folder(folder, "cpu")


@pytest.fixture
def run(capsys):
    """Run a command line; return exit code, standard output, standard error."""

    def call(*arguments) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(run):
    """Run a command line that must end with one line of error; return that line."""

    def call(*arguments) -> str:
        code, out, err = run(*arguments)
        assert code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return call
