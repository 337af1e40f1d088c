"""Checkpoints: a folder a step, written whole or not at all, found sound before it is used.

checkpoints/step-00000500/model.safetensors       parameters, float32 or as stored (model/stored.py)
                          optimizer.safetensors   the optimizer's state tensors
                          trainer.json            counters, the SHA-256 of both files and its own
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from i3lm.errors import UserError
from i3lm.files import read_small, sha256_file, sync_folder, write_atomic
from i3lm.model.stored import load_state, state_of
from i3lm.optim import Optimizer
from i3lm.tensorfile import Deferred, read_tensors, write_tensors

FORMAT = 2
KEEP = 2
# What reading a damaged file may end in.
UNSOUND = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError,
    UserError,
)  # fmt: skip
FILES = ("model.safetensors", "optimizer.safetensors")
OUTER = "outer."  # begins the names of states of training with local steps (diloco.py)
Tensors = Mapping[str, Tensor | Deferred]


@dataclass
class Counters:
    """How far a run is. Data order and schedule are pure functions of these."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # training time used so far, over all starts
    metrics_bytes: int = 0  # length of metrics.jsonl at this point
    rate_cuts: int = 0  # how often the rates were halved, after a loss that exploded
    owes_evaluation: bool = False  # a signal came while this step was evaluated

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type or not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} is {value!r}")


def save_checkpoint(
    run: Path,
    network: nn.Module,
    optimizer: Optimizer,
    counters: Counters,
    more: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint of `counters.step` and drop all but the newest two.

    `more`: tensors beside the optimizer's states, of names that begin with OUTER.
    UserError where it cannot be written or a value is not finite; older checkpoints then stay.
    """
    weights, states = state_of(network), {**optimizer.state_tensors(), **(more or {})}
    for part in (weights, states):
        _require_finite(part)
    return save_tensors(run, weights, states, optimizer.steps, counters)


def save_tensors(
    run: Path, weights: Tensors, states: Tensors, optimizer_steps: int, counters: Counters
) -> Path:
    """Write a checkpoint, as `save_checkpoint`, of tensors that are finite."""
    folder = run / "checkpoints"
    target = folder / f"step-{counters.step:08d}"
    temporary = folder / f".writing-{counters.step:08d}"
    try:
        if not run.is_dir():
            raise FileNotFoundError(f"{run} is gone")
        folder.mkdir(exist_ok=True)
        for stray in folder.glob(".writing-*"):  # of a process that was killed
            shutil.rmtree(stray)
        temporary.mkdir()
        _write(temporary, (weights, states), optimizer_steps, counters)
        _replace(temporary, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        then = f", then i3lm train --resume {run}" if list_checkpoints(run) else ""
        raise UserError(
            f"the checkpoint of step {counters.step} failed: {error}; make room on that disk{then}"
        ) from None
    for old in list_checkpoints(run)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write(
    folder: Path, tensors: tuple[Tensors, Tensors], optimizer_steps: int, counters: Counters
) -> None:
    sums = {
        name: write_tensors(folder / name, part) for name, part in zip(FILES, tensors, strict=True)
    }
    manifest = {
        "format": FORMAT,
        "counters": asdict(counters),
        "optimizer_steps": optimizer_steps,
        "sha256": sums,
    }
    manifest["check"] = _digest(manifest)
    write_atomic(folder / "trainer.json", json.dumps(manifest, indent=2).encode())


def _replace(temporary: Path, target: Path) -> None:
    """Put a finished checkpoint in its place, where after a resume one of the step may be."""
    old = target.with_name(f".old-{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    try:
        os.replace(temporary, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first.

    One that was moved aside counts where a kill has kept its successor from taking the name.
    """
    folder = run / "checkpoints"
    digits = "[0-9]" * 8
    found = {p.name.removeprefix(".old-"): p for p in folder.glob(f".old-step-{digits}")}
    found |= {path.name: path for path in folder.glob(f"step-{digits}")}
    return [found[name] for name in sorted(found, reverse=True)]


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds: counters, tensors by name, and how often the optimizer stepped."""

    counters: Counters
    weights: dict[str, Tensor]
    states: dict[str, Tensor]
    outer: dict[str, Tensor]  # of training with local steps
    optimizer_steps: int


def load_newest(
    run: Path,
    network: nn.Module,
    optimizer: Optimizer,
    more: dict[str, Tensor] | None = None,
) -> tuple[Counters, list[str]]:
    """Load the newest sound checkpoint into the network and the optimizer, and into `more`.

    What `more` wants and a checkpoint of other training lacks becomes zero.
    Returns and raises as `read_newest`.
    """
    found, notes = read_newest(run, network)
    for name, tensor in (more or {}).items():
        tensor.copy_(found.outer.get(name, torch.zeros_like(tensor)))
    optimizer.load_state(found.states, found.optimizer_steps)
    load_state(network, found.weights)
    return found.counters, notes


def read_newest(run: Path, network: nn.Module) -> tuple[Found, list[str]]:
    """Return the newest sound checkpoint of a network of these shapes.

    Also one sentence for each damaged checkpoint that was passed over.
    Raises UserError when there is no sound one.
    """
    notes: list[str] = []
    for folder in list_checkpoints(run):
        try:
            manifest = _read_manifest(folder)
            state, moments = (read_tensors(folder / name) for name in FILES)
            counters = _counters(folder, manifest)
            for part in (state, moments):
                _require_finite(part)
        except UNSOUND as error:
            notes.append(f"{folder.name} is damaged and was passed over: {error}")
            continue
        _require_shapes(folder, state, network)
        outer = {name: moments.pop(name) for name in list(moments) if name.startswith(OUTER)}
        return Found(counters, state, moments, outer, manifest["optimizer_steps"]), notes
    reason = f" ({notes[0]})" if notes else ""
    raise UserError(f"{run} has no sound checkpoint to go on from{reason}; start a new run")


def set_aside(run: Path, step: int) -> None:
    """Move checkpoints after `step` out of the way: passed over as damaged, none may count as one
    of the two that are kept. The newest one stays as `.damaged-step-...`, to be looked at."""
    newer = [path for path in list_checkpoints(run) if _step_of(path) > step]
    if not newer:
        return
    for old in (run / "checkpoints").glob(".damaged-*"):
        shutil.rmtree(old, ignore_errors=True)
    for path in newer[1:]:
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # a disk that takes no writes: the next save will say so
        newer[0].rename(newer[0].with_name(f".damaged-{newer[0].name.removeprefix('.old-')}"))


def _step_of(folder: Path) -> int:
    """Return the step in a checkpoint's name; ValueError for another name."""
    return int(folder.name.removeprefix(".old-").removeprefix("step-"))


def _counters(folder: Path, manifest: dict) -> Counters:
    counters = Counters(**manifest["counters"])
    if counters.step != _step_of(folder):
        raise ValueError(f"it is the checkpoint of step {counters.step}")
    return counters


def _read_manifest(folder: Path) -> dict:
    if folder.is_symlink():
        raise ValueError("it is a link")
    manifest = json.loads(read_small(folder / "trainer.json"))
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']}, this i3lm reads {FORMAT}")
    if manifest.pop("check") != _digest(manifest):
        raise ValueError("trainer.json does not match its checksum")
    for name in FILES:
        if (folder / name).is_symlink():
            raise ValueError(f"{name} is a link")
        if sha256_file(folder / name) != manifest["sha256"][name]:
            raise ValueError(f"{name} does not match its checksum")
    return manifest


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _require_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{name} holds values that are not finite")


def _require_shapes(folder: Path, state: dict[str, Tensor], network: nn.Module) -> None:
    own = state_of(network)
    if {_matrix(name) for name in own} == {_matrix(name) for name in state} and own.keys() != (
        state.keys()
    ):
        raise UserError(
            f"{folder} keeps its weights in other bits; resume with the run's own --weight-bits"
        )
    if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        raise UserError(f"{folder} is of another model than run.json says; restore its run.json")


def _matrix(name: str) -> str:
    return name.removesuffix(".codes").removesuffix(".scales")
