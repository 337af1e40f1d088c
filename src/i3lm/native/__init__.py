"""Finds the compiled kernels, if the installation could build them."""

import ctypes
import functools
import importlib.machinery
from pathlib import Path


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
