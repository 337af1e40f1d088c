"""The i3 model. `*_i3.py` travel with a model folder: flat, torch and transformers only."""

from i3lm.model.fused import install

COMPILED = install()
