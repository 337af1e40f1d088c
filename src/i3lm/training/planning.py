"""From what the user wants and what the machine has to how a run is done."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from i3lm import bare
from i3lm.errors import UserError
from i3lm.launch import Launch
from i3lm.memory import Choice, Estimate, TooLittle, Wanted, plan
from i3lm.model import COMPILED
from i3lm.native import multiplies_bfloat16
from i3lm.presets import DEFAULT_PRESET, Architecture, find_preset
from i3lm.training.config import TrainConfig
from i3lm.training.hardware import (
    choose_device,
    choose_precision,
    resident_bytes,
    return_freed_memory,
)
from i3lm.units import format_bytes, format_duration

THREADS_PER_CORE = 4  # more only wait for each other
SURE_SECONDS = 1.0  # of microbatches, before anything is said of a step's time
DILOCO_BYTES = 12  # of a parameter: the anchor, its momentum, what is owed
FSDP_BYTES = 31_000_000  # of code that FSDP2 imports at its first use: the compiler
# Weights and gradients that come and go leave holes as large as what dividing them saves: of fsdp,
# tensors from this size on go back to the system, which costs little time.
LARGE = 1 << 20
TAKEN_AGAIN_BYTES = 4_000_000  # of a heap that has just been given back
# That read text leaves: 7 MB of 12 MB of lines, 15 of the built-in conversations; and those.
TEXT_BYTES = 16_000_000 + TAKEN_AGAIN_BYTES
SPREAD_BYTES = 4_000_000  # by which one run's process differs from the next before it trains
STEPS_AT_LEAST = 10  # that a run should have, where a number of tokens is proposed
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


def require_machine(config: TrainConfig) -> None:
    """Raise UserError for more threads than can be of use here."""
    cores = os.cpu_count() or 1
    if config.threads is not None and config.threads > THREADS_PER_CORE * cores:
        raise UserError(
            f"--threads {config.threads:,} is more than {THREADS_PER_CORE} for each of this "
            f"machine's {cores} cores; name {cores} or fewer"
        )


def require_time(config: TrainConfig, began: list[float], microbatch: int, context: int) -> None:
    """Refuse a first step that would take longer than the whole run.

    `began`: when each microbatch began. The first, which loads code, does not count, nor do the
    first seconds.
    """
    if config.seconds is None or len(began) < 3 or began[-1] - began[0] < SURE_SECONDS:
        return
    each = (began[-1] - began[1]) / (len(began) - 2)
    whole = each * config.batch_tokens / (microbatch * context)
    if whole > config.seconds:
        most = int(config.seconds / each) * microbatch * context // STEPS_AT_LEAST
        limit = format_duration(config.seconds)
        raise UserError(
            f"--batch-tokens {config.batch_tokens:,}: a step would take about "
            f"{format_duration(whole)}, and --time is {limit}; name {max(context, most):,} or fewer"
        )


def plan_run(
    config: TrainConfig,
    sizes: Architecture,
    launch: Launch | None = None,
    *,
    read: bool = False,
    sure: bool = False,
) -> tuple[TrainConfig, Estimate]:
    """Fill in what `config` leaves open so that the run keeps its memory; return the estimate too.

    The limit is `config.memory`, else most of what is free, shared among a machine's processes.
    Before the text is `read` what that will leave is known roughly, and counts where the plan must
    be `sure`. UserError for a limit that cannot be kept or that the machine has not.
    """
    launch = launch or Launch()
    total = machine_bytes()
    if config.memory is not None and total is not None and config.memory > total:
        raise UserError(
            f"--memory {format_bytes(config.memory)} is more than this machine has, "
            f"{format_bytes(total)}; name less"
        )
    runtime, to_come = resident_bytes()[0], SPREAD_BYTES
    if read:
        runtime += TAKEN_AGAIN_BYTES
    elif sure:
        runtime += TEXT_BYTES
    else:
        to_come += TEXT_BYTES
    if launch.size > 1 and config.parallel == "diloco":
        runtime += DILOCO_BYTES * sizes.parameters
    divided = launch.size > 1 and config.parallel == "fsdp"
    if divided:
        runtime += FSDP_BYTES
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
        processes=launch.size if divided else 1,
        kernels=COMPILED and multiplies_bfloat16(),
        torch=not bare.installed(),
        threads=torch.get_num_threads(),
    )
    try:
        choice, cost = plan(sizes, wanted, limit, runtime, to_come)
    except TooLittle as error:
        usual = find_preset(config.preset or DEFAULT_PRESET).architecture.max_position_embeddings
        if context <= usual and config.memory is not None:
            raise
        if context <= usual:
            raise UserError(
                f"this model takes at least {format_bytes(error.least)} of memory, and "
                f"{format_bytes(limit)} may be taken; name a smaller --preset or --vocab-size"
            ) from None
        raise UserError(
            f"--context {context:,} takes at least {format_bytes(error.least)} of memory, and "
            f"{format_bytes(limit)} may be taken; name fewer tokens (the preset has {usual})"
        ) from None
    peak = resident_bytes()[1]
    if read and config.memory is not None and peak > config.memory:
        raise UserError(
            f"--memory {format_bytes(config.memory)} is too little to read this text, which took "
            f"{format_bytes(peak)}; name --memory {-(-(peak + SPREAD_BYTES) // 10**6)}MB"
        )
    if choice.return_memory:
        return_freed_memory()
    elif divided:
        return_freed_memory(LARGE)
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
    require_machine(config)
    precision = choose_precision(config.precision, choose_device(config.device))
    config = dataclasses.replace(config, precision=precision)
    sizes = config.architecture()
    config, cost = plan_run(config, sizes, sure=True)
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
