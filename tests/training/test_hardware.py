"""What training does to the process that it runs in."""

import ctypes
import gc

import pytest
import torch

from i3lm.errors import UserError
from i3lm.model import whole_layer
from i3lm.training import hardware


@pytest.mark.parametrize("name", ["meta", "nonsense"])
def test_a_device_that_cannot_train_is_refused(name):
    """torch knows "meta", whose tensors have shapes and no numbers."""
    with pytest.raises(UserError, match=f"--device {name} is not to be had here; use --device cpu"):
        hardware.choose_device(name)


def test_memory_is_left_as_it_was(monkeypatch):
    with hardware.undisturbed_steps(keep=True):
        assert gc.get_freeze_count()
        whole_layer._WORK.append(object())
    assert not gc.get_freeze_count()
    assert not whole_layer._WORK


def test_a_hosts_own_freeze_stays():
    gc.freeze()
    try:
        with pytest.raises(KeyError), hardware.undisturbed_steps(keep=False):
            raise KeyError
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_only_glibc_is_asked(monkeypatch):
    monkeypatch.setattr(hardware.sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    hardware.keep_freed_memory()
    hardware.return_freed_memory()


class Timed:
    """A matrix whose product takes the time that a clock of the test gives it."""

    now = 0.0

    def __init__(self, rows, columns, dtype):
        self.shape, self.dtype = (rows, columns), dtype

    def numel(self):
        return self.shape[0] * self.shape[1]

    def __matmul__(self, other):
        seconds = 0.0005 if self.dtype is torch.bfloat16 else 0.001
        Timed.now += seconds * (5 if Timed.now < 0.02 else 1)


def test_a_spell_of_other_work_does_not_choose_the_precision(monkeypatch):
    """For the first 20 ms all is five times slower: five trials on end would fall into it."""
    monkeypatch.setattr(Timed, "now", 0.0)
    monkeypatch.setattr(hardware, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(hardware.torch, "ones", Timed)
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: Timed.now)
    half, full = hardware.products_per_second(torch.bfloat16, torch.float32)
    assert half == pytest.approx(2 * 256 * 512 * 512 / 0.0005)
    assert full == pytest.approx(half / 2)
