"""What is compared: i3lm as `i3lm train` runs it, a GPT of equal size, i3 as published.

A contender is written NAME or NAME:RATE, RATE being the peak rate of its matrices; gpt-muon
takes NAME:RATE,RATE, the second for what AdamW trains. For ablations i3lm takes changes of its
recipe, as i3lm+table=0.005+flat=0.2 or i3lm+heads=4 (see ablations.py), and other placements of low
rank, as i3lm@down (see placement.py). The GPT takes +dropout=0.2, which also hides that share of
its input tokens, as ours does, and +decay=0.1, of its matrices.
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import gpt, published
from benchmarks.quality import ablations, placement
from i3lm.data import Corpus, Loader
from i3lm.errors import UserError
from i3lm.model.network import I3Network
from i3lm.optim import AdamW, Muon, Optimizer, ParameterGroup, learning_rate_factor
from i3lm.presets import Architecture
from i3lm.training.config import TrainConfig
from i3lm.training.dropping import Dropping
from i3lm.training.hardware import choose_device, choose_precision
from i3lm.training.loop import Diverged, Trainer

OURS = "i3lm"
# Peers' rates are the best of the trials in docs/results.md, as many as ours had.
RATES = {"gpt-adamw": 2e-3, "gpt-muon": 2e-2, "published": 3e-4, "published-scan": 3e-4}
NAMES = (OURS, *RATES)
WARMUP_STEPS = 20
PUBLISHED_BATCH = 4


@dataclass(frozen=True)
class Budget:
    """When training ends: after so many tokens, or seconds of training. One of them is None."""

    tokens: int | None
    seconds: float | None

    def progress(self, tokens: int, seconds: float) -> float:
        """Return the share that is spent, 0 to 1."""
        if self.tokens is not None:
            return min(1.0, tokens / self.tokens)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)


@dataclass(frozen=True)
class Progress:
    """A moment of a run, after a step."""

    tokens: int
    seconds: float  # of training: what the caller does between steps is not counted
    share: float


class Scored(nn.Module):
    """A peer with the part of `I3Network` that scoring calls."""

    def __init__(self, network: gpt.GPT | published.Published, sizes: Architecture) -> None:
        super().__init__()
        self.network, self.config = network, sizes

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy in nats of the last positions against targets (B, S)."""
        logits = self.network.logits(self.network.hidden(inputs)[:, -targets.shape[1] :])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


@dataclass(frozen=True)
class Contender:
    """A network to be scored, and the steps that train it."""

    network: Any
    steps: Callable[[Budget], Iterator[Progress]]
    settings: dict[str, Any]


def build(
    name: str, corpus: Corpus, preset: str, batch_tokens: int, seed: int, context: int | None
) -> Contender:
    """Return the contender called NAME, NAME:RATE or NAME:RATE,RATE, with its changes."""
    name, *changes = name.split("+")
    name, _, rates = name.partition(":")
    kind, _, placed = name.partition("@")
    rate, _, rest = rates.partition(",")
    if kind not in NAMES:
        raise UserError(f"no contender is named {kind!r}; choose of {', '.join(NAMES)}")
    lr = float(rate) if rate else RATES.get(kind)
    torch.manual_seed(seed)
    config = TrainConfig(
        out=str(corpus.folder), preset=preset, batch_tokens=batch_tokens, steps=1 << 40,
        seed=seed, lr=lr, context=context,
    )  # fmt: skip
    sizes = config.architecture(len(corpus.tokenizer))
    if kind == OURS:
        return _ours(config, corpus, sizes, placed, changes)
    changed = _gpt_changes(kind, placed, changes)
    share = changed.get("dropout", 0.0)
    hiding = dataclasses.replace(config, dropout=share)
    width = sizes.max_position_embeddings
    if kind.startswith("published"):
        network: Any = published.Published(sizes, scan=kind == "published-scan")
        batch, bf16 = PUBLISHED_BATCH, False
    else:
        network = gpt.GPT(gpt.sizes_like(sizes.parameters, sizes.vocab_size, width), share)
        batch = max(1, batch_tokens // width)
        bf16 = choose_precision("auto", torch.device("cpu")) == "bf16"
    assert lr is not None
    if kind == "gpt-muon":
        rest_lr = float(rest) if rest else min(lr / 2, 2e-3)
        optimizer: Optimizer = _muon(network, lr, rest_lr)
    else:
        optimizer = _adamw(network, lr)
    if "decay" in changed:
        optimizer.groups[0].weight_decay = changed["decay"]
    loader = Loader(corpus.train, width, batch, seed)

    def steps(budget: Budget) -> Iterator[Progress]:
        return _peer_steps(network, optimizer, loader, Dropping(hiding, sizes, None), bf16, budget)

    count = sum(p.numel() for p in network.parameters())
    settings = {"rate": lr, "batch": batch, "bf16": bf16, "parameters": count}
    return Contender(Scored(network, sizes), steps, settings)


def _gpt_changes(kind: str, placed: str, changes: list[str]) -> dict[str, float]:
    found = dict(change.partition("=")[::2] for change in changes)
    if placed or found.keys() - {"dropout", "decay"} or (found and not kind.startswith("gpt")):
        raise UserError(f"changes and placements are for {OURS}, +dropout and +decay for the GPT")
    return {name: float(value) for name, value in found.items()}


def _ours(
    config: TrainConfig, corpus: Corpus, sizes: Architecture, placed: str, changes: list[str]
) -> Contender:
    device = choose_device("cpu")
    precision = choose_precision(config.precision, device)
    values = ablations.parse(changes)
    sizes = ablations.resized(sizes, values)
    config = dataclasses.replace(config, **ablations.settings(values))
    network = placement.build(placed, sizes) if placed else I3Network(sizes)
    trainer = Trainer(config, corpus, network, precision, device)
    try:
        ablations.apply(trainer, values)
    except BaseException:
        trainer.close()
        raise

    def steps(budget: Budget) -> Iterator[Progress]:
        seconds, step = 0.0, trainer.sequences * trainer.context
        count = budget.tokens and -(-budget.tokens // step)
        planned = dataclasses.replace(config, steps=count, time=budget.seconds)
        trainer.dropping = Dropping(planned, sizes, len(corpus.train))
        with contextlib.closing(trainer):
            while (share := budget.progress(trainer.counters.tokens, seconds)) < 1:
                begin = time.monotonic()
                network.train()
                trainer.dropping.foresee(share, trainer.counters.tokens)
                try:
                    trainer.step(share)
                except Diverged as error:
                    raise UserError(str(error)) from None
                seconds += time.monotonic() - begin
                tokens = trainer.counters.tokens
                yield Progress(tokens, seconds, budget.progress(tokens, seconds))

    settings = {
        "rate": trainer.optimizer.groups[0].lr,
        "batch": trainer.sequences,
        "bf16": precision == "bf16",
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    return Contender(network, steps, settings)


def _adamw(network: nn.Module, lr: float) -> Optimizer:
    matrices, rest = _split(network)
    groups = [_group(matrices, lr), _group(rest, lr)]
    groups[0].weight_decay = 0.1
    return AdamW(groups)


def _muon(network: nn.Module, lr: float, rest_lr: float) -> Optimizer:
    """Muon on the matrices of the blocks, AdamW on the rest."""
    matrices, rest = _split(network)
    for name, p in matrices:
        if name.endswith("qkv.weight"):
            p.stacked_maps = 3  # type: ignore[attr-defined]
    group = _group(matrices, lr)
    group.weight_decay, group.betas = 0.01, (0.95, 0.0)
    return Muon(group, [_group(rest, rest_lr)])


Named = list[tuple[str, Tensor]]


def _split(network: nn.Module) -> tuple[Named, Named]:
    named = [(name, p) for name, p in network.named_parameters()]
    matrices = [(n, p) for n, p in named if p.ndim == 2 and n.startswith(("blocks", "layers"))]
    names = {name for name, _ in matrices}
    return matrices, [(n, p) for n, p in named if n not in names]


def _group(named: Named, lr: float) -> ParameterGroup:
    return ParameterGroup([n for n, _ in named], [p for _, p in named], lr, betas=(0.9, 0.95))


def _peer_steps(
    network: Any,
    optimizer: Optimizer,
    loader: Loader,
    dropping: Dropping,
    bf16: bool,
    budget: Budget,
) -> Iterator[Progress]:
    tokens, seconds = 0, 0.0
    for step in itertools.count():
        share = budget.progress(tokens, seconds)
        if share >= 1:
            return
        begin = time.monotonic()
        network.train()
        rows, after = loader.batch(step)
        rows = dropping.hide(rows, step * loader.batch_size)
        inputs, targets = torch.from_numpy(rows), torch.from_numpy(after)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = network.loss(inputs, targets)
        if not math.isfinite(float(loss.detach())):
            raise UserError(f"the loss became {float(loss.detach())} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step(learning_rate_factor(share, step, warmup_steps=WARMUP_STEPS))
        optimizer.zero_grad()
        tokens += inputs.numel()
        seconds += time.monotonic() - begin
        yield Progress(tokens, seconds, budget.progress(tokens, seconds))
