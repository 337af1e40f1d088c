"""Build the optional C kernels; everything else about the package is in pyproject.toml.

The kernels are plain C without the Python headers, loaded through ctypes. Where no compiler exists
the build goes on without them and i3lm uses its slower Python and torch paths.
"""

import sys

from setuptools import Extension, setup

flags = [] if sys.platform == "win32" else ["-O3", "-fno-math-errno", "-fno-trapping-math"]

setup(
    ext_modules=[
        Extension(
            "i3lm.native._text",
            ["src/i3lm/native/text.c"],
            extra_compile_args=flags,
            optional=True,
        ),
    ]
)
