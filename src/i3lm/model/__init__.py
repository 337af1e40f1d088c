"""The i3 model. The files `*_i3.py` travel with a model folder: flat, torch and transformers only."""

from .kernels import install

COMPILED = install()
