"""What training does to the process that it runs in."""

import ctypes
import gc

import pytest

from i3lm.model import whole_layer
from i3lm.training import hardware


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
