"""What a token costs at other sequence lengths, and the share of the recurrences in it."""

import dataclasses
import time
from typing import Any

import torch

from benchmarks import common
from i3lm.model.network import I3Network
from i3lm.presets import Architecture
from i3lm.training.hardware import keep_freed_memory

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
TOKENS = 4096  # of one measurement
REPEATS = 2  # after one that does not count


def run(sizes: Architecture, precision: str, microbatch_tokens: int) -> list[dict[str, float]]:
    """Measure forward and backward passes over about 4,096 tokens at each length.

    Sequences go through in microbatches as in training: `microbatch_tokens`, or one sequence.
    A row has `length`, and in milliseconds a token `total` and `recurrences`.
    """
    keep_freed_memory()  # as while training
    rows = []
    tokens = min(TOKENS, 4 * microbatch_tokens)
    for length in LENGTHS:
        common.say(f"length {length}")
        if length > tokens:
            break
        torch.manual_seed(0)
        network = I3Network(dataclasses.replace(sizes, max_position_embeddings=length))
        microbatch = max(1, microbatch_tokens // length)
        parts = tokens // (microbatch * length)
        rows.append(
            {
                "length": length,
                "total": _whole(network, precision, microbatch, length, parts),
                "recurrences": _recurrences(network, precision, microbatch, length),
            }
        )
    common.say("")
    return rows


def _whole(network: I3Network, precision: str, batch: int, length: int, parts: int) -> float:
    ids = torch.randint(6, network.config.vocab_size, (batch, length + 1))

    def work() -> None:
        for _ in range(parts):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = network.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            network.zero_grad()

    return _best_seconds(work) * 1e3 / (parts * batch * length)


def _recurrences(network: I3Network, precision: str, batch: int, length: int) -> float:
    """Return the milliseconds a token that the recurrences of all layers take by themselves."""
    recurrence = network.model.layers[0].recurrence
    x = torch.randn(batch, length, network.config.hidden_size, requires_grad=True)
    gradient = torch.ones(batch, length, network.config.hidden_size)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = recurrence(x)
        y.backward(gradient.to(y.dtype))

    return _best_seconds(work) * 1e3 * len(network.model.layers) / (batch * length)


def _best_seconds(work: Any) -> float:
    seconds = []
    for _ in range(1 + REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def show(rows: list[dict[str, float]]) -> None:
    """Print the table."""
    common.print_table(
        "forward and backward by sequence length",
        ["tokens", "ms a token", "recurrences", "share"],
        [
            [
                f"{row['length']:,}",
                f"{row['total']:.3f}",
                f"{row['recurrences']:.3f}",
                f"{row['recurrences'] / row['total']:.1%}",
            ]
            for row in rows
        ],
    )
