"""What can be changed of our recipe, a number each: i3lm+NAME=NUMBER+...; docs/results.md has some.

Learning: matrix, table, vector (rates), outer, inner (so many times the matrices' rate for those
with more rows than columns, as A of A B, and with fewer, as B), momentum, beta1, beta2, decay (of
matrices), table_decay, product_decay (of A B, of the pairs in feed-forward networks and head,
beside decay), spectral=RATE (the factors' in feed-forward networks by their norms: Spectron),
balance=TIMES (so often in a run those pairs are halved evenly between A and B), flat, warmup, clip,
optimizer (a name), dropout, state_bits, weight_bits. Start: loud=1 (LoRPt maps and o_proj, which
write into the residual stream, do not start at zero), normal=STD (factors drawn so), gauss=1 (as
loud as ours, not orthogonal), induction=0 (no such heads), radius (of A, only with induction=0),
tau (the longest of w, tokens), w (all the same), embeddings=STD. Sizes: heads. Text: anywhere=1
(windows do not begin at conversations), short=SHARE (until this share of the budget is spent,
windows are a quarter as long), ramp=SHARE (until then steps have half as many). The start is
changed in this order, however it is written.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.starts import STARTS, parts_of
from i3lm.errors import UserError
from i3lm.model.layers_i3 import LoRPtLinear
from i3lm.model.network import I3Network
from i3lm.optim import ParameterGroup, learning_rate_factor
from i3lm.presets import Architecture
from i3lm.training import loop
from i3lm.training.loop import Trainer

Change = Callable[[Trainer, float], None]

# Set before the network and the trainer are made.
SIZES = {"heads": "num_attention_heads"}
SETTINGS: dict[str, type] = {
    "state_bits": int, "weight_bits": int, "optimizer": str, "dropout": float,
}  # fmt: skip
MATRIX, TABLE, VECTOR = 0, 1, 2  # groups, in the order of `make_optimizer`
QUARTER = 4
# What changes weights beside a step.
MOVES = ("product_decay", "spectral", "balance", "outer", "inner")
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
    if "balance" in values and values.get("state_bits", "32") != "32":
        raise UserError("balance forgets states of 32 bits; leave out state_bits")
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
    step, pairs = trainer.step, parts_of(trainer.network, LoRPtLinear)

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


def _spectral(trainer: Trainer, value: float) -> None:
    """Give both factors of feed-forward pairs the rate value / (|A| + |B| + 1), in spectral norms:
    A B then moves by about `value` however large they are (Spectron, arXiv 2602.12429)."""
    step, pairs = trainer.step, parts_of(trainer.network.model.layers, LoRPtLinear)
    peak = trainer.optimizer.groups[MATRIX].lr

    def run(progress: float) -> dict:
        olds = [(pair.A.detach().clone(), pair.B.detach().clone()) for pair in pairs]
        row = step(progress)
        with torch.no_grad():
            for pair, (A, B) in zip(pairs, olds, strict=True):
                share = value / peak / (_norm(A) + _norm(B) + 1)
                pair.A.copy_(A.lerp(pair.A, share))
                pair.B.copy_(B.lerp(pair.B, share))
        return row

    trainer.step = run  # type: ignore[method-assign]


def _norm(matrix: Tensor) -> float:
    """Return the largest singular value, by the smaller Gram matrix."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    return float(torch.linalg.eigvalsh(x @ x.t())[-1].clamp(min=0).sqrt())


def _balance(trainer: Trainer, value: float) -> None:
    """Halve the singular values of feed-forward pairs between A and B, `value` times in a run, and
    forget their momenta."""
    step, pairs = trainer.step, parts_of(trainer.network.model.layers, LoRPtLinear)
    group, done = trainer.optimizer.groups[MATRIX], 0

    @torch.no_grad()
    def halve(pair: LoRPtLinear) -> None:
        Q, R = torch.linalg.qr(pair.A)
        P, S = torch.linalg.qr(pair.B.t())
        U, values, V = torch.linalg.svd(R @ S.t())
        pair.A.copy_(Q @ U * values.sqrt())
        pair.B.copy_(values.sqrt()[:, None] * (V @ P.t()))

    def run(progress: float) -> dict:
        nonlocal done
        if progress * (value + 1) >= done + 1:
            done += 1
            for pair in pairs:
                halve(pair)
            for states in group.state.values():
                for p, state in zip(group.parameters, states, strict=True):
                    if any(p is factor for pair in pairs for factor in (pair.A, pair.B)):
                        state.zero_()
        return step(progress)

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
    "spectral": _spectral,
    "balance": _balance,
    "outer": _stride(lambda rows, columns: rows > columns),
    "inner": _stride(lambda rows, columns: rows < columns),
    "flat": _flat,
    "clip": _config("clip", float),
    "warmup": _config("warmup_steps", int),
    "anywhere": _anywhere,
    "short": _short,
    "ramp": _ramp,
}
