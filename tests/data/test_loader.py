"""The order of training samples: complete, shuffled, and a function of its number alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i3lm.data.loader import Loader


def stream(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.uint16)


@given(
    context=st.integers(1, 9),
    length=st.integers(2, 400),
    seed=st.integers(-(2**63), 2**64),
    epoch=st.integers(0, 1_000),
)
def test_an_epoch_takes_every_window_once(context, length, seed, epoch):
    length = max(length, context + 1)
    loader = Loader(stream(length), context, 4, seed)
    per_epoch = loader.windows_per_epoch
    assert per_epoch == (length - 1) // context
    starts = loader.starts(np.arange(epoch * per_epoch, (epoch + 1) * per_epoch))
    inputs = (starts[:, None] + np.arange(context)) % length
    # Side by side on the ring: no token is an input twice, and what is left out is one gap.
    assert len(np.unique(inputs)) == per_epoch * context
    missing = np.setdiff1d(np.arange(length), inputs)
    assert 0 < len(missing) == length - per_epoch * context <= context
    gaps = np.diff(np.append(missing, missing[0] + length))
    assert np.count_nonzero(gaps != 1) <= 1


@pytest.mark.parametrize("length", [300, 257, 5_000])
def test_targets_are_inputs_moved_by_one(length):
    tokens = np.random.default_rng(0).integers(0, 60_000, length).astype(np.uint16)
    loader = Loader(tokens, 64, 3, seed=1)
    ring = np.concatenate([tokens, tokens]).astype(np.int64)
    for step in range(40):
        inputs, targets = loader.batch(step)
        assert inputs.shape == targets.shape == (3, 64)
        assert inputs.dtype == targets.dtype == np.int64
        starts = loader.starts(np.arange(step * 3, step * 3 + 3))
        for row, start in enumerate(starts):
            assert np.array_equal(inputs[row], ring[start : start + 64])
            assert np.array_equal(targets[row], ring[start + 1 : start + 65])


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 2**32))
def test_any_sample_alone_equals_the_same_sample_in_a_batch(first, count, seed):
    loader = Loader(stream(1_000), 16, 8, seed)
    inputs, targets = Loader(stream(1_000), 16, 3, seed).windows(first, count)
    for k in range(count):
        one = loader.windows(first + k, 1)
        assert np.array_equal(one[0][0], inputs[k])
        assert np.array_equal(one[1][0], targets[k])


def test_batches_are_consecutive_samples():
    loader = Loader(stream(5_000), 32, 4, seed=9)
    together, _ = loader.windows(0, 40)
    apart = np.concatenate([loader.batch(step)[0] for step in reversed(range(10))][::-1])
    assert np.array_equal(together, apart)
    assert np.array_equal(loader.batch(7)[0], Loader(stream(5_000), 32, 4, seed=9).batch(7)[0])


def test_order_is_pinned():
    """A run that goes on with another version must see the same samples."""
    starts = Loader(stream(10_007), 16, 8, seed=3).starts(np.array([0, 1, 624, 625, 10**15]))
    assert starts.tolist() == [6290, 7906, 3202, 2107, 9526]


def test_seeds_and_epochs_differ():
    loader = Loader(stream(4_001), 16, 8, seed=0)
    one, two = loader.starts(np.arange(500)).reshape(2, 250)
    other = Loader(stream(4_001), 16, 8, seed=1).starts(np.arange(250))
    for a, b in ((one, two), (one, other)):
        steps = [((x - x[0]) % 4_001) for x in (a, b)]
        assert np.mean(steps[0] == steps[1]) < 0.1
        assert len(np.intersect1d(a, b)) < 125  # the windows too begin elsewhere


def test_coverage_is_uniform():
    """Over many epochs every token is an input equally often, every place in the order too."""
    length, context, epochs = 211, 10, 2_000
    loader = Loader(stream(length), context, 1, seed=5)
    per_epoch = loader.windows_per_epoch
    starts = loader.starts(np.arange(epochs * per_epoch))
    counts = np.bincount(starts, minlength=length)
    expected = len(starts) / length
    chi2 = float(np.sum((counts - expected) ** 2) / expected)
    assert chi2 < 300  # 210 degrees of freedom: 300 is 4 standard deviations
    # Where the first window of an epoch lies relative to the second: all differences alike.
    order = starts.reshape(epochs, per_epoch)
    windows = ((order[:, 1] - order[:, 0]) % length) // context
    spread = np.bincount(windows, minlength=per_epoch + 1)
    assert spread[1:per_epoch].min() > 0.6 * epochs / per_epoch
    # Neighbours in the text are no neighbours in the order.
    assert np.mean((order[:, 1:] - order[:, :-1]) % length == context) < 2 / per_epoch


def test_memory_map_pages_are_given_back(tmp_path):
    tokens = np.arange(2_000_000, dtype=np.uint16)
    tokens.tofile(tmp_path / "train.bin")
    mapped = np.memmap(tmp_path / "train.bin", dtype="<u2", mode="r")
    loader, plain = Loader(mapped, 128, 16, seed=0), Loader(tokens, 128, 16, seed=0)
    for step in range(300):
        assert np.array_equal(loader.batch(step)[0], plain.batch(step)[0])
    try:
        lines = Path("/proc/self/smaps").read_text().split("train.bin")[1].splitlines()
    except FileNotFoundError:
        pytest.skip("needs /proc")
    resident = next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    assert resident < 1_000  # kB, of 4 MB


@pytest.mark.parametrize(
    ("tokens", "context", "batch"),
    [(stream(16), 16, 1), (stream(100), 0, 1), (stream(100), 4, 0), (np.zeros((4, 40)), 4, 1)],
)
def test_arguments_that_do_not_fit(tokens, context, batch):
    with pytest.raises(ValueError, match=r"needed|at least"):
        Loader(tokens, context, batch, seed=0)


@given(
    length=st.integers(50, 400),
    seed=st.integers(0, 99),
    gap=st.integers(2, 60),
    told=st.integers(1, 3),
)
def test_windows_begin_at_conversations_where_one_is_near(length, seed, gap, told):
    tokens = np.full(length, 9, np.uint16)
    tokens[::gap] = 2
    tokens[1 :: gap * told] = 4  # of so many documents one is a conversation
    plain, moved = (Loader(tokens, 20, 4, seed, opening) for opening in (None, (2, 4)))
    samples = np.arange(40)
    for before, after in zip(plain.starts(samples), moved.starts(samples), strict=True):
        ahead = tokens[(before + np.arange(12)) % length]
        near = np.flatnonzero((ahead[:-1] == 2) & (ahead[1:] == 4))
        assert after == (before + (near[0] if len(near) else 0)) % length
    assert np.array_equal(moved.batch(3)[0][:, 0], tokens[moved.starts(np.arange(12, 16))])
