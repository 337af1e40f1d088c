"""What a user asks of a run, in a user's units, and the configuration that it means."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from i3lm.data.documents import Division
from i3lm.errors import UserError, did_you_mean
from i3lm.training.config import Every, TrainConfig
from i3lm.units import parse_duration, parse_size


class Settings(TypedDict, total=False):
    """The fields of `TrainConfig`, also in the user's own units. None leaves a default."""

    out: str | Path | None
    data: str | Path | Sequence[str | Path] | None  # files, folders, patterns, a datasets name
    preset: str | None
    vocab_size: int | None
    context: int | None  # tokens
    batch_tokens: int | None
    microbatch: int | None  # sequences
    optimizer: str | None
    state_bits: int | None
    weight_bits: int | None
    qat_bits: int | None
    lr: float | None
    steps: int | None
    time: float | str | None  # seconds, or "10m"
    warmup_steps: int | None
    clip: float | None
    checkpoint_every: Every | int | str | None  # steps, or "2m"
    eval_every: Every | int | str | None
    seed: int | None
    dropout: float | None
    device: str | None
    threads: int | None
    precision: str | None
    gradient_checkpointing: str | None
    memory: int | str | None  # bytes, or "400MB"
    return_memory: bool | None
    text_column: str | None
    split: str | None
    documents: Division | None
    lowercase: bool | None
    skip_bad_lines: bool | None
    stream: int | str | None  # bytes, or "128MB"
    compile: bool | None
    parallel: str | None
    sync_every: int | None  # steps
    sync_bits: int | None
    ddp_timeout: float | str | None  # seconds, or "5m"


def configure(**settings: Unpack[Settings]) -> TrainConfig:
    """Return the configuration of a new run; UserError for what cannot be."""
    return TrainConfig(**_fields(dict(settings)))


def reconfigure(folder: str | Path, **changes: Unpack[Settings]) -> TrainConfig:
    """Return the configuration of the run in `folder`, which keeps what `changes` leave open."""
    fields = _fields(dict(changes))
    if "out" in fields:
        raise UserError("a run goes on in its own folder; leave --out away")
    config = TrainConfig.load(Path(folder))
    if "memory" in fields:  # what costs only time is planned anew
        config = dataclasses.replace(
            config, microbatch=None, gradient_checkpointing=None, return_memory=None
        )
    return dataclasses.replace(config, **fields, out=str(folder))


def _fields(settings: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    fields = {name: value for name, value in settings.items() if value is not None}
    for name in fields.keys() - known:
        hint = did_you_mean(name, known)
        raise UserError(f"no setting is named {name!r}; {hint}known: {', '.join(sorted(known))}")
    if "data" in fields:
        data = fields["data"]
        data = [data] if isinstance(data, str | Path) else data
        if not isinstance(data, Sequence) or not all(isinstance(x, str | Path) for x in data):
            raise UserError(
                f"data is {data!r}; give the name of a file, a folder or a dataset, or a list"
            )
        fields["data"] = tuple(str(item) for item in data)
    if isinstance(fields.get("out"), Path):
        fields["out"] = str(fields["out"])
    for name in ("time", "ddp_timeout"):
        if isinstance(fields.get(name), str):
            fields[name] = parse_duration(fields[name])
    for name in ("memory", "stream"):
        if isinstance(fields.get(name), str):
            fields[name] = parse_size(fields[name])
    for name in ("checkpoint_every", "eval_every"):
        if isinstance(fields.get(name), int | str) and not isinstance(fields[name], bool):
            fields[name] = _every(fields[name])
    return fields


def _every(value: int | str) -> Every:
    """Return `500` as steps, `2m` as a time."""
    text = str(value)
    if text.isascii() and text.isdigit():
        return Every(steps=int(text))
    return Every(seconds=parse_duration(text))
