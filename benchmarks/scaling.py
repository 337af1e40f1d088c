"""What a run costs, on paper: seconds, memory, bytes of the wire; 1 laptop to 1,000 machines.

    python -m benchmarks.scaling            # the tables of docs/scaling.md
    python -m benchmarks.scaling --check    # the model beside what was measured (results/*.json)

FLOPs and memory are those of `i3lm.presets` and `i3lm.memory`; the rates of machines and links are
arguments. No torch.
"""

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks import common
from i3lm.memory import Choice, estimate
from i3lm.presets import Architecture, find_preset

VOCABULARY = 16_384  # of the models beyond the presets
SIZES = {
    "i3-12m": find_preset("i3-12m").architecture,
    "i3-22m": find_preset("i3-22m").architecture,
    "100m": Architecture(VOCABULARY, 1024, 24, 16, 4096, 1024, rank=128),
    "300m": Architecture(VOCABULARY, 1536, 38, 24, 6144, 2048, rank=192),
    "1b": Architecture(VOCABULARY, 2560, 48, 40, 10_240, 2048, rank=320),
}
TOKENS_PER_PARAMETER = 20  # worth training on (Hoffmann et al., arXiv 2203.15556)
CHARACTERS_PER_TOKEN = 2.3  # of our chunks, in English: bytes of text a token
RUNTIME = 230_000_000  # bytes of a process before its model: results/budgets.json


@dataclass(frozen=True)
class Machine:
    """One process's device: FLOPs a second of bf16 products, and how much of that training gets."""

    name: str
    flops: float
    utilisation: float
    memory: float  # bytes

    @property
    def rate(self) -> float:
        """FLOPs a second that training gets."""
        return self.flops * self.utilisation


@dataclass(frozen=True)
class Link:
    """What connects processes: bytes a second each way, and seconds that a message takes."""

    name: str
    bandwidth: float
    latency: float


LAPTOP = Machine("2 cores, AVX512-BF16", 4.2e11, 0.44, 8e9)  # measured: results/train.json
GPU = Machine("GPU, 989 TFLOP/s", 9.89e14, 0.30, 80e9)  # a data sheet's rate, an assumed share
HOME = Link("100 Mbit/s, 50 ms", 12.5e6, 0.05)
OFFICE = Link("1 Gbit/s, 0.2 ms", 125e6, 2e-4)
CLUSTER = Link("400 Gbit/s, 10 us", 5e10, 1e-5)


def ring_bytes(numbers: int, width: float, ranks: int) -> float:
    """Return the bytes that each rank sends in a ring's all-reduce of `numbers` of `width` bytes.

    A reduce-scatter and an all-gather of (n - 1) / n of all each (Patarasuk and Yuan, 2009).
    """
    return 2 * (ranks - 1) / ranks * numbers * width


def sharded_bytes(numbers: int, width: float, ranks: int) -> float:
    """Return what each rank sends in a fully sharded step: parameters gathered on the way forward
    and on the way back, gradients scattered (Zhao et al., arXiv 2304.11277)."""
    return 3 * (ranks - 1) / ranks * numbers * width


def ring_seconds(sent: float, ranks: int, link: Link) -> float:
    """Return the time of 2 (n - 1) messages of a ring."""
    return sent / link.bandwidth + 2 * (ranks - 1) * link.latency


@dataclass(frozen=True)
class Step:
    """An optimizer step of `ranks` processes: seconds of each part, bytes that each rank sends.

    `every` steps share one exchange (1: DDP; more: local steps and an outer one, DiLoCo, arXiv
    2311.08105), of numbers of `width` bytes. Computing and sending are not overlapped: an upper
    bound for DDP, which sends while it computes.
    """

    sizes: Architecture
    machine: Machine
    link: Link
    ranks: int
    tokens: int  # of all ranks together
    every: int = 1
    width: float = 4.0

    @property
    def compute(self) -> float:
        """Seconds of products."""
        return self.sizes.flops_per_token() * self.tokens / self.ranks / self.machine.rate

    @property
    def sent(self) -> float:
        """Bytes a step that each rank sends."""
        return ring_bytes(self.sizes.parameters, self.width, self.ranks) / self.every

    @property
    def exchange(self) -> float:
        """Seconds a step of the exchange."""
        sent = ring_bytes(self.sizes.parameters, self.width, self.ranks)
        return ring_seconds(sent, self.ranks, self.link) / self.every

    @property
    def efficiency(self) -> float:
        """The share of the time in which ranks compute."""
        return self.compute / (self.compute + self.exchange)

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks together."""
        return self.tokens / (self.compute + self.exchange)


def rank_bytes(sizes: Architecture, ranks: int, tokens: int, low_bytes: int = 2) -> float:
    """Return the memory of a rank that keeps 1 / ranks of weights, gradients and states (FSDP).

    `tokens` of a microbatch; Muon, states of 32 bits, activations recomputed.
    """
    context = sizes.max_position_embeddings
    choice = Choice(max(1, tokens // context), context, "full", low_bytes=low_bytes)
    cost = estimate(sizes, choice, RUNTIME)
    return cost.runtime + cost.activations + (cost.weights + cost.gradients + cost.states) / ranks


def checkpoint_interval(save: float, ranks: int, hours_between_failures: float = 50_000) -> float:
    """Return the seconds between checkpoints that lose least (Young, 1974): sqrt(2 save mtbf / n).

    `save`: seconds that one takes; a machine fails once in `hours_between_failures`.
    """
    return math.sqrt(2 * save * hours_between_failures * 3600 / ranks)


def models() -> list[list[str]]:
    """Return the rows of what each model costs, whatever runs it."""
    rows = []
    for name, sizes in SIZES.items():
        tokens = TOKENS_PER_PARAMETER * sizes.parameters
        flops = sizes.flops_per_token()
        rows.append([
            name, f"{sizes.parameters / 1e6:,.0f}", f"{sizes.max_position_embeddings:,}",
            f"{flops / 1e9:.2f}", f"{tokens / 1e9:.2f}",
            f"{tokens * CHARACTERS_PER_TOKEN / 1e9:,.1f}", f"{2 * tokens / 1e9:,.1f}",
            f"{rank_bytes(sizes, 1, 1024) / 1e9:.1f}", _time(tokens * flops / LAPTOP.rate),
            _time(tokens * flops / GPU.rate),
        ])  # fmt: skip
    return rows


@dataclass(frozen=True)
class Plan:
    """A way to train: who, over what, how many tokens a step of each rank."""

    what: str
    model: str
    machine: Machine
    link: Link
    ranks: int
    tokens: int  # a step of each rank
    every: int = 1
    width: float = 4.0


PLANS = (
    Plan("one laptop", "i3-12m", LAPTOP, OFFICE, 1, 1024),
    Plan("4 laptops, one office, DDP", "i3-22m", LAPTOP, OFFICE, 4, 16_384),
    Plan("4 laptops at home, DDP", "i3-12m", LAPTOP, HOME, 4, 16_384),
    Plan("4 at home, DiLoCo every 100 steps", "i3-12m", LAPTOP, HOME, 4, 4096, 100),
    Plan("the same, 4 bits a number", "i3-12m", LAPTOP, HOME, 4, 4096, 100, 0.53),
    Plan("1,000 at home, DiLoCo every 500, 4 bits", "i3-22m", LAPTOP, HOME, 1000, 1024, 500, 0.53),
    Plan("1 GPU", "300m", GPU, CLUSTER, 1, 131_072),
    Plan("8 GPUs in a machine, DDP", "300m", GPU, CLUSTER, 8, 65_536),
    Plan("64 GPUs, DDP", "1b", GPU, CLUSTER, 64, 16_384),
    Plan("1,000 machines of one GPU, DDP", "1b", GPU, CLUSTER, 1000, 4096),
    Plan("1,000 GPUs over 1 Gbit/s, DiLoCo every 500, 4 bits", "1b", GPU, OFFICE, 1000, 4096, 500,
         0.53),
)  # fmt: skip


def plans() -> list[list[str]]:
    """Return the rows of what each of PLANS costs."""
    rows = []
    for plan in PLANS:
        sizes = SIZES[plan.model]
        step = Step(sizes, plan.machine, plan.link, plan.ranks, plan.tokens * plan.ranks,
                    plan.every, plan.width)  # fmt: skip
        budget = TOKENS_PER_PARAMETER * sizes.parameters
        rows.append([
            plan.what, plan.model, plan.link.name if plan.ranks > 1 else "",
            f"{step.compute:.3g}", f"{step.exchange:.3g}", f"{step.efficiency:.0%}",
            f"{step.tokens_per_second:,.0f}", f"{step.sent * plan.ranks / step.tokens:,.0f}",
            f"{budget / step.tokens / step.every:,.0f}", _time(budget / step.tokens_per_second),
        ])  # fmt: skip
    return rows


def check() -> list[list[str]]:
    """Return rows of the model beside the measured: what, predicted, measured, their ratio."""
    train = _result("train")
    rate = train["tokens_per_second"]["i3lm"]["median"] * train["flops_per_token"]
    rows = [["train.json: i3-12m, 256 tokens (the model is set to this)", 1.0, 1.0]]
    base = next(row["total"] for row in train["lengths"] if row["length"] == 256)
    flops = SIZES["i3-12m"].flops_per_token
    for row in train["lengths"]:
        predicted = base * flops(row["length"]) / flops(256)
        what = f"train.json: ms a token, i3-12m, {row['length']:,} tokens"
        rows.append([what, predicted, row["total"]])
    memory = _result("memory")["rows"]
    full = [row for row in memory if row["context"] == 256]
    best = {r["preset"]: max(x["tokens_per_second"] for x in full if x["preset"] == r["preset"])
            for r in full}  # fmt: skip
    for preset, speed in best.items():
        own = best["i3-12m"] * flops(256) / find_preset(preset).architecture.flops_per_token(256)
        what = f"memory.json: tokens/s of {preset} from that of i3-12m"
        rows.append([what, own, speed])
    for ratio in ("least_ratio", "greatest_ratio"):
        what = f"memory.json: peak memory, {ratio.partition('_')[0]} of 92 runs"
        rows.append([what, _result("memory")[ratio], 1.0])
    print(f"measured: {rate / 1e9:.0f} GFLOP/s of training on two cores")
    return [[what, f"{a:.3g}", f"{b:.3g}", f"{a / b:.2f}"] for what, a, b in rows]


def _result(name: str) -> dict[str, Any]:
    return dict(json.loads((common.RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def _time(seconds: float) -> str:
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"


def markdown(columns: Iterable[str], rows: Iterable[list[str]]) -> str:
    """Return a table as the documentation has it."""
    columns = list(columns)
    lines = [columns, ["---", *("--:" for _ in columns[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


MODELS = ("model", "million parameters", "window", "GFLOP a token", "billion tokens", "GB of text",
          "GB of tokens", "GB of memory", "one laptop", "one GPU")  # fmt: skip
COSTS = ("who", "model", "link", "computing, s", "exchange, s", "efficiency", "tokens/s",
         "bytes sent a token", "exchanges in all", "20 tokens a parameter take")  # fmt: skip
CHECKS = ("what", "predicted", "measured", "ratio")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        print(markdown(CHECKS, check()))
        return
    print(markdown(MODELS, models()))
    print()
    print(markdown(COSTS, plans()))


if __name__ == "__main__":
    main()
