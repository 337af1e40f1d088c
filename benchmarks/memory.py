"""Peak memory of training against the planner's estimate, over a grid of configurations.

python -m benchmarks.memory                   # the grid; make bench-memory
python -m benchmarks.memory --one JSON        # one configuration, in this process
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from i3lm import bare
from i3lm.data import Corpus
from i3lm.memory import Choice, estimate
from i3lm.model.network import I3Network
from i3lm.training.config import TrainConfig
from i3lm.training.hardware import choose_device, resident_bytes, return_freed_memory
from i3lm.training.loop import Trainer

NAME = "memory"
STEPS = 3
GRID = {
    "preset": ("i3-mini", "i3-small", "i3-12m"),
    "context": (128, 256),
    "microbatch": (1, 4),
    "gradient_checkpointing": ("none", "selective", "full"),
    "optimizer": (("muon", 32), ("adamw", 4)),
}


def grid() -> list[dict[str, Any]]:
    """Return the configurations: all of GRID, and some that stand at its edges."""
    rows = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    whole = {"preset": "i3-12m", "context": 256, "optimizer": ("muon", 32), "precision": "fp32"}
    rows += [
        {**whole, "microbatch": microbatch, "gradient_checkpointing": mode}
        for microbatch, mode in ((1, "none"), (4, "none"), (4, "selective"), (1, "full"))
    ]
    edge = {"preset": "i3-22m", "context": 256, "gradient_checkpointing": "selective"}
    rows += [{**edge, "microbatch": 1, "optimizer": ("lion", bits)} for bits in (32, 8, 4)]
    rows += [{**edge, "microbatch": 2, "optimizer": ("muon", 8), "precision": "fp32"}]
    small = {"context": 256, "microbatch": 1, "gradient_checkpointing": "full"}
    rows += [
        {**small, "preset": preset, "optimizer": ("lion", 4), "weight_bits": bits}
        for preset in ("i3-12m", "i3-22m")
        for bits in (8, 4)
    ]
    tight = {"context": 256, "microbatch": 1, "optimizer": ("adamw", 4), "return_memory": True}
    rows += [
        {**tight, "preset": preset, "gradient_checkpointing": mode, "weight_bits": bits}
        for preset in ("i3-small", "i3-12m")
        for mode in ("selective", "full")
        for bits in (32, 4)
    ]
    long = {"preset": "i3-mini", "microbatch": 1, "optimizer": ("muon", 32)}
    rows += [
        {**long, "context": context, "gradient_checkpointing": mode}
        for context in (1024, 2048)
        for mode in ("none", "full")
    ]
    return rows


def measure(row: dict[str, Any]) -> dict[str, Any]:
    """Take a few steps in this process; return its peak and the estimate, in bytes."""
    back = row.get("return_memory", False)
    if back:
        return_freed_memory()
    runtime = resident_bytes()[0]
    optimizer, bits = row["optimizer"]
    precision = row.get("precision", "bf16")
    config = TrainConfig(
        out=row["corpus"],
        preset=row["preset"],
        context=row["context"],
        batch_tokens=2 * row["microbatch"] * row["context"],
        microbatch=row["microbatch"],
        gradient_checkpointing=row["gradient_checkpointing"],
        optimizer=optimizer,
        state_bits=bits,
        weight_bits=row.get("weight_bits", 32),
        return_memory=back,
        steps=STEPS,
    )
    corpus = Corpus.open(row["corpus"])
    sizes = config.architecture(len(corpus.tokenizer))
    trainer = Trainer(config, corpus, I3Network(sizes), precision, choose_device("cpu"))
    for step in trainer.train():
        tokens_per_second = step["tokens_per_second"]
    low = 2 if precision == "bf16" else 4
    mode = row["gradient_checkpointing"]
    choice = Choice(
        *(row["microbatch"], row["context"], mode, optimizer, bits, low, config.weight_bits),
        return_memory=back,
        torch=not bare.installed(),
        threads=torch.get_num_threads(),
    )
    return {
        "predicted_bytes": estimate(sizes, choice, runtime).total,
        "peak_bytes": resident_bytes()[1],
        "tokens_per_second": tokens_per_second,
    }


def run() -> dict[str, Any]:
    """Measure the grid, each configuration in a process of its own."""
    from benchmarks.train import synthetic_corpus

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in grid():
            place = Path(folder) / row["preset"]
            if not place.exists():
                place.mkdir()
                synthetic_corpus(row["preset"], place)
            common.say(str(row))
            line = json.dumps({**row, "corpus": str(place)})
            lean = row.get("precision", "bf16") == "bf16"
            found = common.in_child(NAME, "--one", line, without_torch=lean)
            rows.append({**row, **found, "ratio": found["predicted_bytes"] / found["peak_bytes"]})
    ratios = sorted(row["ratio"] for row in rows)
    within = sum(0.9 <= ratio <= 1.1 for ratio in ratios)
    return {
        "within_10_percent": within / len(rows),
        "least_ratio": ratios[0],
        "greatest_ratio": ratios[-1],
        "configurations": len(rows),
        "rows": rows,
    }


def main() -> None:
    """Measure one configuration, or the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="a configuration as JSON")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "memory.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one))))
        return
    result = {**run(), **common.setting()}
    common.print_table(
        "peak memory, MB, and the estimate",
        ["configuration", "peak", "estimate", "ratio", "tokens/s"],
        [
            [
                f"{r['preset']} T={r['context']} x{r['microbatch']} {r['gradient_checkpointing']} "
                f"{r['optimizer'][0]} {r['optimizer'][1]} {r.get('precision', 'bf16')}"
                f"{' weights ' + str(r['weight_bits']) if 'weight_bits' in r else ''}"
                f"{' returned' if r.get('return_memory') else ''}",
                f"{r['peak_bytes'] / 1e6:.0f}",
                f"{r['predicted_bytes'] / 1e6:.0f}",
                f"{r['ratio']:.2f}",
                f"{r['tokens_per_second']:,.0f}",
            ]
            for r in result["rows"]
        ],
    )
    print({key: result[key] for key in ("within_10_percent", "least_ratio", "greatest_ratio")})
    common.save(result, options.out)


if __name__ == "__main__":
    main()
