"""Memory for tensors that come and go: borders, and what keeps a piece alive."""

import gc
import weakref

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from i3lm.model import room

SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8])


@given(st.lists(st.tuples(SHAPES, TYPES), min_size=1, max_size=6))
def test_pieces_are_apart_and_begin_at_a_border(kinds):
    tensors = room.pieces(kinds)
    for number, (tensor, (shape, dtype)) in enumerate(zip(tensors, kinds, strict=True)):
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % room.BORDER == 0 or not tensor.numel()
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))


def test_a_piece_lives_as_long_as_its_last_tensor(monkeypatch):
    made = []

    class Watched(np.ndarray):
        pass

    def watched(size, dtype):
        whole = np.zeros(size, dtype).view(Watched)
        made.append(weakref.ref(whole))
        return whole

    monkeypatch.setattr(room.np, "empty", watched)
    first, last = room.pieces([((4,), torch.float32), ((4,), torch.bfloat16)])
    del first
    gc.collect()
    assert made[0]() is not None
    last.fill_(3)
    del last
    gc.collect()
    assert made[0]() is None
