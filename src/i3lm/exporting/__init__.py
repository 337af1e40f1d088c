"""Export a model folder: graphs for ONNX and ExecuTorch, few bits, LoRPt merged to linears."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from i3lm.errors import UserError
from i3lm.exported import DECODE, PREFILL, PROGRAM, WEIGHTS, open_exported
from i3lm.exporting.graphs import write_graphs
from i3lm.exporting.measuring import compare, same_logits, same_tokens
from i3lm.exporting.program import write_program
from i3lm.files import atomic_folder, write_atomic
from i3lm.folder import Loaded, load_folder, save_folder
from i3lm.lorpt import merge
from i3lm.model.card_i3 import model_card
from i3lm.presets import Architecture, DenseArchitecture
from i3lm.quantizing import quantize

FORMS = ("onnx", "executorch", "int8", "int4", "dense")
_BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_RUN = """
```python
from i3lm.exported import generate

print(generate("PATH_OF_THIS_FOLDER", [{"role": "user", "content": "Who are you?"}]))
```
"""
ONNX_USE = f"""
Two ONNX graphs: `prefill.onnx` reads a prompt, `decode.onnx` a token more; `weights.bin` belongs to
both. They run without torch, by `pip install 'i3lm[export]'`:
{_RUN}"""
EXECUTORCH_USE = f"""
A program for ExecuTorch, `model.pte`, with XNNPACK: its method `prefill` reads a prompt, `decode` a
token more. In an app it needs ExecuTorch's runtime alone; here `pip install 'i3lm[executorch]'`:
{_RUN}"""


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

    to: "onnx" (two graphs for onnxruntime), "executorch" (both in a program for ExecuTorch), "int8"
    or "int4" (`i3lm.quantize`), "dense" (each LoRPt pair merged to a plain linear map). Graphs and
    dense exports are checked against the original before they appear: token for token past the
    window's end, or by their logits (`check`).

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
            if to in ("onnx", "executorch"):
                slow = "; lowering them takes 15 to 20 s a layer" if to == "executorch" else ""
                notify(f"writing the graphs{slow}")
                result["check"] = _graphs(model, loaded, folder, to)
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


def _graphs(model: Path, loaded: Loaded, folder: Path, to: str) -> dict[str, Any]:
    if to == "onnx":
        write_graphs(loaded.network, folder, (PREFILL, DECODE), WEIGHTS)
    else:
        write_program(loaded.network, folder / PROGRAM)
    for name in _BESIDE:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    use = ONNX_USE if to == "onnx" else EXECUTORCH_USE
    _card(model, folder, to, loaded.architecture, use)
    return same_tokens(loaded, open_exported(folder))


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
