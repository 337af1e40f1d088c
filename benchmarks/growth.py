"""Whether a long run grows: resident memory after 100 steps and at the end, in its own process.

    python -m benchmarks.growth --preset i3-mini

A window of 64, an evaluation and a checkpoint every 50 steps; some minutes. Without torch where
`i3lm train` does without; I3LM_TORCH=1 keeps it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from i3lm.memory import is_whole
from i3lm.presets import find_preset

NAME = "growth"
EARLY = 100
CONTEXT = 64


def measure(preset: str, steps: int, folder: str) -> dict[str, Any]:
    """Train in this process; return resident bytes after EARLY steps, and at the end."""
    from i3lm import bare
    from i3lm.cli import group
    from i3lm.training.hardware import resident_bytes
    from i3lm.training.loop import Trainer

    text = Path(folder) / "text.txt"
    lines = (f"the {n % 97} birds saw {n * 7919 % 1009} red houses\n" for n in range(4000))
    text.write_text("".join(lines), encoding="utf-8")
    resident: list[int] = []
    step = Trainer.step

    def counted(trainer: Trainer, *arguments: Any, **options: Any) -> Any:
        result = step(trainer, *arguments, **options)
        resident.append(resident_bytes()[0])
        return result

    Trainer.step = counted  # type: ignore[method-assign]
    flags = {
        "--preset": preset,
        "--precision": "bf16" if bare.installed() else "auto",
        "--data": text,
        "--out": Path(folder) / "run",
        "--steps": steps,
        "--context": CONTEXT,
        "--batch-tokens": CONTEXT,
        "--vocab-size": 400,
        "--eval-every": EARLY // 2,
        "--checkpoint-every": EARLY // 2,
        "--threads": 1,
    }
    arguments = ["train", *(str(part) for pair in flags.items() for part in pair), "--quiet"]
    group.main(arguments, standalone_mode=False)
    early, late = resident[EARLY - 1], resident[-1]
    return {
        "preset": preset,
        "torch": not bare.installed(),
        "steps": len(resident),
        "early_bytes": early,
        "late_bytes": late,
        "growth": late / early - 1,
    }


def run(preset: str, steps: int) -> dict[str, Any]:
    """Return what the JSON holds."""
    sizes = find_preset(preset).architecture
    with tempfile.TemporaryDirectory() as folder:
        flags = "--one", folder, "--preset", preset, "--steps", str(steps)
        return common.in_child("growth", *flags, without_torch=is_whole(sizes, CONTEXT))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="i3-tiny")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--one", help="measure in this process, files in this folder")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "growth.json")
    options = parser.parse_args()
    if options.steps <= EARLY:
        sys.exit(f"error: {options.steps} steps are too few; take more than {EARLY}")
    if options.one:
        print(json.dumps(measure(options.preset, options.steps, options.one)))
        return
    setting = common.setting()
    result = {"benchmark": NAME, **run(options.preset, options.steps), **setting}
    common.save(result, options.out)
    early, late = result["early_bytes"] / 1e6, result["late_bytes"] / 1e6
    print(
        f"{early:.1f} MB after {EARLY} steps, {late:.1f} after {result['steps']:,}: "
        f"{100 * result['growth']:+.1f} %"
    )


if __name__ == "__main__":
    main()
