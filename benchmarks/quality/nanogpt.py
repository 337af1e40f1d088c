"""nanoGPT's configuration for a CPU on a text: characters, 4 layers of 128, 64 of context.

python -m benchmarks.quality.nanogpt --train FILE --test FILE

The settings are those of its README for tinyshakespeare without a GPU: 12 windows an iteration,
2,000 iterations, AdamW at 1e-3 with 100 iterations of warm-up, cosine to 1e-4, decay 0.1 on
matrices, beta2 0.99, no dropout, float32. `--minutes` trains for so long instead, the schedule
stretched to it. Written here (peers/gpt.py), not its code.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.gpt import GPT, Sizes
from i3lm.training.hardware import resident_bytes

NAME = "nanogpt"
CONTEXT, BATCH, WIDTH, LAYERS = 64, 12, 128, 4
RATE, LEAST_RATE, WARMUP, ITERATIONS = 1e-3, 1e-4, 100, 2000


def rate(share: float, iteration: int) -> float:
    """Return the learning rate: linear warm-up, then half a cosine over the budget."""
    if iteration < WARMUP:
        return RATE * (iteration + 1) / (WARMUP + 1)
    return LEAST_RATE + 0.5 * (1 + math.cos(math.pi * share)) * (RATE - LEAST_RATE)


@torch.no_grad()
def nats(network: GPT, text: Tensor) -> float:
    """Return the mean nats of a character after the first; each sees 32 to 63 before it.

    Windows of 64 overlap by half and only their second half counts (the first window whole).
    """
    stride = CONTEXT // 2
    total = 0.0
    for begin in range(0, len(text) - 1, stride):
        begin = max(0, begin - stride)
        part = text[begin : begin + CONTEXT + 1][None]
        losses = F.cross_entropy(
            network.logits(network.hidden(part[:, :-1]))[0], part[0, 1:], reduction="none"
        )
        total += float(losses[0 if begin == 0 and total == 0 else stride :].sum())
        if begin + CONTEXT + 1 >= len(text):
            break
    return total / (len(text) - 1)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score; return the result, under the names of `quality.one`."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train, test = (Path(p).read_text(encoding="utf-8") for p in (options.train, options.test))
    characters = sorted({*train, *test})
    ids = {character: i for i, character in enumerate(characters)}
    tokens, held_out = (torch.tensor([ids[c] for c in text]) for text in (train, test))
    network = GPT(Sizes(len(characters), CONTEXT, WIDTH, LAYERS, heads_of=WIDTH // 4))
    decayed = [p for p in network.parameters() if p.ndim == 2]
    rest = [p for p in network.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    seconds, done = 0.0, 0
    for done in itertools.count():
        share = seconds / (60 * options.minutes) if options.minutes else done / options.iterations
        if share >= 1:
            break
        begin = time.monotonic()
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1))
        rows = tokens[starts + torch.arange(CONTEXT + 1)]
        for group in optimizer.param_groups:
            group["lr"] = rate(share, done)
        network.loss(rows[:, :-1], rows[:, 1:].contiguous()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.monotonic() - begin
    count = done * BATCH * CONTEXT
    return {
        "bits_per_character": nats(network, held_out) / math.log(2),
        "contender": NAME + ("" if options.minutes else f":{options.iterations}"),
        "seed": options.seed,
        "tokens": count,
        "seconds": seconds,
        "tokens_per_second": count / seconds,
        "peak_bytes": resident_bytes()[1],
        "settings": {"parameters": sum(p.numel() for p in network.parameters())},
        "test_characters": len(test),
        "curve": [],
    }


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True, help="text to train on")
    parser.add_argument("--test", required=True, help="text to score")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--minutes", type=float, help="train for so long instead")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
