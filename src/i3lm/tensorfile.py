"""Writing safetensors files straight from memory.

`safetensors.torch.save_file` copies all tensors first, a whole model more at the very moment when
training already holds weights, gradients and states. Reading stays with the library.
Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from i3lm.files import atomic_file

# The format's names of the types that models, states and codes have.
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNMENT = 8  # bytes: the header is padded, so that tensors can be mapped


@dataclass(frozen=True)
class Deferred:
    """A tensor that is made when it is written, and gone after."""

    make: Callable[[], Tensor]
    shape: torch.Size
    dtype: torch.dtype

    def numel(self) -> int:
        """The number of numbers."""
        return self.shape.numel()

    def element_size(self) -> int:
        """The bytes of a number."""
        return self.dtype.itemsize


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor | Deferred],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write named tensors as a safetensors file, whole or not at all; return its SHA-256.

    Needs the memory of one tensor beside the given ones, and that only where one is not contiguous.
    Raises OSError where the file cannot be written.
    """
    # Large types first, as the library does: every tensor is then aligned to its own size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name in order:
            given = tensors[name]
            made = given.make() if isinstance(given, Deferred) else given
            tensor = made.detach().cpu().contiguous()
            if tensor.numel():
                data = tensor.reshape(-1).view(torch.uint8).numpy().data
                digest.update(data)
                file.write(data)
    return digest.hexdigest()
