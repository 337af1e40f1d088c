"""Every command and Python block of docs/export.md and docs/evaluate.md runs."""

import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from i3lm import exporting
from i3lm.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

DOCS = Path(__file__).parents[2] / "docs"
TASK = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}]
"""


def blocks(name: str, language: str) -> list[str]:
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("name", ["export", "evaluate"])
def test_the_docs_run(name, folder, text, onnx_result, request, tmp_path, monkeypatch):
    without = "executorch" if find_spec("executorch") is None else None  # its own tests say so
    program = None if without else request.getfixturevalue("executorch_result")["folder"]

    def graphs_again(network, out, paths, weights):  # writing them takes seconds
        for path in (*paths, weights):
            shutil.copy(Path(onnx_result["folder"], path), out / path)

    def program_again(network, path):
        shutil.copy(Path(program, "model.pte"), path)

    monkeypatch.setattr(exporting, "write_graphs", graphs_again)
    monkeypatch.setattr(exporting, "write_program", program_again)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "my-model")
    shutil.copy(text, "my_text.txt")
    tasks = tmp_path / "my-tasks"
    tasks.mkdir()
    (tasks / "docs.jsonl").write_text('{"text": "Snow is white."}\n')
    (tasks / "mine.yaml").write_text(TASK.replace("DATA", str(tasks / "docs.jsonl")))
    lines = [line for block in blocks(name, "console") for line in block.splitlines()]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line.removeprefix("$ "))
        assert words[0] == "i3lm"
        if without and without in line:
            continue
        if words[1] == "export":
            words += ["--data", "my_text.txt"]
        assert main(words[1:]) == 0, line
    for block in blocks(name, "python"):
        if without and without in block:
            continue
        exec(compile(block, f"docs/{name}.md", "exec"), {})
