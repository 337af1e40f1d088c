"""Where generation ends, what may be passed to it, and stretches of one token."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, StoppingCriteriaList, pipeline

from i3lm.model.configuration_i3 import I3Config
from i3lm.model.modeling_i3 import I3ForCausalLM

WINDOW = 48
LENGTH = 9
PLAIN = {"do_sample": False, "eos_token_id": None, "pad_token_id": 1}


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(6, 290, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def padded(prompts):
    ids = F.pad(prompts, (4, 0), value=1)
    return {"inputs": ids, "attention_mask": (ids != 1).long()}


def test_the_window_is_the_default_length(model, prompts):
    assert model.generate(prompts, **PLAIN).shape == (2, WINDOW)
    assert model.generate(prompts, max_new_tokens=3, **PLAIN).shape == (2, LENGTH + 3)
    assert model.generate(prompts, max_length=15, **PLAIN).shape == (2, 15)
    short = GenerationConfig(max_new_tokens=2, **PLAIN)
    assert model.generate(prompts, short).shape == (2, LENGTH + 2)


def test_embeddings_count_towards_the_window(model, prompts):
    embeds = model.get_input_embeddings()(prompts)
    whole = model.generate(prompts, max_new_tokens=WINDOW - LENGTH, **PLAIN)
    alone = model.generate(inputs_embeds=embeds, max_new_tokens=500, **PLAIN)
    assert torch.equal(alone, whole[:, LENGTH:])
    both = model.generate(prompts, inputs_embeds=embeds, max_new_tokens=500, **PLAIN)
    assert torch.equal(both, whole)
    long = embeds.repeat(1, 6, 1)  # cannot be read anew, so they end where the window is full
    newest = model(inputs_embeds=long[:, -WINDOW:]).logits[:, -1:].argmax(-1)
    assert torch.equal(model.generate(inputs_embeds=long, **PLAIN), newest)


def test_criteria_of_the_caller_are_kept_as_they_were(model, prompts):
    calls = []

    def stop(input_ids, scores, **kwargs):
        calls.append(input_ids.shape[1])
        return torch.full((len(input_ids),), len(calls) == 3)

    criteria = StoppingCriteriaList([stop])
    for arguments, keywords in (
        ((None, None, criteria), {}),
        ((), {"stopping_criteria": criteria}),
    ):
        calls.clear()
        out = model.generate(prompts, *arguments, max_new_tokens=20, **PLAIN, **keywords)
        assert out.shape == (2, LENGTH + 3)
    assert list(criteria) == [stop]


def test_a_forward_pass_beyond_the_window_is_refused(model):
    ids = torch.full((1, WINDOW + 1), 9)
    with pytest.raises(ValueError, match="more than the model's window"):
        model(ids)
    cache = model(ids[:, :WINDOW]).past_key_values
    with pytest.raises(ValueError, match="49 tokens are more than the model's window"):
        model(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("size", [1, 3])
def test_padding_leaves_no_trace_when_a_prompt_is_read_in_stretches(model, padded, prompts, size):
    expected = model.generate(prompts, use_cache=False, max_new_tokens=6, **PLAIN)
    out = model.generate(**padded, prefill_chunk_size=size, max_new_tokens=6, **PLAIN)
    assert torch.equal(out[:, 4:], expected)


def test_a_padded_conversation_goes_on_from_its_cache(model, padded, prompts):
    settings = {**PLAIN, "max_new_tokens": 6}
    first = model.generate(**padded, return_dict_in_generate=True, **settings)
    ids = torch.cat([first.sequences, prompts[:, :5]], dim=1)
    mask = F.pad(padded["attention_mask"], (0, ids.shape[1] - 13), value=1)
    again = {"inputs": ids, "attention_mask": mask, **settings}
    cached = model.generate(**again, past_key_values=first.past_key_values)
    assert torch.equal(cached, model.generate(**again, use_cache=False))


def test_rows_of_different_length_do_not_disturb_one_another(model, folder):
    chat = pipeline("text-generation", model=str(folder), do_sample=False, max_new_tokens=8)
    texts = ["hello there, who are you?", "i3", "Anna likes"]
    together = [out[0]["generated_text"] for out in chat(texts, batch_size=3)]
    assert together == [chat(text)[0]["generated_text"] for text in texts]


def test_tuples_where_transformers_would_return_them(model, prompts):
    with torch.no_grad():
        logits = model(prompts).logits
        assert torch.equal(model(prompts, return_dict=False)[0], logits)
        model.config.return_dict = False
        try:
            assert torch.equal(model(prompts)[0], logits)
            assert model.generate(prompts, max_new_tokens=2, **PLAIN).shape == (2, LENGTH + 2)
        finally:
            model.config.return_dict = True


def test_the_familys_names_are_checked_too():
    config = I3Config(d_model=330, n_heads=5, n_layers=2, d_ff=64, max_seq_len=32)
    assert (config.hidden_size, config.num_hidden_layers) == (330, 2)
    assert (config.intermediate_size, config.max_position_embeddings) == (64, 32)
    for wrong in ({"d_model": 30, "n_heads": 4}, {"n_layers": 0}, {"hidden_size": "512"}):
        with pytest.raises(ValueError, match=r"divisible|whole number"):
            I3Config(**wrong)


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written holds NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
def test_nothing_is_read_that_was_not_written(model, folder, prompts):
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "rank": 4}
    fresh = I3ForCausalLM(I3Config(vocab_size=300, **small))
    loaded = I3ForCausalLM.from_pretrained(folder)
    for network in (fresh, loaded):
        network.train()(prompts, labels=prompts).loss.backward()
        for name, parameter in network.named_parameters():
            assert parameter.isfinite().all(), name
            assert parameter.grad.isfinite().all(), name
    expected = model.generate(prompts, use_cache=False, max_new_tokens=9, **PLAIN)
    for kind in ("static", "dynamic"):
        loaded.eval()
        out = loaded.generate(prompts, cache_implementation=kind, max_new_tokens=9, **PLAIN)
        assert torch.equal(out, expected), kind


def test_missing_weights_are_drawn_and_the_others_kept(folder, tmp_path):
    part = shutil.copytree(folder, tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    missing = {
        "model.layers.0.recurrence.C",
        "model.layers.0.attention.qkv_down.bias",
        "model.layers.1.ffn.up.B",
        "model.layers.1.recurrence.A",
    }
    kept = {name: tensor for name, tensor in weights.items() if name not in missing}
    save_file(kept, part / "model.safetensors", metadata={"format": "pt"})
    state = I3ForCausalLM.from_pretrained(part).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
    assert not state["model.layers.0.recurrence.C"].any()
    radius = torch.linalg.eigvals(state["model.layers.1.recurrence.A"]).abs().max()
    assert 0.5 < radius < 1
