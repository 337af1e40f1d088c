"""A network's loss and all its gradients, a call of C for each layer each way: no autograd.

What torch and Python do around these calls (graphs, new gradients that are then added, tensors for
what is kept) took a fifth of a step. Here it is done once a pass, and gradients are added where
they belong. `I3Network.loss` and `backward` compute the same; training asks for `accumulate`.

Shapes: B batch, T time, M = B * T, D hidden size, N states, L layers.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from i3lm.model import fused, kernels, ops_i3, whole_head, whole_layer
from i3lm.model.dropout import Dropout
from i3lm.model.fused import Parts
from i3lm.model.layers_i3 import I3Layer, LoRPtLinear, used_rows
from i3lm.model.room import block, empty, places
from i3lm.model.stored import held, shape_of

W, A = Parts._fields.index("w"), Parts._fields.index("A")  # computed from the parameters there


def accumulate(
    network: Any, input_ids: Tensor, targets: Tensor, scale: float, dropout: Dropout | None
) -> Tensor | None:
    """Add the gradients of scale * loss to `.grad`; return scale * loss.

    input_ids and targets: (B, T) int64; products in bfloat16. None, and nothing is done, where the
    passes do not fit. After an error some gradients have been added and others have not.
    """
    if ops_i3.fused_layer is None or ops_i3.is_followed() or input_ids.shape != targets.shape:
        return None
    known = network.structure
    if known is None or not known.plain or not known.stands():
        known = network.structure = Structure(network)
    if not known.plain or not known.is_trained():
        return None
    with torch.no_grad():
        found = _Pass(network, input_ids, dropout)
        return found.run(targets, scale) if found.fits() else None


class Structure:
    """A network's modules and parameters, so that they need not be asked for at every pass.

    `plain`: whether they are such that the calls compute what the modules would.
    """

    def __init__(self, network: Any) -> None:
        modules = list(network.modules())
        self._modules = modules[1:]
        self._owners = [(m._modules, m._parameters) for m in modules]
        self._children = [(m._modules, *item) for m in modules for item in m._modules.items()]
        self._owned = [(m._parameters, *item) for m in modules for item in m._parameters.items()]
        self._counts = self._count()
        self._sizes = [(p, p.numel(), shape_of(p).numel()) for _, _, p in self._owned]
        layers = list(network.model.layers)
        self.plain = (
            type(network.lm_head) is LoRPtLinear
            and type(network.model.norm) is nn.LayerNorm
            and all(type(layer) is I3Layer and fused.is_plain(layer) for layer in layers)
            and not any(layer.sharded for layer in layers)
            and not self._are_watched()
            and len({id(p) for _, _, p in self._owned}) == len(self._owned)  # none is shared
        )
        self.layers = [fused.parameters_of(layer) for layer in layers] if self.plain else []
        shapes = [[shape_of(p) for p in layer] for layer in self.layers]
        self.plain &= all(other == shapes[0] for other in shapes)
        if self.plain:  # what is stored in few bits has no numbers to ask for its sizes
            self.like = Parts(*(torch.empty(shape, device="meta") for shape in shapes[0]))

    def _count(self) -> list[tuple[int, int]]:
        return [(len(children), len(owned)) for children, owned in self._owners]

    def stands(self) -> bool:
        """Say whether all is as it was found: nothing is replaced or new, nothing looks on."""
        same = all(d.get(name) is child for d, name, child in self._children)
        same = same and all(d.get(name) is p for d, name, p in self._owned)
        return (
            same
            and all(p.numel() == size for p, size, _ in self._sizes)
            and self._count() == self._counts
            and not self._are_watched()
        )

    def _are_watched(self) -> bool:
        hooked = nn.modules.module._has_any_global_hook()
        return hooked or any(map(fused.is_watched, self._modules))

    def is_trained(self) -> bool:
        """Say whether every parameter asks for a gradient, nobody else asks for it, and it and what
        there is of its gradient are float32 in memory."""
        return all(
            p.requires_grad
            and _is_plain(p)
            and not p._backward_hooks
            and not p._post_accumulate_grad_hooks
            and (p.grad is None or (_is_plain(p.grad) and p.grad.numel() == whole))
            for p, _, whole in self._sizes
        )


def _is_plain(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x.is_cpu and x.is_contiguous()


class _Pass:
    """One microbatch on its way through a network and back."""

    def __init__(self, network: Any, input_ids: Tensor, dropout: Dropout | None) -> None:
        self.network, self.backbone, self.dropout = network, network.model, dropout
        self.parameters = network.structure.layers
        self.ids = input_ids.flatten()
        self.shape = *input_ids.shape, self.backbone.norm.weight.numel()  # (B, T, D)
        self.eps = [layer.recurrence_norm.eps for layer in self.backbone.layers]

    def fits(self) -> bool:
        """Say whether the calls take these sizes, and prepare the way forward."""
        like = self.network.structure.like
        heads = self.backbone.layers[0].attention.num_heads
        if any(layer.attention.num_heads != heads for layer in self.backbone.layers):
            return False
        if not whole_layer.fits(like, self.shape, heads, torch.bfloat16):
            return False
        self.sizes = whole_layer.sizes_of(like, self.shape, heads)
        self.begins, self.room = places(whole_layer.kinds_kept(self.sizes).values())
        self.w = torch.sigmoid(torch.stack([p[W] for p in self.parameters]))  # (L, D)
        matrices = torch.stack([p[A] for p in self.parameters])  # (L, N, N)
        self.scales = kernels.transition_scale(matrices)[:, None, None]
        self.A = matrices * self.scales
        return True

    def run(self, targets: Tensor, scale: float) -> Tensor:
        """Go through and back; return scale * loss."""
        x, kept = self._embedded(), list[tuple[Tensor, Tensor | None]]()
        for i in range(len(self.parameters)):
            room, out = block(self.room), empty(x.shape)
            self._forward(i, x, room, out)
            kept.append((x, None if self.backbone.checkpointing == "full" else room))
            x = out if self.dropout is None else self.dropout.run(x, out, i, out)
        loss, grad = self._ends(x, targets.flatten(), scale)
        del room, out, x
        self.grad_w, self.grad_A = torch.zeros_like(self.w), torch.zeros_like(self.A)
        for i in reversed(range(len(self.parameters))):
            grad = self._backward(i, *kept.pop(), grad)
        self._recurrences()
        self._embeddings(grad)
        return loss * scale

    def _embedded(self) -> Tensor:
        table, places = self.backbone.embed_tokens.weight, self.backbone.embed_positions.weight
        x = empty((self.ids.numel(), self.shape[2]))
        torch.index_select(table, 0, self.ids, out=x)
        x.view(self.shape).add_(places[: self.shape[1]])
        return x

    def _embeddings(self, grad: Tensor) -> None:
        table, places = self.backbone.embed_tokens.weight, self.backbone.embed_positions.weight
        table_grad, places_grad = _ready([table, places])
        table_grad.index_add_(0, self.ids, grad)
        places_grad[: self.shape[1]] += grad.view(self.shape).sum(0)

    def _ends(self, x: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return the loss, and scale times the gradient of what the last layer gives, (M, D)."""
        norm, head = self.backbone.norm, self.network.lm_head
        gain, used = (norm.weight, norm.bias, norm.eps), used_rows(self.network.config)
        _, hidden, stats = kernels.norm_forward(x, None, gain, torch.float32)
        factors = head.A[:used], head.B, head.bias[:used]
        found = whole_head.head_loss(hidden, *factors, targets, True)
        assert found is not None  # what fits the layers fits the head
        loss, grads = found
        assert grads is not None
        grad_A, grad_B, grad_bias, *into = _ready(
            [head.A, head.B, head.bias, norm.weight, norm.bias]
        )
        torch._foreach_add_([grad_A[:used], grad_B, grad_bias[:used]], grads[1:], alpha=scale)
        parts = grads[0].mul_(scale), None
        grad, _, sums = kernels.norm_backward(x, stats, gain, parts, torch.zeros_like(x), None)
        torch._foreach_add_(into, list(sums[:2]))
        return loss, grad

    def _held(self, i: int) -> contextlib.AbstractContextManager[None]:
        """Hold a layer's matrices, where they are stored in few bits."""
        parameters = self.parameters[i]
        stored = any(p.numel() == 0 for p in parameters)
        return held(parameters) if stored else contextlib.nullcontext()

    def _forward(self, i: int, x: Tensor, room: Tensor, out: Tensor | None) -> None:
        """Fill `room`, and `out`, what a layer gives for x (M, D), where it is given."""
        with self._held(i):
            parts, kept = self._parts(i), self._kept(x, room)
            whole_layer.run_forward(self.sizes, parts, kept, self.eps[i], out)

    def _backward(self, i: int, x: Tensor, room: Tensor | None, grad: Tensor) -> Tensor:
        """Add the gradients of a layer; return that of its input (M, D) from its output's."""
        beside = None
        if self.dropout is not None:
            beside, grad = self.dropout.run_backward(grad, i, grad)
        with self._held(i):
            grads, add = self._gradients(i)  # which stay, so they come before what is freed again
            parts = self._parts(i)
            if room is None:
                room = block(self.room)
                kept = self._kept(x, room)
                whole_layer.run_forward(self.sizes, parts, kept, self.eps[i], None)
            kept = self._kept(x, room)
            grad = whole_layer.run_backward(self.sizes, parts, kept, self.eps[i], grads, add, grad)
        return grad if beside is None else grad.add_(beside)

    def _parts(self, i: int) -> list[int]:
        return _with(self.parameters[i], self.w[i], self.A[i])

    def _kept(self, x: Tensor, room: Tensor) -> list[int]:
        first = room.data_ptr()
        return [x.data_ptr(), *(first + begin for begin in self.begins)]

    def _gradients(self, i: int) -> tuple[list[int], bool]:
        """Return where a layer's gradients go, and whether to add to what is there."""
        parameters = self.parameters[i]
        add = any(p.grad is not None for p in parameters)
        if not add:
            fresh = whole_layer.gradients(Parts(*parameters))
            for p, grad in zip(parameters, fresh, strict=True):
                p.grad = grad
            for place in (W, A):
                fresh[place].zero_()
        return _with(_ready(parameters), self.grad_w[i], self.grad_A[i]), add

    def _recurrences(self) -> None:
        """From the gradients of w and A to those of their parameters."""
        into = _ready([p[place] for place in (W, A) for p in self.parameters])
        grads = self.grad_w * self.w * (1 - self.w), self.grad_A * self.scales
        torch._foreach_add_(into, [row for grad in grads for row in grad])


def _with(tensors: list[Tensor], w: Tensor, A_NN: Tensor) -> list[int]:
    """Return where a layer's tensors are, with w and A among them."""
    found = [t.data_ptr() for t in tensors]
    found[W], found[A] = w.data_ptr(), A_NN.data_ptr()
    return found


def _ready(parameters: list[Tensor]) -> list[Tensor]:
    """Return gradients to add to."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return [p.grad for p in parameters]  # type: ignore[misc]
