"""Other people's training loops: HF Trainer, accelerate, and fine-tuning on the chat template."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

from i3lm.folder import load_folder

pytest.importorskip("accelerate")

# Its name until transformers 5.23 or so was gradient_checkpointing.
NAMES = ("activation_checkpointing", "gradient_checkpointing")
CHECKPOINTING = next(name for name in NAMES if name in TrainingArguments.__dataclass_fields__)

TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am i3."},
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "Anna likes cats."},
]


def texts(tokenizer, count: int = 24) -> list[dict[str, list[int]]]:
    lines = ["hello there, who are you?", "I am i3.", "Anna likes cats and the sea."]
    return [{"input_ids": tokenizer(lines[i % 3]).input_ids} for i in range(count)]


def arguments(out, **changes) -> TrainingArguments:
    settings = {
        "output_dir": str(out), "max_steps": 8, "per_device_train_batch_size": 4,
        "learning_rate": 5e-3, "save_steps": 4, "logging_steps": 1, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "seed": 7, "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(**{**settings, **changes})


def trained(folder, tokenizer, out, resume=None, **changes):
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(folder),
        arguments(out, **changes),
        train_dataset=texts(tokenizer),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    "changes",
    [{}, {CHECKPOINTING: True, "gradient_accumulation_steps": 2}, {"bf16": True}],
    ids=["plain", "checkpointing", "bf16"],
)
def test_the_trainer_trains_and_resumes_bit_for_bit(folder, hf_tokenizer, tmp_path, changes):
    whole = trained(folder, hf_tokenizer, tmp_path / "whole", **changes)
    found = losses(whole)
    assert len(found) == 8
    assert sum(found[-3:]) < sum(found[:3])
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    again = trained(folder, hf_tokenizer, tmp_path / "again", resume=str(checkpoint), **changes)
    state = again.model.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert losses(again)[-4:] == found[-4:]
    ours = load_folder(tmp_path / "whole" / "checkpoint-8")
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in ours.network.state_dict().items()
    )


def test_accelerate_trains_and_resumes_bit_for_bit(folder, hf_tokenizer, tmp_path):
    from accelerate import Accelerator

    def run(steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = AutoModelForCausalLM.from_pretrained(folder)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model, optimizer = accelerator.prepare(model.train(), optimizer)
        collate = DataCollatorForLanguageModeling(hf_tokenizer, mlm=False)
        rows = texts(hf_tokenizer)
        begin = 0
        if resume:
            accelerator.load_state(str(tmp_path / "state"))
            begin = 4
        for step in range(begin, steps):
            with accelerator.accumulate(model):
                accelerator.backward(
                    model(**collate(rows[4 * (step % 6) : 4 * (step % 6) + 4])).loss
                )
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if step == 3 and not resume:
                accelerator.save_state(str(tmp_path / "state"))
        return accelerator.unwrap_model(model).state_dict()

    whole, resumed = run(8), run(8, resume=True)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def conversation_rows(tokenizer, count: int = 16) -> list[dict[str, list[int]]]:
    """Conversations whose labels are the assistant's tokens alone."""
    encoded = tokenizer.apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    labels = [
        token if mask else -100
        for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]
    short = tokenizer.apply_chat_template(
        TALK[:2], return_dict=True, return_assistant_tokens_mask=True
    )
    other = [
        token if mask else -100
        for token, mask in zip(short["input_ids"], short["assistant_masks"], strict=True)
    ]
    rows = [
        {"input_ids": encoded["input_ids"], "labels": labels},
        {"input_ids": short["input_ids"], "labels": other},
    ]
    return [rows[i % 2] for i in range(count)]


def test_the_mask_covers_the_assistants_words_and_the_end(hf_tokenizer, network_and_tokenizer):
    encoded = hf_tokenizer.apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    assert ids == network_and_tokenizer[1].encode_conversation(TALK).tolist()
    said = hf_tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert said == "I am i3.[INST]Anna likes cats.<eos>"  # what ends a turn is learned, too
    rest = hf_tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if not m])
    assert rest == "<bos>[INST]Who are you?[/INST]hello there[/INST]"
    plain = hf_tokenizer.apply_chat_template(TALK, return_dict=False)
    assert plain == ids


def test_fine_tuning_on_answers_alone(folder, hf_tokenizer, tmp_path):
    rows = conversation_rows(hf_tokenizer)
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(folder),
        arguments(tmp_path, max_steps=120, learning_rate=2e-2, save_steps=120),
        train_dataset=rows,
        data_collator=DataCollatorForTokenClassification(hf_tokenizer),
        processing_class=hf_tokenizer,
    )
    batch = trainer.data_collator([dict(row) for row in rows[:2]])
    assert (batch["labels"][1] == -100).sum() > (batch["labels"][0] == -100).sum()
    with torch.no_grad():
        model = trainer.model.eval()
        together = model(**batch).loss
        sums = [
            torch.nn.functional.cross_entropy(
                model(torch.tensor([row["input_ids"]])).logits[0, :-1],
                torch.tensor(row["labels"])[1:],
                reduction="sum",
            )
            for row in rows[:2]
        ]
        targets = sum(label != -100 for row in rows[:2] for label in row["labels"])
    torch.testing.assert_close(together, sum(sums) / targets, rtol=1e-4, atol=1e-4)
    trainer.train()
    found = losses(trainer)
    assert found[-1] < found[0] / 3
    ids = hf_tokenizer.apply_chat_template(
        TALK[:3], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = trainer.model.eval().generate(**ids, do_sample=False, max_new_tokens=20)
    answer = hf_tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip() == "Anna likes cats."
    state = json.loads((tmp_path / "checkpoint-120" / "trainer_state.json").read_text())
    assert state["global_step"] == 120
