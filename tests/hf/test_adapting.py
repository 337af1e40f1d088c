"""Vocabularies resized, adapters of peft, weights on several devices."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from i3lm.quantizing import quantize

IDS = torch.randint(6, 290, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def fresh(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def logits(model, ids=IDS):
    return model.eval()(ids).logits


def test_a_larger_vocabulary_keeps_what_was_and_expects_little_of_the_new(fresh, tmp_path):
    used, before = fresh.config.used_vocab_size, logits(fresh)[..., :290]
    fresh.resize_token_embeddings(470)
    assert fresh.get_input_embeddings().weight.shape == (470, 32)
    assert fresh.lm_head.A.shape == (470, 4)
    assert fresh.lm_head.bias.shape == (470,)
    assert (fresh.config.vocab_size, fresh.config.used_vocab_size) == (470, 470)
    after = logits(fresh)
    assert torch.equal(after[..., :290], before)
    mean = after[..., :used].mean(-1, keepdim=True).expand(-1, -1, 470 - used)
    torch.testing.assert_close(after[..., used:], mean, rtol=1e-4, atol=1e-4)
    new = torch.full((1, 4), 469)
    fresh.train()(new, labels=new).loss.backward()
    assert fresh.lm_head.A.grad[469].any()
    assert fresh.get_input_embeddings().weight.grad[469].any()
    fresh.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), after)


def test_tokens_are_added_as_usual(fresh, folder, hf_tokenizer):
    tokenizer = copy.deepcopy(hf_tokenizer)
    tokenizer.add_tokens(["<laugh>"], special_tokens=True)
    before = logits(fresh)[..., :290]
    fresh.resize_token_embeddings(len(tokenizer))
    assert fresh.config.vocab_size == fresh.config.used_vocab_size == len(tokenizer)
    ids = tokenizer("hello <laugh>", return_tensors="pt").input_ids
    assert ids[0, -1] == len(tokenizer) - 1
    assert logits(fresh, ids).isfinite().all()
    assert torch.equal(logits(fresh)[..., :290], before)


def test_smaller_padded_and_random(fresh):
    before = logits(fresh)
    fresh.resize_token_embeddings(291, pad_to_multiple_of=64)
    assert (fresh.config.vocab_size, fresh.config.used_vocab_size) == (320, 291)
    after = logits(fresh)
    assert torch.equal(after[..., :290], before[..., :290])
    assert (after[..., 291:] == -torch.inf).all()
    fresh.resize_token_embeddings(300, mean_resizing=False)
    assert logits(fresh)[..., :300].isfinite().all()
    assert fresh.resize_token_embeddings() is fresh.get_input_embeddings()
    fresh.resize_token_embeddings(100)
    out = fresh.generate(IDS.clamp(max=99), max_new_tokens=5, do_sample=True, eos_token_id=None)
    assert out.max() < 100


def test_resizing_leaves_what_is_trained_as_it_was(fresh):
    with torch.no_grad():
        fresh.resize_token_embeddings(470)
    assert all(p.requires_grad for p in fresh.parameters())
    fresh.requires_grad_(False)
    fresh.resize_token_embeddings(480)
    assert not any(p.requires_grad for p in fresh.parameters())


def test_few_bits_are_not_resized(folder, tmp_path):
    quantize(folder, tmp_path / "q", bits=8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    if model.config.weight_bits == 32:
        pytest.fail("the folder was not quantized")
    with pytest.raises(ValueError, match="resize the original"):
        model.resize_token_embeddings(500)


ADAPTERS = {
    "attention": {"target_modules": ["qkv_down", "q_up", "k_up", "v_up", "o_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "factors": {
        "target_modules": ["q_up"],
        "target_parameters": ["ffn.up.A", "ffn.up.B", "ffn.down.A", "ffn.down.B"],
    },
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", ADAPTERS)
def test_lora_trains_saves_loads_and_merges(fresh, folder, tmp_path, name):
    peft = pytest.importorskip("peft")
    plain = logits(fresh)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, **ADAPTERS[name])
    model = peft.get_peft_model(fresh, config)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n for n in trained)
    torch.testing.assert_close(logits(model), plain)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        loss = model.train()(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted = logits(model)
    assert not torch.allclose(adapted, plain)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    base = AutoModelForCausalLM.from_pretrained(folder)
    again = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits(again), adapted)
    out = again.generate(input_ids=IDS, max_new_tokens=60, do_sample=False, eos_token_id=None)
    merged = again.merge_and_unload()
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-4)
    assert out.shape == (2, 72)
    merged.save_pretrained(tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(whole), adapted, rtol=1e-4, atol=1e-4)


def test_device_maps(folder, model, tmp_path):
    pytest.importorskip("accelerate")
    expected = model.generate(IDS, max_new_tokens=60, do_sample=False, eos_token_id=None)
    parts = ["model.embed_tokens", "model.embed_positions", "model.norm", "lm_head"]
    spread = {
        **dict.fromkeys(parts, "cpu"),
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
    }
    for device_map in ("cpu", "auto", {"": "cpu"}, spread):
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, device_map=device_map, offload_folder=str(tmp_path)
        )
        out = loaded.generate(IDS, max_new_tokens=60, do_sample=False, eos_token_id=None)
        assert torch.equal(out, expected)
