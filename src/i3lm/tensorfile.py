"""Writing safetensors files straight from memory, and reading none that is not what it should be.

`safetensors.torch.save_file` copies all tensors first, a whole model more at the very moment when
training already holds weights, gradients and states. Reading stays with the library, behind limits.
Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from i3lm.files import atomic_file
from i3lm.tensorheader import Header, read_header

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
CHECKSUM = "sha256"  # of all tensors' bytes, in the header's metadata


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

    Where there is `metadata`, a checksum of the tensors joins it, which `read_tensors` holds. Needs
    the memory of one tensor beside the given ones, and that only where one is not contiguous.
    Raises OSError where the file cannot be written.
    """
    # Large types first, as the library does: every tensor is then aligned to its own size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    if metadata:
        data = hashlib.sha256()
        for name in order:
            data.update(_bytes(tensors[name]))
        header["__metadata__"] = {**metadata, CHECKSUM: data.hexdigest()}
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
            data_bytes = _bytes(tensors[name])
            digest.update(data_bytes)
            file.write(data_bytes)
    return digest.hexdigest()


def _bytes(given: Tensor | Deferred) -> memoryview:
    made = given.make() if isinstance(given, Deferred) else given
    tensor = made.detach().cpu().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def read_tensors(path: str | Path, header: Header | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file with this header, held against its checksum if it has one.

    ValueError for a wrong checksum or a file that is refused; OSError.
    """
    header = header or read_header(path)
    with open(path, "rb") as file:
        file.seek(header.begin)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if header.metadata.get(CHECKSUM, digest) != digest:
        raise ValueError("its numbers do not match their checksum")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
