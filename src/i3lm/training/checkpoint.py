"""Checkpoints: a folder a step, written whole or not at all, found sound before it is used.

checkpoints/step-00000500/model.safetensors       parameters, float32
                          optimizer.safetensors   the optimizer's state tensors
                          trainer.json            counters, and the SHA-256 of both files
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from i3lm.errors import UserError
from i3lm.files import sha256_file, sync_folder, write_atomic
from i3lm.optim import Optimizer

FORMAT = 1
KEEP = 2
FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass
class Counters:
    """How far a run is. Data order and schedule are pure functions of these."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # training time used so far, over all starts
    metrics_bytes: int = 0  # length of metrics.jsonl at this point


def save_checkpoint(
    run: Path, network: nn.Module, optimizer: Optimizer, counters: Counters
) -> Path:
    """Write a checkpoint of `counters.step` and drop all but the newest two."""
    folder = run / "checkpoints"
    target = folder / f"step-{counters.step:08d}"
    temporary = folder / f".writing-{counters.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(_contiguous(network.state_dict()), temporary / FILES[0])
    save_file(_contiguous(optimizer.state_tensors()), temporary / FILES[1])
    for name in FILES:
        with open(temporary / name, "rb") as file:
            os.fsync(file.fileno())
    manifest = {
        "format": FORMAT,
        "counters": asdict(counters),
        "optimizer_steps": optimizer.steps,
        "sha256": {name: sha256_file(temporary / name) for name in FILES},
    }
    write_atomic(temporary / "trainer.json", json.dumps(manifest, indent=2).encode())
    if target.exists():  # the same step again, after a resume
        shutil.rmtree(target)
    os.replace(temporary, target)
    sync_folder(folder)
    for old in list_checkpoints(run)[KEEP:]:
        shutil.rmtree(old)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def load_newest(run: Path, network: nn.Module, optimizer: Optimizer) -> tuple[Counters, list[str]]:
    """Load the newest sound checkpoint into the network and the optimizer.

    Returns the counters and one sentence for each damaged checkpoint that was passed over.
    Raises UserError when there is no sound one.
    """
    notes: list[str] = []
    for folder in list_checkpoints(run):
        try:
            manifest = _read_manifest(folder)
            state, moments = (load_file(folder / name) for name in FILES)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            notes.append(f"{folder.name} is damaged and was passed over: {error}")
            continue
        network.load_state_dict(state)
        optimizer.load_state(moments, manifest["optimizer_steps"])
        return Counters(**manifest["counters"]), notes
    reason = f" ({notes[0]})" if notes else ""
    raise UserError(f"{run} has no sound checkpoint to go on from{reason}; start a new run")


def _read_manifest(folder: Path) -> dict:
    manifest = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']}, this i3lm reads {FORMAT}")
    for name in FILES:
        if sha256_file(folder / name) != manifest["sha256"][name]:
            raise ValueError(f"{name} does not match its checksum")
    return manifest


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
