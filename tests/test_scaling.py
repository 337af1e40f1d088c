"""The cost model of docs/scaling.md: formulas beside what they stand for, tables as shown."""

import re
from pathlib import Path

import pytest
import torch
from benchmarks import scaling
from benchmarks.gpu import require_gpu
from torch.utils.flop_counter import FlopCounterMode

from i3lm.errors import UserError
from i3lm.model import ops_i3
from i3lm.model.network import I3Network
from i3lm.presets import Architecture

PAGE = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_a_ring_sends_what_the_formula_says():
    """Pass the pieces of a vector round, first adding up, then handing out."""
    for ranks in (1, 2, 3, 4, 7):
        pieces = [[float(rank * 10 + i) for i in range(ranks)] for rank in range(ranks)]
        expected = [sum(piece[i] for piece in pieces) for i in range(ranks)]
        sent = 0
        for add in (True, False):
            for turn in range(ranks - 1):
                moved = []
                for rank in range(ranks):
                    i = (rank - turn + (0 if add else 1)) % ranks
                    moved.append(((rank + 1) % ranks, i, pieces[rank][i]))
                    sent += 4 * 5  # a piece of 5 float32 numbers
                for to, i, value in moved:
                    pieces[to][i] = pieces[to][i] + value if add else value
        assert all(piece == pytest.approx(expected) for piece in pieces)
        assert sent / ranks == scaling.ring_bytes(5 * ranks, 4, ranks)


def test_flops_are_those_that_torch_counts(monkeypatch):
    """All products of a step but the recurrence's own, which runs in scans."""
    for hook in ("recurrence_forward_kernel", "recurrence_backward_kernel", "cross_entropy_kernel"):
        monkeypatch.setattr(ops_i3, hook, None)
    monkeypatch.setattr(ops_i3, "fused_layer", None)
    monkeypatch.setattr(ops_i3, "head_kernel", None)
    monkeypatch.setattr(ops_i3, "recurrence", lambda x, u, w, A, D, h, s: (x * D, u, h, s))
    sizes = Architecture(300, 64, 2, 2, 256, 64, rank=16, state_size=1)
    ids = torch.zeros(2, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        I3Network(sizes).loss(ids, ids).backward()
    # Attention in one block computes all keys, also those that the mask hides, and again backward.
    blind = 12 * sizes.num_hidden_layers * 64 * (1.5 * 64 - 65 / 2)
    flops = counter.get_total_flops() / ids.numel()
    assert flops == pytest.approx(sizes.flops_per_token(64) + blind, rel=0.12)


def test_the_page_shows_what_the_code_prints():
    for columns, rows in ((scaling.MODELS, scaling.models()), (scaling.COSTS, scaling.plans()),
                          (scaling.CHECKS, scaling.check())):  # fmt: skip
        if columns is scaling.CHECKS:  # its figures change with the results; its rows do not
            assert all(f"| {row[0]} |" in PAGE for row in rows)
        else:
            assert scaling.markdown(columns, rows) in PAGE
    assert not re.search(r"\bTODO\b", PAGE)


def test_sharding_and_failures_point_the_right_way():
    sizes = scaling.SIZES["1b"]
    whole, part = (scaling.rank_bytes(sizes, ranks, 2048) for ranks in (1, 64))
    assert whole > 12e9 > 4e9 > part
    assert scaling.checkpoint_interval(10, 1000) < scaling.checkpoint_interval(10, 10)
    assert scaling.sharded_bytes(100, 4, 4) == 1.5 * scaling.ring_bytes(100, 4, 4)


def test_the_gpu_benchmark_refuses_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UserError, match="needs a CUDA device"):
        require_gpu()
