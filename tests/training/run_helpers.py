"""What tests of faults ask of a run folder."""

import hashlib
from pathlib import Path

import torch

from i3lm.data import Corpus
from i3lm.model.network import I3Network
from i3lm.training.checkpoint import Counters, list_checkpoints, load_newest
from i3lm.training.config import TrainConfig
from i3lm.training.loop import Trainer


def weights(run: Path) -> str:
    """Return a digest of the newest checkpoint's weights and optimizer state."""
    files = sorted(list_checkpoints(run)[0].glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def reload(run: Path) -> tuple[Counters, list[str]]:
    """Load the newest sound checkpoint as a resumed run does."""
    config, corpus = TrainConfig.load(run), Corpus.open(run / "data")
    network = I3Network(config.architecture(len(corpus.tokenizer)))
    trainer = Trainer(config, corpus, network, "fp32", torch.device("cpu"))
    trainer.close()
    return load_newest(run, trainer.network, trainer.optimizer)
