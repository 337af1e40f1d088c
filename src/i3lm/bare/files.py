"""Reading safetensors files, as `safetensors.torch.load_file`."""

from pathlib import Path

import numpy as np

from i3lm.bare import tensor
from i3lm.bare.tensor import Tensor
from i3lm.tensorheader import read_header

TYPES: dict[str, np.dtype] = {
    "F64": tensor.float64, "F32": tensor.float32, "F16": tensor.float16, "BF16": tensor.bfloat16,
    "I64": tensor.int64, "I32": tensor.int32, "I8": tensor.int8, "U8": tensor.uint8,
    "BOOL": tensor.bool_,
}  # fmt: skip


def load_file(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file. ValueError for one that is refused; OSError."""
    header, found = read_header(path), {}
    with open(path, "rb") as file:
        for name, entry in header.tensors.items():
            file.seek(header.begin + entry.begin)
            a = np.fromfile(file, TYPES[entry.dtype], entry.numbers)
            found[name] = Tensor(a.reshape(entry.shape))
    return found
