"""From what the user wants and what the machine has to how a run is done."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from i3lm.errors import UserError
from i3lm.launch import Launch
from i3lm.memory import Choice, Estimate, Wanted, plan
from i3lm.presets import Architecture
from i3lm.training.config import TrainConfig
from i3lm.training.hardware import (
    choose_device,
    choose_precision,
    resident_bytes,
    return_freed_memory,
)
from i3lm.units import format_bytes

SPARE = 0.9  # of the memory that is free may be taken where the user names no limit
_CGROUPS = Path("/sys/fs/cgroup")


def machine_bytes() -> int | None:
    """Return the memory that this process could ever have: the machine's, or its cgroup's."""
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    for path in _cgroup_limits():
        try:
            sizes.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return min(sizes)


def _cgroup_limits() -> Iterator[Path]:
    """Yield where the limits of this process's cgroup and of those around it may stand.

    https://docs.kernel.org/admin-guide/cgroup-v2.html, and version 1 of it; in a container its own
    cgroup is the root.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in ["0::/", "0:memory:/", *lines]:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = _CGROUPS / "memory" if controllers else _CGROUPS
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(top):
                yield folder / ("memory.limit_in_bytes" if controllers else "memory.max")


def _address_space_left() -> int:
    """Return the bytes that RLIMIT_AS (`ulimit -v`) leaves to this process."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        return 1 << 62
    unlimited = limit == resource.RLIM_INFINITY
    return 1 << 62 if unlimited else max(0, limit - pages * resource.getpagesize())


def free_bytes() -> int | None:
    """Return the memory that this process may take beyond what it has; None if unknown."""
    total = machine_bytes()
    if total is None:
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min(free, total - resident_bytes()[0], _address_space_left())


def plan_run(
    config: TrainConfig, sizes: Architecture, launch: Launch | None = None
) -> tuple[TrainConfig, Estimate]:
    """Fill in what `config` leaves open so that the run keeps its memory; return the estimate too.

    The limit is `config.memory`, else most of what is free, shared among a machine's processes.
    UserError for a limit that cannot be kept or that the machine has not.
    """
    launch = launch or Launch()
    total = machine_bytes()
    if config.memory is not None and total is not None and config.memory > total:
        raise UserError(
            f"--memory {format_bytes(config.memory)} is more than this machine has, "
            f"{format_bytes(total)}; name less"
        )
    runtime = resident_bytes()[0]
    limit = config.memory
    if limit is not None:
        limit = min(limit, runtime + _address_space_left())
    else:
        free = free_bytes()
        limit = 1 << 62 if free is None else runtime + int(SPARE * free / launch.local_size)
    context = sizes.max_position_embeddings
    wanted = Wanted(
        sequences=-(-max(1, round(config.batch_tokens / context)) // launch.size),
        context=context,
        optimizer=config.optimizer,
        low_bytes=2 if config.precision == "bf16" else 4,
        microbatch=config.microbatch,
        gradient_checkpointing=config.gradient_checkpointing,
        state_bits=config.state_bits,
        weight_bits=config.weight_bits,
        rounded=config.qat_bits is not None,
        return_memory=config.return_memory,
    )
    choice, cost = plan(sizes, wanted, limit, runtime)
    if choice.return_memory:
        return_freed_memory()
    return filled(config, choice), cost


def filled(config: TrainConfig, choice: Choice) -> TrainConfig:
    """Return the configuration with a choice of the planner."""
    return dataclasses.replace(
        config,
        microbatch=choice.microbatch,
        gradient_checkpointing=choice.gradient_checkpointing,
        state_bits=choice.state_bits,
        return_memory=choice.return_memory,
    )


def preview(settings: dict) -> dict:
    """Return what `plan_run` would choose for `TrainConfig` fields, and the bytes of each part."""
    config = TrainConfig(**settings)
    precision = choose_precision(config.precision, choose_device(config.device))
    config = dataclasses.replace(config, precision=precision)
    sizes = config.architecture()
    config, cost = plan_run(config, sizes)
    shown = (
        "microbatch",
        "gradient_checkpointing",
        "optimizer",
        "state_bits",
        "weight_bits",
        "qat_bits",
        "precision",
        "return_memory",
    )
    return {
        "choice": {name: getattr(config, name) for name in shown},
        "memory": {**dataclasses.asdict(cost), "total": cost.total},
    }
