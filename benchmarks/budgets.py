"""The smallest `--memory` for a size of model, by the planner's own sum.

    python -m benchmarks.budgets

i3-12m, i3-22m, and a model of 100M parameters that no preset has. Nothing is trained: how near the
planner is to measured peaks, `python -m benchmarks.memory` tells.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch  # noqa: F401 (the process is measured with it, or without)

from benchmarks import common
from i3lm import bare
from i3lm.memory import Wanted, plan
from i3lm.native import multiplies_bfloat16
from i3lm.presets import Architecture, find_preset
from i3lm.training.hardware import resident_bytes
from i3lm.training.planning import TEXT_BYTES

NAME = "budgets"
CONTEXT = 256
SEQUENCES = 4
WAYS = {  # optimizer, bits of its states (None: chosen), bits of the layers' matrices
    "Muon": ("muon", None, 32),
    "AdamW, 4-bit states": ("adamw", 4, 32),
    "AdamW, 4-bit states, 4-bit stored weights": ("adamw", 4, 4),
}


def models() -> dict[str, Architecture]:
    """Return the sizes of the table."""
    large = Architecture(
        hidden_size=1280,
        num_hidden_layers=20,
        num_attention_heads=16,
        intermediate_size=5120,
        vocab_size=8192,
        rank=128,
    )
    named = {name: find_preset(name).architecture for name in ("i3-12m", "i3-22m")}
    return {**named, f"{large.parameters / 1e6:.0f}M": large}


def smallest(sizes: Architecture, way: str, runtime: int) -> dict[str, Any]:
    """Return the least limit in bytes that `plan` keeps, what it then chooses, and the limit
    from which on it chooses what it would without one."""
    optimizer, state_bits, weight_bits = WAYS[way]
    wanted = Wanted(
        SEQUENCES, CONTEXT, optimizer, 2, None, None, state_bits, weight_bits,
        torch=bare.wanted() or not multiplies_bfloat16(),
    )  # fmt: skip
    free_choice, free = plan(sizes, wanted, 1 << 50, runtime)
    low, high = 0, free.total
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(sizes, wanted, middle, runtime) else (middle, high)
    choice, _ = plan(sizes, wanted, high, runtime)
    return {
        "parameters": sizes.parameters,
        "least_bytes": high,
        "full_speed_bytes": free.total,
        "speed": choice.worth / free_choice.worth,
        "choice": vars(choice),
    }


def _fits(sizes: Architecture, wanted: Wanted, limit: int, runtime: int) -> bool:
    from i3lm.errors import UserError

    try:
        plan(sizes, wanted, limit, runtime)
    except UserError:
        return False
    return True


def run() -> dict[str, Any]:
    """Return what the JSON holds."""
    runtime = common.in_child(NAME, "--runtime", without_torch=True)["runtime_bytes"]
    rows = {
        f"{name}, {way}": smallest(sizes, way, runtime)
        for name, sizes in models().items()
        for way in WAYS
    }
    return {"runtime_bytes": runtime, "context": CONTEXT, "rows": rows}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "budgets.json")
    parser.add_argument("--runtime", action="store_true", help="what a process has that read text")
    options = parser.parse_args()
    if options.runtime:
        print(json.dumps({"runtime_bytes": resident_bytes()[0] + TEXT_BYTES}))
        return
    setting = common.setting()
    result = {"benchmark": NAME, **run(), **setting}
    common.save(result, options.out)
    common.print_table(
        f"the least memory, a window of {CONTEXT}",
        ["model", "parameters", "least MB", "full speed MB", "estimated speed at the least"],
        [
            [
                name,
                f"{row['parameters'] / 1e6:.1f}M",
                f"{row['least_bytes'] / 1e6:.0f}",
                f"{row['full_speed_bytes'] / 1e6:.0f}",
                f"{row['speed']:.2f}",
            ]
            for name, row in result["rows"].items()
        ],
    )


if __name__ == "__main__":
    main()
