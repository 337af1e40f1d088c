"""Gradients that stay where they are from step to step, for steps of several microbatches."""

import torch
from torch import nn

from i3lm.model.stored import held, shape_of

BORDER = 16  # numbers, a cache line: where a gradient may begin


class GradientRoom:
    """The gradients of all parameters in one piece of memory, made before the first activation.

    Gradients that come and go leave holes among activations, which the heap keeps: 20 to 70 MB for
    i3-12m. A step of one microbatch has no use for the room: autograd would add to zeros what it
    can hand over.
    """

    def __init__(self, network: nn.Module) -> None:
        parameters = list(network.parameters())
        sizes = [-(-shape_of(p).numel() // BORDER) * BORDER for p in parameters]
        self._whole = torch.zeros(sum(sizes))
        for p, room in zip(parameters, self._whole.split(sizes), strict=True):
            shape = shape_of(p)
            with held([p]):  # a stored one is empty else, and takes no gradient of another shape
                p.grad = room[: shape.numel()].view(shape)

    def clear(self) -> None:
        """Set all gradients to zero."""
        self._whole.zero_()
