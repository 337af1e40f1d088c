"""A step of AdamW and Lion over the parameters of a preset, states in 32, 8 and 4 bits.

    python -m benchmarks.optimizers

Beside them torch's fused AdamW in float32, as `torch.optim` calls it. Milliseconds a step;
the clipping of gradients, which all need, is not in it.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from i3lm.model.network import I3Network
from i3lm.optim import make_optimizer
from i3lm.presets import find_preset

NAME = "optimizers"
PEER = "torch AdamW, fused, float32"
STEPS = 4  # a turn


def run(*, rounds: int, threads: int, preset: str = "i3-12m") -> dict[str, Any]:
    """Measure; return what the JSON holds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = I3Network(find_preset(preset).architecture)
    for parameter in network.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape)
    peer = torch.optim.AdamW(_twin(network).parameters(), lr=1e-4, fused=True)
    works: dict[str, Callable[[], object]] = {PEER: peer.step}
    for name in ("adamw", "lion"):
        for bits in (32, 8, 4):
            optimizer = make_optimizer(name, _twin(network).named_parameters(), 1e-4, bits)
            works[f"{name}, {bits} bits"] = optimizer.step
    times = common.interleave({name: _seconds(work) for name, work in works.items()}, rounds)
    base = times[PEER]["median"]
    return {
        "ratios": {name: t["median"] / base for name, t in times.items() if name != PEER},
        "ratio_adamw_4_bits": times["adamw, 4 bits"]["median"] / base,
        "preset": preset,
        "parameters": sum(p.numel() for p in network.parameters()),
        "threads": threads,
        "rounds": rounds,
        "seconds": times,
    }


def _twin(network: I3Network) -> I3Network:
    """Return the network again, its gradients shared."""
    twin = copy.deepcopy(network)
    for mine, other in zip(twin.parameters(), network.parameters(), strict=True):
        mine.grad = other.grad
    return twin


def _seconds(work: Callable[[], object]) -> common.Contender:
    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(STEPS):
            work()
        return (time.perf_counter() - begin) / STEPS

    return measure


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    common.print_table(
        f"a step over {result['parameters'] / 1e6:.1f}M parameters, {result['threads']} threads",
        ["what", "ms", "spread", "of torch's"],
        [
            [name, *common.cells(t, 1e-3, 1), f"{result['ratios'].get(name, 1.0):.2f}"]
            for name, t in result["seconds"].items()
        ],
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=common.cores())
    parser.add_argument("--preset", default="i3-12m")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "optimizers.json")
    options = parser.parse_args()
    setting = common.setting()
    figures = run(rounds=options.rounds, threads=options.threads, preset=options.preset)
    result = {"benchmark": NAME, **figures, **setting}
    common.save(result, options.out)
    show(result)


if __name__ == "__main__":
    main()
