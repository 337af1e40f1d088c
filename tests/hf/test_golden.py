"""Folders of earlier versions load, and say what they said (golden/make.py made this one)."""

import json
from pathlib import Path

import pytest
import torch
from test_transformers import BLOCK, run_python
from transformers import AutoModelForCausalLM, AutoTokenizer

from i3lm.chatting import chat
from i3lm.folder import load_folder

GOLDEN = Path(__file__).parent / "golden"
FOLDER = GOLDEN / "model"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


def test_the_golden_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 700_000


@pytest.mark.parametrize("said", EXPECTED, ids=lambda said: said["messages"][0]["content"])
def test_it_says_what_it_said(said):
    loaded = load_folder(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer.apply_chat_template(
        said["messages"], add_generation_prompt=True, return_dict=False
    )
    assert ids == said["prompt"]
    with torch.no_grad():
        for network in (loaded.network, model):
            out = network(torch.tensor([ids]))
            logits = out if isinstance(out, torch.Tensor) else out.logits
            torch.testing.assert_close(
                logits[0, -1, :32], torch.tensor(said["logits"]), rtol=1e-3, atol=1e-3
            )
    new = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=max(1, len(said["new"]))
    )[0, len(ids) :].tolist()
    assert new == said["new"]
    text = chat(loaded, said["messages"], temperature=0, max_new_tokens=len(said["new"]))
    assert text == said["text"].strip()


def test_its_own_code_still_runs(tmp_path):
    code = f"""{BLOCK}
import json, torch
from transformers import AutoModelForCausalLM
said = json.load(open({str(GOLDEN / "expected.json")!r}))[0]
model = AutoModelForCausalLM.from_pretrained({str(FOLDER)!r}, trust_remote_code=True)
ids = torch.tensor([said["prompt"]])
out = model.generate(ids, do_sample=False, max_new_tokens=len(said["new"]))
print(out[0, ids.shape[1]:].tolist() == said["new"])"""
    assert run_python(code, tmp_path).strip() == "True"
