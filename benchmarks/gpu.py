"""Training on a GPU: tokens a second, utilisation and peak memory, beside a GPT of equal size.

    python -m benchmarks.gpu --peak-flops 989e12

Ours is the training loop's step with its defaults for a GPU: bf16, compiled layers, Muon. The GPT
(peers/gpt.py) has fused attention, the same compiler, bf16 and torch's fused AdamW. Both at each of
--microbatches sequences, as far as memory goes; a figure is the best of them. `mfu` is the model's
FLOPs (forward and backward) over --peak-flops, the device's dense bf16 rate from its data sheet.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import common
from benchmarks.peers import gpt
from benchmarks.scaling import SIZES
from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.optim import clip_gradients, make_optimizer
from i3lm.presets import Architecture

NAME = "gpu"
MODELS = ("i3-12m", "i3-22m", "300m")
WARM, STEPS = 5, 20


def ours(sizes: Architecture, batch: int, length: int) -> Callable[[], None]:
    """Return a step of i3: forward, backward, clipping, Muon."""
    network = I3Network(dataclasses.replace(sizes, max_position_embeddings=length)).cuda()
    network.model.compile_layers()
    optimizer = make_optimizer("muon", network.named_parameters())
    ids = torch.randint(6, sizes.vocab_size, (batch, length + 1), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = network.loss(ids[:, :-1], ids[:, 1:]) / (batch * length)
        loss.backward()
        clip_gradients(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peer(sizes: Architecture, batch: int, length: int) -> Callable[[], None]:
    """Return a step of a GPT of as many parameters."""
    model: nn.Module = gpt.GPT(gpt_sizes(sizes, length)).cuda()
    compiled = torch.compile(model.loss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    ids = torch.randint(6, sizes.vocab_size, (batch, length + 1), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def gpt_sizes(sizes: Architecture, length: int) -> gpt.Sizes:
    """Return those of the GPT with as many parameters."""
    return gpt.sizes_like(sizes.parameters, sizes.vocab_size, length)


def measure(build: Callable[[], Callable[[], None]], tokens: int) -> dict[str, float] | None:
    """Return tokens a second and peak bytes of a step; None where the memory does not suffice."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step = build()
        for _ in range(WARM):
            step()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated()
    return {"tokens_per_second": STEPS * tokens / seconds, "peak_bytes": peak}


def run(peak_flops: float, microbatches: list[int], lengths: list[int]) -> list[dict[str, Any]]:
    """Return a row for each model, length and contender."""
    rows = []
    for name in MODELS:
        for length in lengths:
            sizes = SIZES[name]
            flops = {
                "i3lm": sizes.flops_per_token(length),
                "gpt": 6 * sizes.parameters + 6 * gpt_sizes(sizes, length).layers
                * gpt_sizes(sizes, length).width * length,
            }  # fmt: skip
            for contender, build in (("i3lm", ours), ("gpt", peer)):
                best: dict[str, Any] | None = None
                for batch in microbatches:
                    common.say(f"{name}, {length} tokens, {contender}, microbatch {batch}")

                    def made(build: Any = build, batch: int = batch) -> Callable[[], None]:
                        return build(sizes, batch, length)  # noqa: B023 (called at once)

                    figures = measure(made, batch * length)
                    if figures is None:
                        break
                    if best is None or figures["tokens_per_second"] > best["tokens_per_second"]:
                        best = {**figures, "microbatch": batch}
                if best:
                    best["mfu"] = best["tokens_per_second"] * flops[contender] / peak_flops
                rows.append({"model": name, "length": length, "contender": contender,
                             **(best or {"tokens_per_second": 0.0})})  # fmt: skip
    return rows


def require_gpu() -> None:
    """Raise UserError where there is no GPU."""
    if not torch.cuda.is_available():
        raise UserError("benchmarks.gpu needs a CUDA device and a torch built for it; none here")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak-flops", type=float, default=989e12, help="dense bf16, a second")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 8192])
    parser.add_argument("--out", type=Path, default=common.RESULTS / "gpu.json")
    options = parser.parse_args()
    try:
        require_gpu()
    except UserError as error:
        sys.exit(f"error: {error}")
    torch.set_float32_matmul_precision("high")
    rows = run(options.peak_flops, options.microbatches, options.lengths)
    result = {"benchmark": NAME, "device": torch.cuda.get_device_name(),
              "peak_flops": options.peak_flops, "rows": rows}  # fmt: skip
    common.save({**result, **common.setting()}, options.out)
    common.print_table(
        f"training on {result['device']}",
        ["model", "length", "contender", "microbatch", "tokens/s", "MFU", "peak MB"],
        [
            [r["model"], str(r["length"]), r["contender"], str(r.get("microbatch", "")),
             f"{r['tokens_per_second']:,.0f}", f"{r.get('mfu', 0):.1%}",
             f"{r.get('peak_bytes', 0) / 1e6:,.0f}"]
            for r in rows
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
