"""Work without torch: its names for what i3lm needs of it, over numpy and the C kernels.

Where compiled calls carry a whole network forward and back (`model/whole_network.py`), or a token
through it (`model/decoding.py`), torch is left with small things: shapes, files, a hundred
additions a step. Loading it takes 180 MB, more than most models here with their gradients and
states, and longer than a short answer. So `i3lm train`, `chat`, `generate`, `serve` and `eval` put
these modules in its place, in a process that does nothing else. What they lack raises
AttributeError; the weights that a run begins from are torch's but for their last places.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from i3lm import lean_torch
from i3lm.data.remote import is_remote
from i3lm.data.sources import is_hub_name
from i3lm.errors import UserError
from i3lm.files import read_small
from i3lm.launch import launch
from i3lm.memory import is_whole
from i3lm.native import multiplies_bfloat16, tensor_library
from i3lm.training.config import TrainConfig

WITH_TORCH = "I3LM_TORCH"  # an environment variable: 1 keeps torch


def without_torch(config: TrainConfig) -> TrainConfig:
    """Put what is here in torch's place for a run that needs no more; return its configuration."""
    if not carries(config):
        return config
    from i3lm.bare.modules import install

    install()
    return dataclasses.replace(config, precision="bf16")


def answer_without_torch(folder: str | Path, device: str, data: Sequence[str] = ()) -> None:
    """The same for a process that only runs the model in a folder, or scores these data by it."""
    plain = not any(map(_needs_torch, data)) and not _is_dense(folder)
    if _may() and device == "cpu" and tensor_library() is not None and plain:
        from i3lm.bare.modules import install

        install()


def wanted() -> bool:
    """Say whether the environment asks for torch."""
    return os.environ.get(WITH_TORCH, "").lower() not in ("", "0", "no", "false", "off")


def installed() -> bool:
    """Say whether `torch` is what stands here."""
    return getattr(sys.modules.get("torch"), "stands_in", False)


def carries(config: TrainConfig) -> bool:
    """Say whether a run of this process can do without torch, which is not loaded yet."""
    return (
        _may()
        and launch().size == 1
        and config.device == "cpu"
        and config.precision != "fp32"
        and not config.compile
        and config.qat_bits is None
        and not any(map(_needs_torch, config.data))
        and _fits(config)
        and multiplies_bfloat16()
    )


def _may() -> bool:
    here = sys.platform.startswith("linux") and "torch" not in sys.modules
    return here and not lean_torch.shared and not wanted()


def _needs_torch(data: str) -> bool:
    return is_hub_name(data) or is_remote(data)  # libraries that look for torch


def _is_dense(folder: str | Path) -> bool:
    """Say whether factors were merged, which the compiled step does not know."""
    try:
        return bool(json.loads(read_small(Path(folder) / "config.json")).get("dense"))
    except (OSError, ValueError, AttributeError, RecursionError):  # loading it says so
        return False


def _fits(config: TrainConfig) -> bool:
    try:
        sizes = config.architecture()
    except UserError:  # the run says so
        return False
    return is_whole(sizes, sizes.max_position_embeddings)
