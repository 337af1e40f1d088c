"""Every Python block of docs/transformers.md runs, on a model trained here."""

import re
import shutil
from pathlib import Path

import pytest
from test_folder_hygiene import Hub

PAGE = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.M | re.S)


def test_each_recipe_has_a_heading_of_its_own():
    assert len(RECIPES) == PAGE.count("```python") == len({name for name, _ in RECIPES})


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", [name for name, _ in RECIPES])
def test_the_recipe_runs(name, trained, tmp_path, monkeypatch):
    code = dict(RECIPES)[name]
    for package in ("accelerate", "peft"):
        if package in code or "Trainer" in code:
            pytest.importorskip(package)
    shutil.copytree(trained, tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    hub = Hub(monkeypatch)
    exec(compile(code, name, "exec"), {})
    if name == "Publish":
        assert 'model="me/my-model"' in hub.files["README.md"].decode()


def test_a_pipeline_says_what_was_learned(trained):
    from transformers import pipeline

    chat = pipeline("text-generation", model=str(trained), do_sample=False, max_new_tokens=8)
    turns = chat([{"role": "user", "content": "Who are you?"}])[0]["generated_text"]
    assert turns[1]["content"].strip().startswith("I am i3")
