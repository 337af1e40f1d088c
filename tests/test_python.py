"""The Python API: the examples of docs/python.md run, and a user's typed script is well typed."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """\
import i3lm
from i3lm.training.events import StepRow


class Print(i3lm.Listener):
    def on_step(self, row: StepRow) -> None:
        loss: float = row["loss"]
        print(row["step"], loss)


result = i3lm.train(data="a.txt", time="1m", memory="400MB", eval_every=10, listener=Print())
steps: int = result.figures["steps"]
reply: str = result.load().chat("Hello!")
again = i3lm.resume(result.folder, time="2m")
talk: i3lm.Chat = i3lm.load("run").conversation()
"""

# The libraries below i3lm take half a minute to read and say nothing about its own types.
SETTINGS = """\
[mypy]
strict = True
follow_imports = silent
[mypy-torch.*,numpy.*,transformers.*,tokenizers.*,safetensors.*,rich.*]
follow_imports = skip
ignore_missing_imports = True
"""


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, on_threads):
    monkeypatch.chdir(tmp_path)
    line = "[INST] Hi, I am Anna number {0}. [/INST] Hello Anna! What do you like, number {0}?\n"
    Path("my_text.txt").write_text("".join(line.format(i) for i in range(200)))
    on_threads(1)  # products of this size are slower on several
    found = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False)
    assert found.attempted > 10
    assert found.failed == 0


def test_settings_are_those_of_the_configuration():
    import dataclasses

    from i3lm.training.config import TrainConfig
    from i3lm.training.settings import Settings, configure, reconfigure

    assert set(Settings.__annotations__) == {f.name for f in dataclasses.fields(TrainConfig)}
    from i3lm.errors import UserError

    with pytest.raises(UserError, match="did you mean memory"):
        configure(memroy="1GB")
    with pytest.raises(UserError, match="--out"):
        reconfigure("run", out="other")
    assert configure(time="1h30m", memory="2GB", data=Path("a")).time == 5400


def test_a_users_script_is_well_typed(tmp_path):
    pytest.importorskip("mypy", reason="needs mypy")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    settings = tmp_path / "mypy.ini"
    settings.write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings)]
    command += ["--cache-dir", str(tmp_path / "cache")]
    good = subprocess.run([*command, str(path)], cwd=ROOT / "src", capture_output=True, text=True)
    assert good.returncode == 0, good.stdout + good.stderr
    path.write_text(SCRIPT.replace('time="1m"', 'tiem="1m"'))
    bad = subprocess.run([*command, str(path)], cwd=ROOT / "src", capture_output=True, text=True)
    assert 'Unexpected keyword argument "tiem"' in bad.stdout
