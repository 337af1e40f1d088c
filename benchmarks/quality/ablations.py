"""What can be changed of our recipe, a number each: i3lm+NAME=NUMBER+...; docs/results.md has some.

Learning: matrix, table, vector (rates), outer, inner (so many times the matrices' rate for those
with more rows than columns, as A of A B, and with fewer, as B), momentum, beta1, beta2, decay (of
matrices), table_decay, product_decay (of A B, of the pairs in feed-forward networks and head,
beside decay), flat, warmup, clip, optimizer (a name), dropout, state_bits, weight_bits. Start:
loud=1 (LoRPt maps and o_proj, which write into the residual stream, do not start at zero),
normal=STD (factors drawn so), gauss=1 (as loud as ours, not orthogonal), induction=0 (no such
heads), radius (of A, only with induction=0), tau (the longest of w, tokens), w (all the same),
embeddings=STD. Sizes: heads. Text: anywhere=1 (windows do not begin at conversations), short=SHARE
(until this share of the budget is spent, windows are a quarter as long), ramp=SHARE (until then
steps have half as many). The start is changed in this order, however it is written.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from i3lm.errors import UserError
from i3lm.model.layers_i3 import I3Layer, LoRPtLinear, Projection, Recurrence
from i3lm.model.network import I3Network
from i3lm.optim import ParameterGroup, learning_rate_factor
from i3lm.presets import Architecture
from i3lm.training import loop
from i3lm.training.loop import Trainer

Change = Callable[[Trainer, float], None]
Start = Callable[[I3Network, float], None]

# Set before the network and the trainer are made.
SIZES = {"heads": "num_attention_heads"}
SETTINGS: dict[str, type] = {
    "state_bits": int, "weight_bits": int, "optimizer": str, "dropout": float,
}  # fmt: skip
MATRIX, TABLE, VECTOR = 0, 1, 2  # groups, in the order of `make_optimizer`
QUARTER = 4
MOVES = ("product_decay", "outer", "inner")  # what changes weights after a step
EXCLUSIVE = ({"normal", "gauss"}, {"normal", "induction"}, {"gauss", "induction"}, {"tau", "w"})


def parse(changes: list[str]) -> dict[str, str]:
    """Return the changes by name; UserError for one that is not known or has no value."""
    known = (*SIZES, *SETTINGS, *STARTS, *CHANGES)
    values = dict[str, str]()
    for change in changes:
        name, _, value = change.partition("=")
        if name not in known or name in values or not _fits(name, value):
            raise UserError(
                f"no change is written {change!r}; write NAME=NUMBER, once, of {', '.join(known)}"
            )
        values[name] = value
    if "radius" in values and values.get("induction") != "0":
        raise UserError("radius needs induction=0: the heads need the A that they start with")
    if "weight_bits" in values and (touched := {*STARTS, *MOVES} & {*values}):
        raise UserError(f"{min(touched)} needs weights that are not stored: leave out weight_bits")
    for pair in EXCLUSIVE:
        if pair <= {*values}:
            raise UserError(f"{' and '.join(sorted(pair))} set the same numbers; leave one out")
    return values


def _fits(name: str, value: str) -> bool:
    kind = int if name in SIZES else SETTINGS.get(name, float)
    try:
        number = kind(value)
    except ValueError:
        return False
    return value != "" and (name != "w" or 0 < number < 1) and (name != "tau" or number > 1)


def resized(sizes: Architecture, values: dict[str, str]) -> Architecture:
    """Return the sizes that the changes ask for."""
    fields = {SIZES[name]: int(value) for name, value in values.items() if name in SIZES}
    return dataclasses.replace(sizes, **fields)


def settings(values: dict[str, str]) -> dict[str, Any]:
    """Return the fields of `TrainConfig` that the changes ask for."""
    return {name: SETTINGS[name](value) for name, value in values.items() if name in SETTINGS}


@torch.no_grad()
def start(network: I3Network, values: dict[str, str]) -> None:
    """Make the changes of a fresh network."""
    for name, change in STARTS.items():
        if name in values:
            change(network, float(values[name]))


def apply(trainer: Trainer, values: dict[str, str]) -> None:
    """Make all changes of a trainer that has not begun."""
    start(trainer.network, values)
    for name, change in CHANGES.items():
        if name in values:
            change(trainer, float(values[name]))


def _group(kinds: tuple[int, ...], change: Callable[[ParameterGroup, float], None]) -> Change:
    def run(trainer: Trainer, value: float) -> None:
        for kind in kinds:
            change(trainer.optimizer.groups[kind], value)

    return run


def _rate(group: ParameterGroup, value: float) -> None:
    group.lr = value


def _beta(place: int) -> Callable[[ParameterGroup, float], None]:
    def change(group: ParameterGroup, value: float) -> None:
        group.betas = (value, group.betas[1]) if place == 0 else (group.betas[0], value)

    return change


def _decay(group: ParameterGroup, value: float) -> None:
    group.weight_decay = value


def _flat(trainer: Trainer, value: float) -> None:
    loop.learning_rate_factor = functools.partial(learning_rate_factor, flat=value)


def _config(name: str, kind: type) -> Change:
    def run(trainer: Trainer, value: float) -> None:
        trainer.config = dataclasses.replace(trainer.config, **{name: kind(value)})

    return run


def _product_decay(trainer: Trainer, value: float) -> None:
    """Decay |A B|^2 of each pair after a step: A by A (B B^T), B by (A^T A) B."""
    step = trainer.step
    pairs = _parts(trainer.network, LoRPtLinear)

    def run(progress: float) -> dict:
        row = step(progress)
        amount = row["learning_rate"] * value
        with torch.no_grad():
            for pair in pairs:
                A, B = pair.A.clone(), pair.B.clone()
                pair.A -= amount * A @ (B @ B.t())
                pair.B -= amount * (A.t() @ A) @ B
        return row

    trainer.step = run  # type: ignore[method-assign]


def _stride(chosen: Callable[[int, int], bool]) -> Change:
    """Let the matrices whose rows and columns are `chosen` move so many times as far."""

    def change(trainer: Trainer, value: float) -> None:
        step = trainer.step
        matrices = [
            p
            for p in trainer.optimizer.groups[MATRIX].parameters
            if chosen(p.shape[0] // getattr(p, "stacked_maps", 1), p.shape[1])
        ]

        def run(progress: float) -> dict:
            before = [p.detach().clone() for p in matrices]
            row = step(progress)
            with torch.no_grad():
                for p, old in zip(matrices, before, strict=True):
                    p.copy_(old.lerp(p, value))
            return row

        trainer.step = run  # type: ignore[method-assign]

    return change


def _parts(network: I3Network, kind: type) -> list[Any]:
    return [part for part in network.modules() if isinstance(part, kind)]


def _factors(network: I3Network) -> list[Tensor]:
    """Return the factors of all pairs; those of a silent map stay silent."""
    pairs = [p for part in _parts(network, LoRPtLinear) for p in (part.A, part.B)]
    return [p for p in (*pairs, *(m.weight for m in _parts(network, Projection))) if p.any()]


def _loud(network: I3Network, value: float) -> None:
    if not value:
        return
    for part in (*_parts(network, LoRPtLinear), *_parts(network, Projection)):
        if part.silent:
            part.silent = False
            part.reset_parameters()


def _normal(network: I3Network, value: float) -> None:
    _draw(network, lambda factor: value)


def _gauss(network: I3Network, value: float) -> None:
    if value:
        _draw(network, lambda factor: float(factor.square().mean().sqrt()))


def _draw(network: I3Network, deviation: Callable[[Tensor], float]) -> None:
    """Draw the factors from normal distributions, and set the induction heads again."""
    _without_induction(network)
    for factor in _factors(network):
        nn.init.normal_(factor, std=deviation(factor))
    for layer in _parts(network, I3Layer):
        layer.reset_parameters()


def _induction(network: I3Network, value: float) -> None:
    if not value:
        _without_induction(network)


def _without_induction(network: I3Network) -> None:
    """Reset what `I3Layer.reset_parameters` has set."""
    for layer in _parts(network, I3Layer):
        attention = layer.attention
        for part in (layer.recurrence, attention.qkv_down, attention.q_up, attention.k_up):
            part.reset_parameters()


def _radius(network: I3Network, value: float) -> None:
    for part in _parts(network, Recurrence):
        part.A.copy_(value * torch.eye(len(part.A)))


def _tau(network: I3Network, value: float) -> None:
    for part in _parts(network, Recurrence):
        count = len(part.w_mix)
        spread = torch.linspace(0.0, math.log(value), count)[torch.randperm(count)]
        part.w_mix.copy_(torch.logit(torch.exp(-torch.exp(-spread))))


def _w(network: I3Network, value: float) -> None:
    for part in _parts(network, Recurrence):
        part.w_mix.fill_(math.log(value / (1 - value)))


def _embeddings(network: I3Network, value: float) -> None:
    for part in _parts(network, nn.Embedding):
        nn.init.normal_(part.weight, std=value)


def _anywhere(trainer: Trainer, value: float) -> None:
    if value:
        trainer.loader.opening = None


def _short(trainer: Trainer, value: float) -> None:
    """Cut windows in four while less than this share of the budget is spent."""
    if trainer.context % QUARTER:
        raise UserError(f"short divides windows by {QUARTER}, but not {trainer.context} tokens")
    step, windows = trainer.step, trainer.loader.windows
    spent = 0.0

    def run(progress: float) -> dict:
        nonlocal spent
        spent = progress
        return step(progress)

    def cut(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = windows(first, count)
        if spent >= value:
            return inputs, targets
        if trainer.dropping.share:  # its keys are of whole windows
            raise UserError("short does not go with dropout; add dropout=0")
        shape = count * QUARTER, -1
        return inputs.reshape(shape).copy(), targets.reshape(shape).copy()

    trainer.step, trainer.loader.windows = run, cut  # type: ignore[method-assign]


def _ramp(trainer: Trainer, value: float) -> None:
    """Take steps of half the sequences while less than this share of the budget is spent."""
    step, windows, whole = trainer.step, trainer.loader.windows, trainer.sequences
    if whole % 2:
        raise UserError(f"ramp halves steps, but not {whole} sequences; change --batch-tokens")
    read = 0

    def run(progress: float) -> dict:
        trainer.sequences = whole // 2 if progress < value else whole
        return step(progress)

    def following(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal read  # a step's number no longer says which windows were read
        read += count
        return windows(read - count, count)

    trainer.step, trainer.loader.windows = run, following  # type: ignore[method-assign]


# In the order in which they are made: what sets less comes later.
STARTS: dict[str, Start] = {
    "loud": _loud, "normal": _normal, "gauss": _gauss, "induction": _induction, "radius": _radius,
    "tau": _tau, "w": _w, "embeddings": _embeddings,
}  # fmt: skip
CHANGES: dict[str, Change] = {
    "matrix": _group((MATRIX,), _rate),
    "table": _group((TABLE,), _rate),
    "vector": _group((VECTOR,), _rate),
    "momentum": _group((MATRIX,), _beta(0)),
    "beta1": _group((TABLE, VECTOR), _beta(0)),
    "beta2": _group((TABLE, VECTOR), _beta(1)),
    "decay": _group((MATRIX,), _decay),
    "table_decay": _group((TABLE,), _decay),
    "product_decay": _product_decay,
    "outer": _stride(lambda rows, columns: rows > columns),
    "inner": _stride(lambda rows, columns: rows < columns),
    "flat": _flat,
    "clip": _config("clip", float),
    "warmup": _config("warmup_steps", int),
    "anywhere": _anywhere,
    "short": _short,
    "ramp": _ramp,
}
