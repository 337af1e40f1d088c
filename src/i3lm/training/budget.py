"""Which size of model a budget asks for, where the user names none."""

import dataclasses

import torch

from i3lm.errors import UserError
from i3lm.launch import Launch
from i3lm.presets import find_preset
from i3lm.training.config import TrainConfig
from i3lm.training.hardware import products_per_second
from i3lm.training.planning import plan_run
from i3lm.units import format_duration

# The smaller a model, the more text it sees in a time, and the sooner it has learned what it can.
# Up to so many FLOPs of training each of these was the best (docs/results.md, "Defaults").
LADDER = (("i3-mini", 5e14), ("i3-small", 1.5e15), ("i3-12m", float("inf")))
# What training reaches of the rate of products by themselves, and the FLOP/s that a thread's other
# work leaves it where products take no time: measured on processors with 0.2 and 1 TFLOP/s a core.
SHARE, OTHER_WORK = 0.75, 2e11


def choose_preset(
    config: TrainConfig, launch: Launch | None = None
) -> tuple[TrainConfig, str | None]:
    """Fill in the preset that is best for the budget and fits the memory; say why.

    The budget is `steps`, else the time at the rate of this machine's products, measured in 50 ms,
    times the processes; a GPU takes the largest.
    UserError where not even the smallest fits.
    """
    if config.preset is not None:
        return config, None
    launch = launch or Launch()
    flops = _flops(config, launch.size) if config.device == "cpu" else LADDER[-1][1]
    names = [name for name, _ in LADDER]
    wanted = next(i for i, (_, most) in enumerate(LADDER) if flops <= most)
    for place in reversed(range(wanted + 1)):
        chosen = dataclasses.replace(config, preset=names[place])
        try:
            if config.device == "cpu":
                plan_run(chosen, chosen.architecture(), launch, sure=place > 0)
        except UserError:
            if place == 0:
                raise
            continue
        fit = "" if place == wanted else ", the largest that fits the memory"
        return chosen, f"{names[place]} for {_budget(config)}{fit} (--preset names another)"
    raise AssertionError


def _flops(config: TrainConfig, processes: int) -> float:
    smallest = find_preset(LADDER[0][0]).architecture
    given: list[float] = []
    if config.steps:
        given.append(config.steps * config.batch_tokens * smallest.flops_per_token(config.context))
    if config.seconds:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        (products,) = products_per_second(dtype)
        rate = SHARE * products
        rate = 1 / (1 / rate + 1 / (OTHER_WORK * torch.get_num_threads()))
        given.append(config.seconds * processes * rate)
    return min(given)


def _budget(config: TrainConfig) -> str:
    parts = [f"{config.steps:,} steps"] if config.steps else []
    return " or ".join(parts + ([format_duration(config.seconds)] if config.seconds else []))
