"""Export a model folder: ONNX graphs, matrices of few bits, LoRPt merged to plain linears."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from i3lm.errors import UserError
from i3lm.exporting.graphs import write_graphs
from i3lm.exporting.measuring import compare, same_logits, same_tokens
from i3lm.files import atomic_folder, write_atomic
from i3lm.folder import Loaded, load_folder, save_folder
from i3lm.lorpt import merge
from i3lm.model.card_i3 import model_card
from i3lm.onnx_generation import DECODE, PREFILL, WEIGHTS, OnnxModel
from i3lm.presets import Architecture, DenseArchitecture
from i3lm.quantizing import quantize

FORMS = ("onnx", "int8", "int4", "dense")
_BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
ONNX_USE = """
Two ONNX graphs: `prefill.onnx` reads a prompt, `decode.onnx` a token more; `weights.bin` belongs to
both. They run without torch, by `pip install 'i3lm[export]'`:

```python
from i3lm.onnx_generation import generate

print(generate("PATH_OF_THIS_FOLDER", [{"role": "user", "content": "Who are you?"}]))
```
"""


def export(
    model: str | Path,
    out: str | Path,
    to: str,
    *,
    data: Sequence[str | Path] = (),
    measure: bool = True,
    notify: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the model folder `model` to the new folder `out` in another form; say what it costs.

    to: "onnx" (two graphs for onnxruntime), "int8" or "int4" (`i3lm.quantize`), "dense" (each LoRPt
    pair merged to a plain linear map). An ONNX or dense export is checked against the original
    before it appears: token for token past the window's end, or by its logits (`check`).

    With `measure` the result has `rows`, for the original and the export: `bytes` of the model's
    files, greedy `tokens_per_second` on one thread, `bits_per_character` on the text of
    `data` (default: the run's own held-out text if the folder has it, else built-in conversations;
    `text` says which). `out` appears as a whole or not at all.

    UserError: an unknown form, an `out` that is not empty, no i3 model, missing packages, an export
    that is not like the original.
    """
    if to not in FORMS:
        raise UserError(f"--to {to} is unknown; choose one of {', '.join(FORMS)}")
    model, out = Path(model), Path(out)
    result: dict[str, Any] = {"model": str(model), "folder": str(out), "to": to}
    loaded = load_folder(model)
    try:
        with atomic_folder(out) as folder:
            if to == "onnx":
                notify("writing the graphs")
                result["check"] = _onnx(model, loaded, folder)
            elif to == "dense":
                result["check"] = _dense(model, loaded, folder)
            else:
                result["error"] = quantize(model, folder, int(to[3:]))["error"]
            if measure:
                notify("measuring")
                result |= compare(model, folder, to, data)
    except FileExistsError:
        raise UserError(f"{out} is not empty; choose another folder with --out") from None
    return result


def _onnx(model: Path, loaded: Loaded, folder: Path) -> dict[str, Any]:
    write_graphs(loaded.network, folder, (PREFILL, DECODE), WEIGHTS)
    for name in _BESIDE:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    _card(model, folder, "onnx", loaded.architecture, ONNX_USE)
    return same_tokens(loaded, OnnxModel(folder))


@torch.no_grad()
def _dense(model: Path, loaded: Loaded, folder: Path) -> dict[str, Any]:
    if isinstance(loaded.architecture, DenseArchitecture):
        raise UserError(f"{model} is dense already")
    if loaded.weight_bits != 32:
        raise UserError(f"{model} is in {loaded.weight_bits} bits; merge its original")
    network = load_folder(model).network
    merge(network)
    network.config = sizes = DenseArchitecture(**dataclasses.asdict(loaded.architecture))
    save_folder(folder, network, loaded.tokenizer)
    _card(model, folder, "dense", sizes)
    return same_logits(loaded, load_folder(folder))


def _card(model: Path, folder: Path, form: str, sizes: Architecture, use: str = "") -> None:
    """Give `folder` the card of the original, with its form and, if given, another use."""
    path = model / "README.md"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        text = model_card(dataclasses.asdict(sizes), sizes.parameters, None)
    before, found, rest = text.partition("\n## Use\n")
    given, found_model, after = rest.partition("\n## Model\n")
    line = f"\nExported as {form} (`i3lm export --to {form}`); the figures are the original's.\n"
    whole = f"{before}{line if found else ''}{found}{use or given}{found_model}{after}"
    write_atomic(folder / "README.md", whole.encode())
