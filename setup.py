"""Build the optional C kernels; everything else about the package is in pyproject.toml.

The kernels are plain C without the Python headers, loaded through ctypes. Where no compiler exists
the build goes on without them and i3lm uses its slower Python and torch paths.
"""

import platform
import sys

from setuptools import Extension, setup

FLAGS = [] if sys.platform == "win32" else ["-O3", "-fno-math-errno", "-fno-trapping-math"]
if platform.machine() in ("x86_64", "AMD64") and FLAGS:
    FLAGS.append("-mprefer-vector-width=512")  # where AVX-512 is chosen at run time
HEADERS = (
    "normal",
    "numbers",
    "rounding",
    "rows",
    "lanes",
    "states_avx512",
    "layer",
    "lines",
    "blake2b",
    "passes",
    "products",
    "muon_tiles",
    "blocks",
    "whole",
)
# Compiled for OpenMP, not linked to a runtime: native/__init__.py brings torch's own.
OPENMP = ["-fopenmp"] if sys.platform.startswith("linux") else []

TENSOR = (
    *("tensor", "layer_forward", "layer_backward", "head", "attention", "gelu"),
    *("muon", "optim", "states", "stored", "decode"),
)

setup(
    ext_modules=[
        Extension(
            f"i3lm.native._{name}",
            [f"src/i3lm/native/{source}.c" for source in sources],
            depends=[f"src/i3lm/native/{header}.h" for header in HEADERS],
            extra_compile_args=FLAGS + flags,
            libraries=[] if sys.platform == "win32" else ["m"],
            optional=True,
        )
        for name, sources, flags in (
            ("text", ["text"], []),
            ("tensor", TENSOR, OPENMP),
        )
    ]
)
