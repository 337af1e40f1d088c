"""Model folders whose matrices take 4 or 8 bits a number: smaller files, less memory."""

from pathlib import Path
from typing import Any

from i3lm.errors import UserError
from i3lm.files import atomic_folder, write_atomic, writing_to
from i3lm.folder import load_folder, save_folder
from i3lm.model.stored import StoredMatrix
from i3lm.model.stored_i3 import LEVELS, nearest, stored_names
from i3lm.tensorheader import weight_files

# Shares of a group's largest number that are tried as its range: clipping it may cost less than
# coarser steps for all others.
RANGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def quantize(model: str | Path, out: str | Path, bits: int = 4) -> dict[str, Any]:
    """Write the model folder `model` to `out` with its matrices in 4 or 8 bits a number.

    Each group of 32 numbers has a scale in bfloat16: 4.5 or 8.5 bits a number in all. i3lm and
    transformers load the new folder like any other. Returns `bytes_before`, `bytes_after` (of the
    weight files) and `error`, the root of the mean squared error over that of the numbers.

    UserError: other bits, a folder that is no model or is in few bits already, an `out` that is
    there.
    """
    if bits not in LEVELS:
        raise UserError(f"bits {bits} must be 4 or 8")
    model, out = Path(model), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; choose another folder with --out")
    loaded = load_folder(model)
    if loaded.weight_bits != 32:
        raise UserError(f"{model} is in {loaded.weight_bits} bits already; quantize its original")
    wanted = {path: getattr(module, name) for module, name, path in stored_names(loaded.network)}
    stored: dict[str, StoredMatrix] = {}
    lost = whole = 0.0
    for path, matrix in wanted.items():
        codes = nearest(matrix.detach(), bits, RANGES)
        stored[path] = StoredMatrix(*codes, matrix.shape, bits)
        lost += float((stored[path].read() - matrix.detach()).square().sum())
        whole += float(matrix.detach().square().sum())
    with writing_to(out), atomic_folder(out) as folder:
        save_folder(folder, loaded.network, loaded.tokenizer, stored=stored)
        _card(model, folder, bits)
    before, after = (
        sum(path.stat().st_size for path in weight_files(folder)) for folder in (model, out)
    )
    return {
        "folder": str(out),
        "bits": bits,
        "bytes_before": before,
        "bytes_after": after,
        "error": (lost / max(whole, 1e-30)) ** 0.5,
    }


def _card(model: Path, out: Path, bits: int) -> None:
    """Give `out` the card of the original, with its figures, and a line on the bits."""
    path = model / "README.md"
    if not path.is_file():
        return
    before, found, after = path.read_text(encoding="utf-8").partition("\n## Use\n")
    line = f"\nMatrices of {bits} bits a number (`i3lm export`); the figures are the original's.\n"
    write_atomic(out / "README.md", f"{before}{line if found else ''}{found}{after}".encode())
