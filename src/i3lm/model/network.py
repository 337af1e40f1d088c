"""The i3 network as training, chat and generation run it: a plain module, torch alone.

Shapes: B batch, T time, D hidden size, H heads, K head size, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i3lm.model.dropout import Dropout
from i3lm.model.layers_i3 import (
    I3Layer,
    build_backbone,
    head_logits,
    init_module,
    lorpt_map,
    used_rows,
)
from i3lm.model.ops_i3 import embedding, head_loss
from i3lm.model.stored import held, store
from i3lm.model.whole_layer import SIDE
from i3lm.model.whole_network import Structure, accumulate


class LayerState:
    """What one layer remembers between calls: keys and values, and the recurrent h and s.

    Keys and values live in buffers of `capacity` positions, made at the first use.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.recurrent: tuple[Tensor, Tensor] | None = None
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, K); return all of them so far."""
        if self._keys is None or self._values is None:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self._keys, self._values = keys.new_zeros(shape), keys.new_zeros(shape)
        begin, self.length = self.length, self.length + keys.shape[2]
        self._keys[:, :, begin : self.length] = keys
        self._values[:, :, begin : self.length] = values
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def buffers(self, streams: int, config: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return h, s, and the whole buffers of keys and values, all contiguous; ours to change.

        At first they are made, of zeros, float32 in memory, for so many texts at once. ValueError
        where they hold another number of texts.
        """
        if self.recurrent is None or self._keys is None or self._values is None:
            heads, width = config.num_attention_heads, config.hidden_size
            kept = streams, heads, self.capacity, width // heads
            shapes = (streams, width), (streams, config.state_size), kept, kept
            h, s, self._keys, self._values = (
                torch.zeros(shape, dtype=torch.float32, device="cpu") for shape in shapes
            )
            self.recurrent = h, s
        if self._keys.shape[0] != streams:
            raise ValueError(f"the states hold {self._keys.shape[0]} texts, not {streams}")
        h, s = self.recurrent = tuple(t.contiguous() for t in self.recurrent)  # type: ignore[assignment]
        return h, s, self._keys, self._values


class I3Backbone(nn.Module):
    """Token and position embeddings, the layers, the final norm."""

    checkpointing = "none"
    embed_tokens: nn.Embedding
    embed_positions: nn.Embedding
    layers: nn.ModuleList
    norm: nn.LayerNorm

    def __init__(self, config: Any) -> None:
        super().__init__()
        build_backbone(self, config)

    def set_gradient_checkpointing(self, mode: str) -> None:
        """Choose what training keeps of each layer: see `I3Layer`."""
        self.checkpointing = mode
        for layer in self.layers:
            layer.checkpointing = mode  # type: ignore[assignment]

    def compile_layers(self, **options: Any) -> None:
        """Let torch.compile fuse what a layer does when it trains; `options` are for it."""
        for layer in self.layers:
            assert isinstance(layer, I3Layer)
            layer.training_pass = torch.compile(layer._branches, **options)

    def store(self, bits: int, seed: int, master: bool = False) -> None:
        """Keep the layers' matrices in 4 or 8 bits from now on (`i3lm.model.stored`)."""
        store(self.layers, bits, seed, master)
        for layer in self.layers:
            layer.held = held  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        states: list[LayerState] | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Return hidden states (B, T, D) of input_ids (B, T), going on from `states`."""
        past = states[0].length if states else 0
        positions = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        x = embedding(self.embed_tokens.weight, input_ids)
        x = x + embedding(self.embed_positions.weight, positions)
        mask = None
        if past and input_ids.shape[1] > 1:  # a later stretch of a prompt
            total = past + input_ids.shape[1]
            mask = torch.ones(total, total, dtype=torch.bool, device=input_ids.device).tril()[past:]
        for i, layer in enumerate(self.layers):
            with layer._hold():  # type: ignore[operator]
                y = layer(x, mask, state=states[i] if states else None)
            x = dropout(x, y, i) if dropout else y
        return self.norm(x)


class I3Network(nn.Module):
    """The whole language model, with the parameter names of `I3ForCausalLM`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.structure: Structure | None = None  # of `accumulate`
        self.model = I3Backbone(config)
        self.lm_head = lorpt_map(config, config.hidden_size, config.vocab_size)
        self.apply(lambda module: init_module(module, config))

    def forward(
        self,
        input_ids: Tensor,
        states: list[LayerState] | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return logits (B, T, V), or (B, 1, V) of the last position, for input_ids (B, T)."""
        hidden = self.model(input_ids, states)
        return head_logits(self.lm_head, hidden[:, -1:] if last_only else hidden, self.config)

    def loss(self, input_ids: Tensor, targets: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Return the cross-entropy in nats, summed over all targets (B, S) int64.

        They are of the last S <= T positions of input_ids (B, T).
        """
        steps = input_ids.shape[1]
        if torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled():
            input_ids = self._in_blocks(input_ids)
        hidden = self.model(input_ids, dropout=dropout)
        if targets.shape[1] < hidden.shape[1]:
            hidden = hidden[:, steps - targets.shape[1] : steps]
        return self.head_loss(hidden, targets)

    def _in_blocks(self, input_ids: Tensor) -> Tensor:
        """Return the tokens and zeros after them, which they do not see, as compiled calls want it.

        What is left of a text is seldom a multiple of SIDE; in pieces a layer takes more memory.
        """
        short = -input_ids.shape[1] % SIDE
        if short == 0 or input_ids.shape[1] + short > self.config.max_position_embeddings:
            return input_ids
        return torch.cat([input_ids, input_ids.new_zeros(input_ids.shape[0], short)], dim=1)

    def accumulate(
        self,
        input_ids: Tensor,
        targets: Tensor,
        scale: float,
        dropout: Dropout | None = None,
        bf16: bool = False,
    ) -> Tensor:
        """Add the gradients of scale * loss to `.grad`; return scale * loss, as of `loss`.

        bf16: products run in bfloat16.
        """
        ours = type(self) is I3Network and type(self.model) is I3Backbone
        if bf16 and ours:
            found = accumulate(self, input_ids, targets, scale, dropout)
            if found is not None:
                return found
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=bf16):
            loss = self.loss(input_ids, targets, dropout) * scale
        loss.backward()
        return loss.detach()

    def head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy in nats, summed, of hidden (B, T, D) against targets (B, T)."""
        head, used = self.lm_head, used_rows(self.config)
        if isinstance(head, nn.Linear):  # merged: of finished models only
            logits = F.linear(hidden, head.weight[:used], head.bias[:used]).float()
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        assert head.bias is not None
        factors = head.A[:used], head.B, head.bias[:used]
        return head_loss(hidden.flatten(0, 1), *factors, targets.flatten())

    def new_states(self) -> list[LayerState]:
        """Return empty decoding states, one a layer."""
        positions = self.config.max_position_embeddings
        return [LayerState(positions) for _ in self.model.layers]
