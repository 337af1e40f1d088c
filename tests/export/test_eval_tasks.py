"""Tasks through the real lm-evaluation-harness, offline."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager

import i3lm
from i3lm.__main__ import main
from i3lm.data.conversations import held_out
from i3lm.data.documents import line_form
from i3lm.errors import UserError
from i3lm.scoring import score_tokens
from i3lm.tasks import documents, harness
from i3lm.tasks.harness import I3LM, evaluate_tasks
from i3lm.tasks.minimal_pairs import PHENOMENA, minimal_pairs
from i3lm.tokenizer import BOS, END_INST, INST

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports


@pytest.fixture(scope="module")
def lm(loaded):
    return I3LM(loaded, batch_size=4)


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def naive(loaded, head: list[int], tail: list[int]) -> float:
    with torch.inference_mode():
        logits = loaded.network(torch.tensor([[*head, *tail][:-1]]))[0].double()
    scores = logits.log_softmax(-1)[len(head) - 1 :]
    return float(sum(scores[i, token] for i, token in enumerate(tail)))


def test_context_and_continuation_are_encoded_apart(lm, loaded):
    pairs = [("Where is th", "e key?"), ("", "The cat."), ("A b", "all"), ("I like", " tea"),
             ("[INST] Hi! [/INST]", "Hello!"), ("I typed [INST] hi", " x")]  # fmt: skip
    found = lm.loglikelihood(requests(*pairs))
    encode = loaded.tokenizer.encode
    for (context, continuation), (total, _) in zip(pairs, found, strict=True):
        head = [BOS, *map(int, encode(context))]
        if context.startswith("[INST]"):
            head = [BOS, INST, *map(int, encode("Hi!")), END_INST]
        wanted = naive(loaded, head, [int(i) for i in encode(continuation)])
        assert total == pytest.approx(wanted, rel=1e-4)
    joined = [int(i) for i in encode("Where is the key?")]
    apart = [*map(int, encode("Where is th")), *map(int, encode("e key?"))]
    assert joined != apart  # the trap is there


def test_what_is_longer_than_the_window_keeps_the_newest(lm, loaded):
    encode = loaded.tokenizer.encode
    long, tail = "many words go here " * 20, [int(i) for i in encode("yes.")]
    (total, _), (whole, _) = lm.loglikelihood(requests((long, "yes."), ("", long)))
    head = [int(i) for i in encode(long)][-(lm.window + 1 - len(tail)) :]
    assert total == pytest.approx(naive(loaded, head, tail), rel=1e-4)
    ids = np.array([BOS, *map(int, encode(long))])
    assert whole == pytest.approx(-score_tokens(loaded.network, ids)[0], rel=1e-4)


def test_greedy_is_told(lm, loaded):
    head = lm.encode("Hello")
    with torch.inference_mode():
        best = int(loaded.network(torch.tensor([head]))[0, -1].argmax())
    text = loaded.tokenizer.decode([best])
    if [int(i) for i in loaded.tokenizer.encode(text)] == [best]:
        assert lm.loglikelihood(requests(("Hello", text)))[0][1]
    assert not lm.loglikelihood(requests(("Hello", "zzqq")))[0][1]


def test_rolling_is_what_our_evaluation_counts(lm, loaded):
    messages = next(held_out(1))
    ids = loaded.tokenizer.encode_conversation(messages)
    found = lm.loglikelihood_rolling(requests((line_form(messages),)))[0]
    assert found == pytest.approx(-score_tokens(loaded.network, ids)[0], rel=1e-6)


def test_replies_are_those_of_chat(lm, loaded):
    messages = next(held_out(1))[:-1]
    prompt = f"{line_form(messages)} [/INST]"
    reply = lm.generate_until(requests((prompt, {"until": [], "max_gen_toks": 8})))[0]
    if len(loaded.tokenizer.encode_conversation(messages, True)) <= lm.window * 3 // 4:
        assert reply == i3lm.chat(loaded, messages, temperature=0.0, max_new_tokens=8)
    stopped = lm.generate_until(requests((prompt, {"until": reply[2:4], "max_gen_toks": 8})))[0]
    assert reply.startswith(stopped)


def test_all_our_tasks_run_offline_on_the_command_line(folder, capsys):
    words = ["eval", folder, "--tasks", "i3lm", "--limit", "6", "--json"]
    assert main([str(word) for word in words]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = result["results"]
    assert {"i3lm_questions", "i3lm_questions_choice", "i3lm_bits_per_byte"} < rows.keys()
    assert {f"i3lm_pairs_{name}" for name in PHENOMENA} < rows.keys()
    for name, row in rows.items():
        assert row["samples"] == 6, name
        if "acc" in row:
            assert 0 <= row["acc"] <= 1
    assert result["groups"]["i3lm_pairs"]["acc"] == pytest.approx(
        np.mean([rows[f"i3lm_pairs_{name}"]["acc"] for name in PHENOMENA])
    )
    assert any("acc" in line for line in result["counted"])
    assert "<bos>" in result["rule"]


def test_bits_per_byte_is_right(folder, loaded, capsys):
    assert main(["eval", str(folder), "--tasks", "i3lm_bits_per_byte", "--limit", "5"]) == 0
    out = capsys.readouterr().out
    nats, size = 0.0, 0
    for messages in held_out(5):
        nats += score_tokens(loaded.network, loaded.tokenizer.encode_conversation(messages))[0]
        size += len(line_form(messages).encode())
    row = next(line for line in out.splitlines() if " bits_per_byte" in line)
    assert float(row.split()[2]) == pytest.approx(nats / math.log(2) / size, rel=1e-3)


def test_a_folder_of_the_users_own(folder, tmp_path):
    (tmp_path / "docs.jsonl").write_text(
        '{"q": "Is snow", "c": [" white", " green"], "a": 0}\n' * 3
    )
    (tmp_path / "mine.yaml").write_text(
        f"""task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "docs.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: q
doc_to_choice: c
doc_to_target: a
target_delimiter: ""
"""
    )
    row = evaluate_tasks(folder, ["mine"], task_folder=tmp_path)["results"]["mine"]
    assert row["samples"] == 3
    assert row["acc"] in (0, 1)
    row = evaluate_tasks(folder, ["mine"], task_folder=tmp_path, chat=True, num_fewshot=0)
    assert row["results"]["mine"]["samples"] == 3


def test_the_harness_finds_our_model_by_name(folder):
    code = f"""
import lm_eval
from lm_eval.tasks import TaskManager
import i3lm.tasks.harness as harness
found = lm_eval.simple_evaluate(
    "i3lm", {{"pretrained": {str(folder)!r}}}, tasks=["i3lm_pairs_article"], limit=4,
    task_manager=TaskManager(include_path=str(harness.OWN), include_defaults=False),
)
print(found["results"]["i3lm_pairs_article"]["acc,none"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 <= float(done.stdout.split()[-1]) <= 1


def test_what_is_refused(folder, tmp_path, capsys, monkeypatch):
    with pytest.raises(UserError, match="no folder"):
        evaluate_tasks(folder, ["i3lm"], task_folder=tmp_path / "none")
    for words in (["--tasks", "i3lm", "--data", "x"], []):
        assert main(["eval", str(folder), *words]) == 2
        assert "give either" in capsys.readouterr().err
    assert main(["eval", str(folder), "--data", "x.txt", "--limit", "5"]) == 2
    assert "goes with --tasks" in capsys.readouterr().err
    ours = TaskManager(include_path=[harness.OWN], include_defaults=False)
    with monkeypatch.context() as patch:  # reading the thousands of others takes long
        patch.setattr(harness, "TaskManager", lambda *arguments, **settings: ours)
        with pytest.raises(UserError, match="no task is named nonsense; here are: i3lm"):
            evaluate_tasks(folder, ["nonsense"])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", str(folder), "--tasks", "i3lm"]) == 2
    err = capsys.readouterr().err
    assert err == "error: lm-eval is not installed: pip install 'i3lm[tasks]'\n"


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_pairs_differ_in_one_point_and_stay_the_same(phenomenon):
    pairs = list(minimal_pairs(phenomenon))
    assert pairs == list(minimal_pairs(phenomenon))
    assert len(set(pairs)) == 300
    good, bad = ({pair[i] for pair in pairs} for i in (0, 1))
    assert not good & bad
    lengths = np.array([[len(text) for text in pair] for pair in pairs])
    assert abs(np.diff(lengths)).max() <= 2
    rows = documents.pairs(phenomenon)["test"]
    firsts = np.mean([row["answer"] == 0 for row in rows])
    assert 0.4 < firsts < 0.6
    assert all(row["choices"][row["answer"]] in good for row in rows)


def test_questions_have_one_right_choice():
    rows = documents.chosen()["test"]
    for row in rows:
        assert len(row["choices"]) == len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] == row["reply"]
        assert documents.score_reply(row, [row["reply"]]) == {"acc": 1.0, "exact_match": 1.0}
    wrong = [
        sum(documents.score_reply(row, [choice]).values())
        for row in rows
        for i, choice in enumerate(row["choices"])
        if i != row["answer"]
    ]
    assert not any(wrong)
    places = np.bincount([row["answer"] for row in rows]) / len(rows)
    assert places.max() < 0.35
