"""i3lm: pretrain i3, a small conversational language model, on the computer that you have."""

__version__ = "0.1.0"
