"""The cache of an i3 layer in transformers: keys and values, and a recurrent state.

Keys and values can be cut back; the recurrent state holds the past in sum. Where a cache is asked
to record (`activate_past_recording`), it keeps the state after each position and can go back.
"""

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
)


class I3CacheLayer(LinearAttentionAndFullAttentionLayer):
    """One layer's growing keys and values (B, H, T, K) and its recurrent state (B, D + N).

    `past` (B, T', D + N) are the states after the newest T' positions, where they are recorded.
    """

    past: Tensor | None = None

    @property
    def is_croppable(self) -> bool:
        """Positions can be taken back, once recording is on."""
        return True

    def activate_past_recording(self) -> None:
        """Keep the state after every position from now on."""
        super().activate_past_recording()
        state = self.recurrent_states[0]
        if self.past is None and state is not None:
            self.past = state[:, None].clone()

    def update_recurrent_state(self, recurrent_states: Tensor, *args: int, **kwargs: int) -> Tensor:
        """Take the state after the newest position."""
        if not self.record_past:
            self.past = None
        return super().update_recurrent_state(recurrent_states, *args, **kwargs)

    def record(self, h: Tensor, s: Tensor) -> None:
        """Keep the states h (B, T, D), s (B, T, N) after positions that were just read."""
        states = torch.cat((h, s), dim=-1)
        self.past = states if self.past is None else torch.cat([self.past, states], dim=1)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back so many positions, as a negative number.

        Raises ValueError for a positive one, RuntimeError where they were not recorded.
        """
        if tokens_to_remove > 0:
            raise ValueError("give the positions to take back as a negative number")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        if -tokens_to_remove >= self.get_seq_length():
            self.reset()
            return
        if self.past is None or self.past.shape[1] <= -tokens_to_remove:
            raise RuntimeError(
                "this cache did not record what is to be taken back; call "
                "cache.activate_past_recording() before the tokens are read"
            )
        self.past = self.past[:, :tokens_to_remove]
        self.recurrent_states[0] = self.past[:, -1].clone()
        DynamicLayer.crop(self, tokens_to_remove)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.past = None
        self.keys = self.values = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows `beam_idx`."""
        super().reorder_cache(beam_idx)
        if self.past is not None:
            self.past = self.past.index_select(0, beam_idx.to(self.past.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._states(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)
        self._states(lambda state: state[indices])

    def _states(self, change) -> None:  # type: ignore[no-untyped-def]
        if self.recurrent_states[0] is not None:
            self.recurrent_states[0] = change(self.recurrent_states[0])
        if self.past is not None:
            self.past = change(self.past)


def adopt(cache: Cache, layers: int) -> None:
    """Give a fresh dynamic cache, made with or without the config, layers that fit i3."""
    if not isinstance(cache, DynamicCache):
        return
    if not cache.layers:
        cache.layers = [I3CacheLayer() for _ in range(layers)]
        cache.layer_class_to_replicate = None
    for index, layer in enumerate(cache.layers):
        if type(layer) is LinearAttentionAndFullAttentionLayer and not layer.is_initialized:
            cache.layers[index] = I3CacheLayer()
            cache.layers[index].record_past = layer.record_past


class CachedState:
    """One layer's part of a cache, as the `State` that `I3Layer` goes on from."""

    def __init__(self, cache: Cache, index: int, hidden_size: int) -> None:
        self.cache, self.index, self.hidden_size = cache, index, hidden_size
        layer = cache.layers[index]
        recording = isinstance(layer, I3CacheLayer) and layer.record_past
        self.record = layer.record if recording else None

    @property
    def recurrent(self) -> tuple[Tensor, Tensor] | None:
        """The state h (B, D), s (B, N) after the newest position; None before the first."""
        joined = self.cache.layers[self.index].recurrent_states[0]
        if joined is None:
            return None
        return joined[:, : self.hidden_size], joined[:, self.hidden_size :]

    @recurrent.setter
    def recurrent(self, state: tuple[Tensor, Tensor]) -> None:
        self.cache.update_recurrent_state(torch.cat(state, dim=-1), self.index)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, K); return all of them so far."""
        return self.cache.update(keys, values, self.index)
