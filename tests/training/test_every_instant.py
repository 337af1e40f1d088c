"""A power cut, a full disk, a failing device: at every instant of what a run writes."""

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from disk_steps import DiskSteps, die

from i3lm.errors import UserError
from i3lm.files import remove_parts, writing_to
from i3lm.folder import load_folder, save_folder
from i3lm.model.network import I3Network
from i3lm.optim import make_optimizer
from i3lm.presets import Architecture
from i3lm.tokenizer import ChunkTokenizer, VocabularyCounter
from i3lm.training.checkpoint import Counters, load_newest, save_checkpoint

KILLS, REFUSALS = 110, 60  # a case


class Model:
    """The smallest network with its optimizer; `at(step)` gives each step weights of its own."""

    def __init__(self) -> None:
        counter = VocabularyCounter()
        counter.update("hello there, who are you? " * 20)
        self.tokenizer = ChunkTokenizer(counter.build(300))
        architecture = Architecture(
            vocab_size=len(self.tokenizer),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=8,
            rank=2,
            state_size=2,
        )
        torch.manual_seed(0)
        self.network = I3Network(architecture)
        self.optimizer = make_optimizer("lion", self.network.named_parameters(), None, 32)

    def at(self, step: int) -> "Model":
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.fill_(step)
            for tensor in self.optimizer.state_tensors().values():
                tensor.fill_(-step)
        return self

    def save(self, run: Path, step: int) -> None:
        """As a run does: a checkpoint, then the model."""
        self.at(step)
        save_checkpoint(run, self.network, self.optimizer, Counters(step=step))
        save_folder(run, self.network, self.tokenizer)

    def newest(self, run: Path) -> int:
        """Load the newest checkpoint; every number must be that step's."""
        counters, notes = load_newest(run, self.at(99).network, self.optimizer)
        assert notes == []
        self.require(counters.step)
        return counters.step

    def require(self, step: int) -> None:
        assert all((p == step).all() for p in self.network.parameters())
        assert all((t == -step).all() for t in self.optimizer.state_tensors().values())


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    """A run with checkpoints of steps 1 and 2, and the model of step 2."""
    run = tmp_path_factory.mktemp("instants") / "run"
    run.mkdir()
    for step in (1, 2):
        model.save(run, step)
    return run


def shown(run: Path) -> int:
    """Return the step of the model folder, which must load and be of one step throughout."""
    state = load_folder(run).network.state_dict()
    values = {float(v) for p in state.values() for v in (p.min(), p.max())}
    assert len(values) == 1
    return int(values.pop())


def instants(model: Model, saved: Path, folder: Path, step: int, number: int) -> list[int]:
    """Return `number` of the instants at which saving `step` changes the disk, drawn at random.

    All of them where I3LM_ALL_INSTANTS is set, as `make soak` does.
    """
    run = shutil.copytree(saved, folder / "counted")
    with pytest.MonkeyPatch.context() as patch:
        steps = DiskSteps(patch, 0, die)
        model.save(run, step)
    every = range(1, steps.count + 1)
    if os.environ.get("I3LM_ALL_INSTANTS"):
        return list(every)
    return sorted(random.Random(step).sample(every, number))


@pytest.mark.parametrize("step", [3, 2], ids=["rotating", "replacing a checkpoint of the step"])
def test_a_kill_at_any_instant_leaves_a_loadable_folder(model, saved, tmp_path, step):
    """kill -9 of a process at changes of the disk, 220 of them in all.

    Then the newest checkpoint and the model folder load, each wholly of one step, and the run goes
    on: what the dead process has left is gone after the next save.
    """
    for at in instants(model, saved, tmp_path, step, KILLS):
        run = shutil.copytree(saved, tmp_path / "run")
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                DiskSteps(patch, at, die)
                model.save(run, step)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert model.newest(run) in (2, step)
        assert shown(run) in (2, step)
        assert os.WTERMSIG(status) == signal.SIGKILL
        remove_parts(run)
        model.save(run, 4)
        assert (model.newest(run), shown(run)) == (4, 4)
        hidden = [p for p in run.rglob(".*") if not p.name.startswith(".old-step-")]
        assert hidden == [], at
        shutil.rmtree(run)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=os.strerror)
def test_a_disk_that_refuses_at_any_instant_costs_nothing(model, saved, tmp_path, number):
    """At any change of the disk, once or from then on: one line, all that was good stays so."""
    said: list[str] = []

    def refuse():
        raise OSError(number, os.strerror(number))

    for at in instants(model, saved, tmp_path, 3, REFUSALS):
        run = shutil.copytree(saved, tmp_path / "run")
        with pytest.MonkeyPatch.context() as patch:
            DiskSteps(patch, at, refuse, lasting=number == errno.ENOSPC)
            try:
                with writing_to(run):
                    model.save(run, 3)
            except UserError as error:
                said.append(str(error))
            model.require(3)  # what is in memory is as it was
        assert model.newest(run) in (2, 3)
        assert shown(run) in (2, 3)
        assert not list(run.rglob(".*.part"))
        model.save(run, 4)  # there is room again
        assert (model.newest(run), shown(run)) == (4, 4)
        shutil.rmtree(run)
    assert len(said) > 0.8 * REFUSALS
    assert all(os.strerror(number) in line and "\n" not in line for line in said)
