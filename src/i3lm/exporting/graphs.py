"""The two graphs of an export: a prompt at once (prefill), then a token at a time (decode).

Shapes: B batch, T length, P positions held, L layers, H heads, K head size, D hidden size,
N states, V vocabulary. The parts of the network do the computing; only the recurrence is written
anew, because a scan whose rounds depend on T would be fixed at the length of the example.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3lm.errors import UserError
from i3lm.exported import INPUTS, ONNX_INSTALL, STATES, quiet
from i3lm.model.layers_i3 import head_logits
from i3lm.model.network import I3Network
from i3lm.model.ops_i3 import stable_transition

OPSET = 18
SHARED = 1024  # bytes from which on a tensor lies in the file that both graphs share
ALIGNMENT = 64


class _Held:
    """A layer's keys and values: those given, and what the layer appends."""

    recurrent = None

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        held = self.keys is not None and self.values is not None
        self.keys = torch.cat((self.keys, keys), 2) if held else keys  # type: ignore[arg-type]
        self.values = torch.cat((self.values, values), 2) if held else values  # type: ignore[arg-type]
        return self.keys, self.values


class _Graph(nn.Module):
    """What both graphs share."""

    def __init__(self, network: I3Network) -> None:
        super().__init__()
        self.network = network
        window = network.config.max_position_embeddings
        self.rounds = max(1, (window - 1).bit_length())  # 2^rounds >= window
        mixes: list[Any] = [layer.recurrence for layer in network.model.layers]
        # Constants of the graph: nothing is left of the bound on the spectral radius.
        self.register_buffer("w", torch.stack([torch.sigmoid(m.w_mix) for m in mixes]))
        self.register_buffer("A", torch.stack([stable_transition(m.A) for m in mixes]))

    def layer(
        self, i: int, x: Tensor, mask: Tensor, padding: Tensor | None, held: _Held, past: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, h and s after layer `i`; `past` are its h and s before, None at the start."""
        layer: Any = self.network.model.layers[i]
        mixed = layer.recurrence_norm(x)
        if padding is not None:
            mixed = mixed * padding
        mix, w, A = layer.recurrence, self.w[i], self.A[i]  # type: ignore[index]
        u = F.linear(mixed, mix.B)
        if past is None:
            h, s = self.scan((1 - w) * mixed, w), self.scan(u, A)
        else:
            h = (w * past[0] + (1 - w) * mixed[:, 0])[:, None]
            s = (F.linear(past[1], A) + u[:, 0])[:, None]
        x = x + mix.D * h + F.linear(s, mix.C)
        x = x + layer.attention(layer.attention_norm(x), mask, held)
        return x + layer.ffn(layer.ffn_norm(x)), h[:, -1], s[:, -1]

    def scan(self, x: Tensor, power: Tensor) -> Tensor:
        """Return all y_t = power y_(t-1) + x_t, from 0, in as many rounds as the window needs.

        The same doubling scan as in training (Hillis and Steele, 1986); later rounds add zeros.
        """
        span = 1
        for _ in range(self.rounds):
            before = F.pad(x, (0, 0, span, 0))[:, : x.shape[1]]
            if power.ndim == 1:
                x, power = x + before * power, power * power
            else:
                x, power = x + F.linear(before, power), power @ power
            span *= 2
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (B, T, V)."""
        network = self.network
        return head_logits(network.lm_head, network.model.norm(x), network.config)


class Prefill(_Graph):
    """Ids and mask (B, T) to logits (B, T, V) and the state after the last position."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B, T, V), keys and values (L, B, H, T, K), h (L, B, D), s (L, B, N).

        attention_mask: 1 for tokens, 0 for padding, which must stand on the left.
        """
        model = self.network.model
        length = input_ids.shape[1]
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        x = model.embed_tokens(input_ids) + model.embed_positions(positions)
        steps = torch.arange(length, device=x.device)
        seen = (steps[:, None] >= steps)[None] & (attention_mask[:, None] > 0)
        # A padded row sees itself: a softmax over nothing would be no number.
        mask = (seen | (steps[:, None] == steps)[None])[:, None]
        padding = attention_mask[:, :, None].to(x.dtype)
        parts = []
        for i in range(len(model.layers)):
            held = _Held()
            x, h, s = self.layer(i, x, mask, padding, held, None)
            parts.append((held.keys, held.values, h, s))
        return self.logits(x), *(torch.stack(part) for part in zip(*parts, strict=True))


class Decode(_Graph):
    """One more token: ids (B, 1) and the state to logits (B, 1, V) and the state after it."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        keys: Tensor,
        values: Tensor,
        h: Tensor,
        s: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return what `Prefill` does; attention_mask is (B, P + 1), the new token included."""
        model = self.network.model
        positions = attention_mask.sum(1, keepdim=True) - 1
        x = model.embed_tokens(input_ids) + model.embed_positions(positions)
        mask = (attention_mask > 0)[:, None, None]
        parts = []
        for i in range(len(model.layers)):
            held = _Held(keys[i], values[i])
            x, h_new, s_new = self.layer(i, x, mask, None, held, (h[i], s[i]))
            parts.append((held.keys, held.values, h_new, s_new))
        return self.logits(x), *(torch.stack(part) for part in zip(*parts, strict=True))


def graphs(
    network: I3Network, batch: Any, most: int | None = None
) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...], tuple[dict[int, Any], ...]]]:
    """Yield name, module, example inputs and their free sizes of both graphs, for `torch.export`.

    batch: the free number of texts, or None for one text. most: tokens of a graph at most.
    """
    c = network.config
    length = torch.export.Dim("length", min=1, max=most)
    past = torch.export.Dim("past", min=1, max=most and most - 1)
    rows, size = 1 if batch is None else 2, 5 if most is None else min(5, most - 1)
    ids = torch.full((rows, size), 3)
    heads = c.num_attention_heads
    cache = torch.zeros(c.num_hidden_layers, rows, heads, size, c.hidden_size // heads)
    h, s = (torch.zeros(c.num_hidden_layers, rows, n) for n in (c.hidden_size, c.state_size))

    row, held, state = {0: batch, 1: length}, {1: batch, 3: past}, {1: batch}
    yield "prefill", Prefill(network).eval(), (ids, torch.ones_like(ids)), (row, row)
    # Two tensors: torch takes the same object, given twice, for one input.
    example = (ids[:, :1], torch.ones(rows, size + 1).long(), cache, cache.clone(), h, s)
    shapes = ({0: batch}, {0: batch, 1: past + 1}, held, held, state, state)
    yield "decode", Decode(network).eval(), example, shapes


def write_graphs(network: I3Network, folder: Path, paths: tuple[str, str], weights: str) -> None:
    """Write the two graphs for ONNX, and the file of weights that they share, into `folder`.

    UserError where the packages are missing.
    """
    try:
        with quiet():  # the exporter tells of its own steps, and of its own age
            _write(network, folder, paths, weights)
    except ImportError as error:
        raise UserError(f"a package is missing ({error}): {ONNX_INSTALL}") from None


def _write(network: I3Network, folder: Path, paths: tuple[str, str], weights: str) -> None:
    import onnx
    import onnxscript  # noqa: F401  (torch exports with it)

    places: dict[bytes, tuple[int, int]] = {}
    both = graphs(network, torch.export.Dim("batch"))
    with open(folder / weights, "wb") as file:
        for path, (_, module, example, shapes) in zip(paths, both, strict=True):
            proto = _exported(module, example, shapes)
            for tensor in proto.graph.initializer:
                _share(tensor, file, places, weights)
            proto.producer_name = "i3lm"
            (folder / path).write_bytes(proto.SerializeToString())
            onnx.checker.check_model(str(folder / path))


def _exported(module: nn.Module, example: tuple, shapes: tuple) -> Any:
    names = [*INPUTS, *STATES][: len(example)]
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["logits", *(f"new_{name}" for name in STATES)],
            dynamic_shapes=shapes,
            external_data=False,
        )
    assert program is not None
    return program.model_proto


def _share(tensor: Any, file: Any, places: dict[bytes, tuple[int, int]], name: str) -> None:
    """Move a tensor's bytes into the common file, where equal bytes stand once."""
    import onnx
    from onnx.external_data_helper import set_external_data

    if not tensor.HasField("raw_data"):  # small ones may hold their numbers otherwise
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
        )
    data = tensor.raw_data
    if len(data) < SHARED:
        return
    if data not in places:
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        places[data] = (file.tell(), len(data))
        file.write(data)
    offset, length = places[data]
    set_external_data(tensor, name, offset=offset, length=length)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
