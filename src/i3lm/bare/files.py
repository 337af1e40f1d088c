"""Reading safetensors files, as `safetensors.torch.load_file`."""

from pathlib import Path

import numpy as np

from i3lm.bare.tensor import Tensor
from i3lm.tensorheader import read_header


def load_file(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file. ValueError for one that is refused; OSError."""
    from i3lm.tensorfile import TYPES  # which imports this

    types: dict[str, np.dtype] = {name: dtype for dtype, name in TYPES.items()}  # type: ignore[misc]
    header, found = read_header(path), {}
    with open(path, "rb") as file:
        for name, entry in header.tensors.items():
            file.seek(header.begin + entry.begin)
            a = np.fromfile(file, types[entry.dtype], entry.numbers)
            found[name] = Tensor(a.reshape(entry.shape))
    return found
