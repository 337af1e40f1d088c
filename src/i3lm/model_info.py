"""What a model is and costs, from its preset or its folder. No torch: it must answer at once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from i3lm.errors import UserError, did_you_mean
from i3lm.files import read_small
from i3lm.presets import PRESETS, Architecture, architecture_class
from i3lm.tensorheader import Entry, read_header, weight_files


def info(model: str | Path) -> dict[str, Any]:
    """Return the sizes and costs of a preset (by name) or a model folder (by path).

    - `parameters`, `parameters_by_part`, `window` (tokens), `vocabulary` (rows), `architecture`.
    - `flops_per_token`: of training on one token, forward and backward, at the full window.
    - `memory` in bytes: `weights`, `gradients` and, by optimizer, `optimizer` states, in float32 as
      in training; activations come on top.
    - of a folder also `weights_file` (bytes and data types as stored), `tokens` (of its tokenizer)
      and `run` (the last row of its metrics), where there are such.

    UserError for an unknown preset or a folder without a model.
    """
    path = Path(model)
    if path.is_dir():
        return _of_folder(path)
    if isinstance(model, Path) or model not in PRESETS:
        hint = did_you_mean(model, PRESETS)
        raise UserError(
            f"{model}: no such folder and no preset; {hint}name a model folder or a preset "
            f"({', '.join(PRESETS)})"
        )
    preset = PRESETS[model]
    return {"model": model, "about": preset.about, **_costs(preset.architecture)}


def _costs(architecture: Architecture) -> dict[str, Any]:
    total = architecture.parameters
    return {
        "parameters": total,
        "parameters_by_part": architecture.parameters_by_part(),
        "window": architecture.max_position_embeddings,
        "vocabulary": architecture.vocab_size,
        "flops_per_token": architecture.flops_per_token(),
        "memory": {
            "weights": 4 * total,
            "gradients": 4 * total,
            "optimizer": {
                # Muon keeps one value for an entry of a matrix, two for all others, as AdamW does.
                "muon": 8 * total - 4 * architecture.matrix_parameters,
                "adamw": 8 * total,
                "lion": 4 * total,
            },
        },
        "architecture": dataclasses.asdict(architecture),
    }


def _of_folder(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "i3":
        raise UserError(f"{folder}: not an i3 model; name a folder that i3lm train wrote")
    names = {field.name for field in dataclasses.fields(Architecture)}
    try:
        kind = architecture_class(config)
        architecture = kind(**{k: v for k, v in config.items() if k in names})
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is damaged ({error}); restore it") from error
    result = {"model": str(folder), **_costs(architecture)}
    bits = config.get("weight_bits", 32)
    result["weight_bits"] = bits
    result["weights_file"] = _weights(folder, architecture.parameters, bits)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists():
        # Its special tokens are in the vocabulary, too.
        result["tokens"] = len(_read_json(tokenizer)["model"]["vocab"])
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        result["run"] = _last_row(metrics)
    return result


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_small(path))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: not a model folder, it has no {path.name}; "
            "name one that i3lm train wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (no JSON object); restore it")
    return value


def _weights(folder: Path, parameters: int, bits: int) -> dict[str, Any]:
    """Return the size and the data types of the weight file, or files."""
    path, size = folder / "model.safetensors", 0
    tensors: list[Entry] = []
    try:
        for path in weight_files(folder):
            tensors += read_header(path).tensors.values()
            size += path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path.parent}: it has no {path.name}; copy the whole folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it") from error
    count = sum(entry.numbers for entry in tensors)
    if bits == 32 and count != parameters:
        raise UserError(
            f"{path} has {count:,} parameters, its config.json describes {parameters:,}; "
            "copy both from one run"
        )
    return {"bytes": size, "types": sorted({entry.dtype for entry in tensors})}


def _last_row(path: Path) -> dict[str, Any] | None:
    """Return the last whole row, or None: a run may be writing right now."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        for line in reversed(file.read().splitlines(keepends=True)):
            if line.endswith(b"\n"):
                try:
                    row = json.loads(line)
                except ValueError:
                    return None
                return row if isinstance(row, dict) else None
    return None
