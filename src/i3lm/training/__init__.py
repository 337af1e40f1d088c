"""Pretraining: configuration, the one training loop, checkpoints, progress."""
