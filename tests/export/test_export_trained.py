"""onnxruntime and lm-evaluation-harness on a model that was trained in this run of the tests."""

import json

import pytest

import i3lm
from i3lm import exported
from i3lm.__main__ import main
from i3lm.exporting import export

QUESTION = [{"role": "user", "content": "Who are you?"}]


def test_onnxruntime_says_what_was_learned(trained, tmp_path):
    result = export(trained, tmp_path / "onnx", "onnx", measure=False)
    assert result["check"]["tokens"] > 48
    settings = {"temperature": 0, "max_new_tokens": 8}
    reply = exported.generate(result["folder"], QUESTION, **settings).strip()
    assert reply.startswith("I am i3")
    assert reply == i3lm.chat(trained, QUESTION, **settings)


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_lm_eval_measures_it(trained, capsys):
    tasks = ["--tasks", "i3lm_questions_choice,i3lm_bits_per_byte", "--limit", "4", "--json"]
    assert main(["eval", str(trained), *tasks]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert 0 <= rows["i3lm_questions_choice"]["acc"] <= 1
    assert 0 < rows["i3lm_bits_per_byte"]["bits_per_byte"] < 12
