"""Finds the compiled kernels, if the installation could build them."""

import ctypes
import functools
import importlib.machinery
import sys
from pathlib import Path
from typing import Any


def _library_path(name: str) -> Path | None:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (path := folder / f"{name}{suffix}").exists():
            return path
    return None


@functools.cache
def text_library() -> ctypes.CDLL | None:
    """Return the tokenizer's C kernels, or None where they were not built."""
    path = _library_path("_text")
    return None if path is None else ctypes.CDLL(str(path))


@functools.cache
def tensor_library() -> ctypes.CDLL | None:
    """Return the model's C kernels, or None where they were not built or cannot be loaded.

    They run in the threads of torch's own OpenMP runtime, whether torch is there or not yet.
    """
    path = _library_path("_tensor")
    if path is None:
        return None
    if sys.platform.startswith("linux") and not _share_openmp():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


@functools.cache
def multiplies_bfloat16() -> bool:
    """Say whether there are kernels for AVX512-BF16, and a processor to run them."""
    library = tensor_library()
    return library is not None and bool(library.i3_attention_supported())


def _share_openmp() -> bool:
    """Make the symbols of torch's OpenMP runtime visible to our kernels."""
    torch = importlib.machinery.PathFinder.find_spec("torch")  # imports nothing
    folder = Path(torch.origin).parent if torch is not None and torch.origin else Path()
    for name in (folder / "lib" / "libgomp.so.1", "libgomp.so.1"):
        try:
            ctypes.CDLL(str(name), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def tensor_call(name: str, *arguments: Any) -> None:
    """Run a kernel on contiguous tensors in memory, whole numbers and floats (None: null).

    Raises MemoryError when the kernel finds no memory for its scratch space.
    """
    function = _function(name, tuple(map(type, arguments)))
    if function(*(a.data_ptr() if hasattr(a, "data_ptr") else a for a in arguments)):
        raise MemoryError("no memory for the scratch space of a layer")


@functools.cache
def _function(name: str, types: tuple[type, ...]) -> Any:
    """Return a kernel that takes arguments of these types; null or a tensor is an address."""
    library = tensor_library()
    assert library is not None
    kinds = {int: ctypes.c_int64, float: ctypes.c_float}
    addresses: Any = [kinds.get(t, ctypes.c_void_p) for t in types]
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, *addresses)
    return prototype((name, library))
