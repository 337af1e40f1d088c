"""Training in little memory: i3lm's ways beside HF Trainer with bitsandbytes, in turns.

    python -m benchmarks.low_memory

Each turn is a process of its own, so that its peak counts all that it needed, imports included.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from i3lm.data import Corpus
from i3lm.training.config import TrainConfig
from i3lm.training.hardware import resident_bytes

NAME = "low_memory"
PRESET, CONTEXT, BATCH_TOKENS = "i3-12m", 256, 2048
FREE = "unconstrained"
PEER = "HF Trainer, bitsandbytes AdamW8bit"
ADAM4 = {"optimizer": "adamw", "state_bits": 4, "microbatch": 1}
LION4 = {"optimizer": "lion", "state_bits": 4, "microbatch": 1}
WAYS: dict[str, dict[str, Any]] = {
    FREE: {},
    "unconstrained, with torch": {},
    "4-bit AdamW": ADAM4,
    "4-bit AdamW, with torch": ADAM4,
    "4-bit AdamW, selective": {**ADAM4, "gradient_checkpointing": "selective"},
    "4-bit AdamW, full": {**ADAM4, "gradient_checkpointing": "full"},
    "4-bit stored weights, 4-bit AdamW, full": {
        **ADAM4, "weight_bits": 4, "gradient_checkpointing": "full",
    },
    "4-bit stored weights, 4-bit Lion, full": {
        **LION4, "weight_bits": 4, "gradient_checkpointing": "full",
    },
    "4-bit AdamW, full, memory returned": {
        **ADAM4, "gradient_checkpointing": "full", "return_memory": True,
    },
    "4-bit stored weights, 4-bit Lion, full, memory returned": {
        **LION4, "weight_bits": 4, "gradient_checkpointing": "full", "return_memory": True,
    },
    "8-bit stored weights, 4-bit Lion, selective": {
        **LION4, "weight_bits": 8, "gradient_checkpointing": "selective",
    },
}  # fmt: skip

WITH_TORCH = ("unconstrained, with torch", "4-bit AdamW, with torch", PEER)


def measure(way: str, corpus: str, steps: int) -> dict[str, Any]:
    """Take some steps in this process after one that does not count; return speed and memory."""
    seconds = _peer(corpus, steps) if way == PEER else _ours(WAYS[way], corpus, steps)
    return {
        "tokens_per_second": BATCH_TOKENS / statistics.median(seconds[1:]),
        "peak_bytes": resident_bytes()[1],
        "anonymous_bytes": _anonymous(),
    }


def _ours(settings: dict[str, Any], corpus: str, steps: int) -> list[float]:
    """Return the seconds of each step."""
    from i3lm.model.network import I3Network
    from i3lm.training.hardware import (
        choose_device,
        choose_precision,
        return_freed_memory,
        undisturbed_steps,
    )
    from i3lm.training.loop import Trainer

    back = settings.get("return_memory", False)
    if back:
        return_freed_memory()
    config = TrainConfig(
        out=corpus, preset=PRESET, batch_tokens=BATCH_TOKENS, steps=1_000_000, **settings
    )
    opened, device = Corpus.open(corpus), choose_device("cpu")
    network = I3Network(config.architecture(len(opened.tokenizer)))
    trainer = Trainer(config, opened, network, choose_precision("auto", device), device)
    seconds = []
    with undisturbed_steps(keep=not back):
        for _ in range(steps + 1):
            begin = time.perf_counter()
            trainer.step(0.0)
            seconds.append(time.perf_counter() - begin)
    return seconds


def _peer(corpus: str, steps: int) -> list[float]:
    """The same model and step in transformers' Trainer, one sequence at a time."""
    import dataclasses

    import torch
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from i3lm.model.configuration_i3 import I3Config
    from i3lm.model.modeling_i3 import I3ForCausalLM

    opened = Corpus.open(corpus)
    sizes = TrainConfig(preset=PRESET).architecture(len(opened.tokenizer))

    class Windows(Dataset):
        def __len__(self) -> int:
            return len(opened.train) // CONTEXT

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(opened.train[i * CONTEXT : (i + 1) * CONTEXT].astype("int64"))
            return {"input_ids": ids, "labels": ids}

    class Clock(TrainerCallback):
        marks = [time.perf_counter()]  # noqa: RUF012

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps + 1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=BATCH_TOKENS // CONTEXT,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            optim="adamw_8bit",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        model = I3ForCausalLM(I3Config(**dataclasses.asdict(sizes)))
        trainer = Trainer(model, arguments, train_dataset=Windows(), callbacks=[Clock()])
        trainer.train()
    return [after - before for before, after in zip(Clock.marks, Clock.marks[1:], strict=False)]


def _anonymous() -> int | None:
    """Return the anonymous part of what is resident now: without code and mapped files."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return None


def run(rounds: int, steps: int) -> dict[str, Any]:
    """Let all ways take turns."""
    from benchmarks.train import synthetic_corpus

    found: dict[str, list[dict[str, Any]]] = {way: [] for way in (*WAYS, PEER)}
    with tempfile.TemporaryDirectory() as corpus:
        synthetic_corpus(PRESET, Path(corpus))
        for number in range(rounds):
            for way, rows in found.items():
                common.say(f"round {number + 1} of {rounds}: {way}")
                flags = ("--one", way, "--corpus", corpus, "--steps", str(steps))
                rows.append(common.in_child(NAME, *flags, without_torch=way not in WITH_TORCH))
    common.say("")
    ways = {}
    for way, rows in found.items():
        shares = [
            row["tokens_per_second"] / free["tokens_per_second"]
            for row, free in zip(rows, found[FREE], strict=True)
        ]
        ways[way] = {
            "tokens_per_second": common.spread(row["tokens_per_second"] for row in rows),
            "speed_ratio": statistics.median(shares),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
            "anonymous_bytes": max(row["anonymous_bytes"] or 0 for row in rows),
        }
    peer = ways[PEER]["peak_bytes"]
    for figures in ways.values():
        figures["peak_ratio_peer"] = figures["peak_bytes"] / peer
    return {"rounds": rounds, "steps": steps, "ways": ways}


def main() -> None:
    """Measure one way, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--one", help="a way, by name")
    parser.add_argument("--corpus")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "low_memory.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.corpus, options.steps)))
        return
    setting = common.setting()
    result = {"benchmark": NAME, **run(options.rounds, options.steps), **setting}
    common.save(result, options.out)
    common.print_table(
        f"{PRESET}, {BATCH_TOKENS:,} tokens a step",
        ["way", "peak MB", "anonymous MB", "tokens/s", "of the speed", "of the peer's peak"],
        [
            [
                way,
                f"{row['peak_bytes'] / 1e6:.0f}",
                f"{row['anonymous_bytes'] / 1e6:.0f}",
                f"{row['tokens_per_second']['median']:,.0f}",
                f"{row['speed_ratio']:.2f}",
                f"{row['peak_ratio_peer']:.2f}",
            ]
            for way, row in result["ways"].items()
        ],
    )


if __name__ == "__main__":
    main()
