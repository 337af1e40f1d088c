"""`import i3lm` makes i3 known to transformers, whatever is imported and in which order."""

import os
import subprocess
import sys
import types

import pytest

from i3lm import hub

# Looking for a module is not importing it, and must not use up the registration.
CODE = """
import importlib.util, sys
import i3lm
assert "torch" not in sys.modules
for name in i3lm.hub._REGISTER:
    importlib.util.find_spec(name)
from transformers import AutoConfig
print(type(AutoConfig.from_pretrained(FOLDER)).__module__)
assert "i3lm.model.modeling_i3" not in sys.modules
from transformers import AutoModelForCausalLM, Trainer
print(type(AutoModelForCausalLM.from_pretrained(FOLDER)).__module__)
"""


def test_configurations_and_models_are_registered_apart(folder):
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", f"FOLDER = {str(folder)!r}\n{CODE}"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
    )
    expected = ["i3lm.model.configuration_i3", "i3lm.model.modeling_i3"]
    assert result.stdout.split() == expected, result.stderr


def test_there_is_one_hook(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for _ in range(3):
        hub.register_when_imported()
    assert sum(isinstance(finder, hub._AfterImport) for finder in sys.meta_path) == 1


def test_a_transformers_that_is_too_old_goes_on_with_a_warning(monkeypatch, tmp_path):
    def fail():
        raise ImportError("no GenerationMixin")

    (tmp_path / "auto_like.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hub, "_REGISTER", {"auto_like": fail})
    monkeypatch.setattr(sys, "meta_path", [hub._AfterImport(), *sys.meta_path])
    with pytest.warns(UserWarning, match=r"transformers>=5\.17"):
        module = __import__("auto_like")
    assert isinstance(module, types.ModuleType)
    assert module.value == 1
    del sys.modules["auto_like"]
