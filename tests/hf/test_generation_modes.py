"""Every way of generating that transformers has and i3 allows, beside plain greedy."""

import copy
import functools
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    LogitsProcessorList,
    StaticCache,
    TextIteratorStreamer,
    TextStreamer,
)

from i3lm.model.cache_i3 import I3CacheLayer
from i3lm.model.configuration_i3 import I3Config
from i3lm.model.modeling_i3 import I3ForCausalLM

PLAIN = {"do_sample": False, "eos_token_id": None, "pad_token_id": 1}
GREEDY = {**PLAIN, "max_new_tokens": 30}


def ids(length: int = 9, batch: int = 1, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, 290, (batch, length), generator=generator)


@pytest.fixture(scope="module")
def greedy(model):
    return model.generate(ids(), use_cache=False, **GREEDY)


@pytest.fixture(scope="module")
def assistant(model):
    """A model that drafts what the other says about as often as not."""
    draft = copy.deepcopy(model)
    with torch.no_grad():
        draft.model.layers[1].ffn.down.A.mul_(0.5)
    return draft


def test_prompt_lookup_changes_nothing(model, greedy):
    prompt = torch.cat([greedy, greedy[:, :6]], dim=1)[:, :16]
    expected = model.generate(prompt, **GREEDY)
    for drafts in (1, 3, 10):
        out = model.generate(prompt, prompt_lookup_num_tokens=drafts, **GREEDY)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("past_window", [False, True])
def test_an_assistant_changes_nothing(model, assistant, past_window):
    settings = {**GREEDY, "max_new_tokens": 90} if past_window else GREEDY
    expected = model.generate(ids(), **settings)
    for helper in (model, assistant):
        out = model.generate(ids(), assistant_model=helper, **settings)
        assert torch.equal(out, expected)
    accepted, twin = [], copy.deepcopy(model)
    forward = model.forward

    @functools.wraps(forward)
    def count(*args, **kwargs):
        accepted.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    model.forward = count
    try:
        model.generate(ids(), assistant_model=twin, **{**GREEDY, "max_new_tokens": 20})
    finally:
        del model.forward
    assert len(accepted) < 12  # drafts are taken, several at a time


def test_assisted_sampling_draws(model, assistant):
    torch.manual_seed(0)
    out = model.generate(
        ids(), assistant_model=assistant, do_sample=True, max_new_tokens=12, eos_token_id=None
    )
    assert out.shape == (1, 21)
    assert out.max() < model.config.used_vocab_size


def test_an_assistant_with_a_smaller_window(model, network_and_tokenizer, greedy):
    config = copy.deepcopy(model.config)
    config.max_position_embeddings = 16
    torch.manual_seed(0)
    small = I3ForCausalLM(config).eval()
    assert torch.equal(model.generate(ids(), assistant_model=small, **GREEDY), greedy)


@pytest.mark.parametrize("given", [True, False])
def test_a_cache_of_the_users_serves_assisted_generation(model, greedy, given):
    cache = DynamicCache(config=model.config) if given else DynamicCache()
    settings = {**GREEDY, "prompt_lookup_num_tokens": 3, "return_dict_in_generate": True}
    out = model.generate(ids(), past_key_values=cache, **settings)
    assert torch.equal(out.sequences, greedy)
    assert out.past_key_values is cache
    assert all(type(layer) is I3CacheLayer for layer in cache.layers)


def states(cache):
    layer = cache.layers[1]
    return layer.keys, layer.values, layer.recurrent_states[0]


@pytest.mark.parametrize("removed", [0, 1, 5, 8, 9, 20])
@pytest.mark.parametrize("steps", [[9], [4, 5], [1] * 9])
def test_a_cropped_cache_is_the_shorter_one(model, removed, steps):
    cache, begin = DynamicCache(config=model.config), 0
    cache.activate_past_recording()
    with torch.no_grad():
        for size in steps:
            model(ids()[:, begin : begin + size], past_key_values=cache)
            begin += size
        cache.crop(-removed)
        left = max(0, 9 - removed)
        assert cache.get_seq_length() == left
        fresh = model(ids()[:, :left]).past_key_values if left else DynamicCache()
        if left:
            for ours, theirs in zip(states(cache), states(fresh), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        both = [model(ids(4, seed=5), past_key_values=c).logits for c in (cache, fresh)]
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)
        cache.crop(-2)  # once more
        assert cache.get_seq_length() == left + 2


def test_what_was_not_recorded_cannot_be_taken_back(model):
    with torch.no_grad():
        cache = model(ids()).past_key_values
        with pytest.raises(RuntimeError, match="activate_past_recording"):
            cache.crop(-2)
        with pytest.raises(ValueError, match="negative"):
            cache.crop(2)
        cache.activate_past_recording()  # from here on
        before = states(copy.deepcopy(cache))
        model(ids(3, seed=2), past_key_values=cache)
        cache.crop(-3)
    for ours, theirs in zip(states(cache), before, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        cache.crop(-1)
    assert cache.is_croppable


def test_rows_of_a_cache_can_be_chosen_and_repeated(model):
    both = ids(batch=2)
    with torch.no_grad():
        caches = [model(rows).past_key_values for rows in (both, both, both[:1])]
        caches[0].batch_select_indices(torch.tensor([1, 0]))
        caches[1].reorder_cache(torch.tensor([1, 1]))
        caches[2].activate_past_recording()
        caches[2].batch_repeat_interleave(2)
        rows = both[[1, 0]], both[[1, 1]], both[[0, 0]]
        for cache, wanted in zip(caches, rows, strict=True):
            out = model(ids(3, 2, 7), past_key_values=cache).logits
            fresh = model(torch.cat([wanted, ids(3, 2, 7)], dim=1)).logits[:, -3:]
            torch.testing.assert_close(out, fresh, rtol=1e-4, atol=1e-4)
        caches[2].crop(-3)
        caches[2].reorder_cache(torch.tensor([0]))
        caches[2].batch_select_indices(torch.tensor([0]))
        assert caches[2].layers[0].past.shape == (1, 1, 36)


def test_a_prompts_cache_can_be_copied_for_many_continuations(model):
    with torch.no_grad():
        prefix = model(ids()).past_key_values
    for seed in (2, 3):
        longer = torch.cat([ids(), ids(4, seed=seed)], dim=1)
        out = model.generate(longer, past_key_values=copy.deepcopy(prefix), **GREEDY)
        assert torch.equal(out, model.generate(longer, **GREEDY))


def test_a_static_cache_can_be_used_again(model, greedy):
    cache = StaticCache(config=model.config, max_cache_len=48)
    for _ in range(2):
        cache.reset()
        out = model.generate(ids(), past_key_values=cache, disable_compile=True, **GREEDY)
        assert torch.equal(out, greedy)


def test_compiled_static_decoding(folder, greedy):
    """The traced graph is whole; the compiler's last stage is left out, it takes a minute."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    compiling = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiling._compile_all_devices = True
    settings = {"cache_implementation": "static", "compile_config": compiling}
    assert torch.equal(model.generate(ids(), **GREEDY, **settings), greedy)
    assert hasattr(model, "_compiled_call")
    long = {**PLAIN, "max_new_tokens": 60}  # past the window, where many positions are read anew
    assert torch.equal(model.generate(ids(), **long, **settings), model.generate(ids(), **long))


def test_stop_strings_and_streamers(model, hf_tokenizer, capsys):
    settings = {**GREEDY, "suppress_tokens": list(range(262))}  # no bytes, no special tokens
    prompt = torch.randint(262, 290, (1, 9), generator=torch.Generator().manual_seed(4))
    greedy = model.generate(prompt, **settings)
    text = hf_tokenizer.decode(greedy[0, 9:])
    stop = text[6:10]
    out = model.generate(prompt, stop_strings=[stop], tokenizer=hf_tokenizer, **settings)
    new = hf_tokenizer.decode(out[0, 9:])
    assert stop in new
    assert text.startswith(new)
    assert out.shape[1] < greedy.shape[1]
    model.generate(prompt, streamer=TextStreamer(hf_tokenizer, skip_prompt=True), **settings)
    assert capsys.readouterr().out.strip() == text.strip()
    streamer = TextIteratorStreamer(hf_tokenizer, skip_prompt=True)
    model.generate(prompt, streamer=streamer, **settings)
    assert "".join(streamer) == text


def test_logits_processors(model, greedy):
    banned = greedy[0, 9:].unique().tolist()

    def ban(input_ids, scores):
        return scores.index_fill(1, torch.tensor(banned), -torch.inf)

    out = model.generate(ids(), logits_processor=LogitsProcessorList([ban]), **GREEDY)
    assert not set(out[0, 9:].tolist()) & set(banned)
    for settings in (
        {"bad_words_ids": [[i] for i in banned]},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 4},
        {"suppress_tokens": banned},
        {"guidance_scale": 1.5},
        {"renormalize_logits": True, "typical_p": 0.5, "epsilon_cutoff": 0.01, "min_p": 0.1},
    ):
        found = [
            model.generate(ids(), use_cache=c, **{**GREEDY, **settings}) for c in (True, False)
        ]
        assert torch.equal(*found), settings


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"temperature": 0.0}, {"top_p": 1.5}, {"top_p": -0.1}, {"top_k": -3}, {"num_beams": 0},
        {"num_return_sequences": 0}, {"max_new_tokens": 0}, {"max_new_tokens": -4},
    ],
)  # fmt: skip
def test_absurd_settings_are_refused(model, settings):
    with pytest.raises(ValueError, match=next(iter(settings)).split("_")[0]):
        model.generate(ids(), **{"do_sample": True, "max_new_tokens": 2, **settings})


def test_attention_weights_are_what_the_model_attends_with(model):
    padded = F.pad(ids(), (3, 0), value=1)
    mask = (padded != 1).long()
    with torch.no_grad():
        for inputs in ({"input_ids": ids()}, {"input_ids": padded, "attention_mask": mask}):
            plain, out = model(**inputs), model(**inputs, output_attentions=True)
            length = inputs["input_ids"].shape[1]
            assert plain.attentions is None
            assert [tuple(w.shape) for w in out.attentions] == [(1, 2, length, length)] * 2
            torch.testing.assert_close(out.logits[:, -9:], plain.logits[:, -9:])
            weights = out.attentions[0][..., -9:, :]
            torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 9))
            assert not weights[..., -9:].triu(1).any()
            assert not weights[..., :-9].any()
        cache = model(ids()[:, :6]).past_key_values
        later = model(ids()[:, 6:], past_key_values=cache, output_attentions=True).attentions
    assert later[1].shape == (1, 2, 3, 9)
    torch.testing.assert_close(
        later[1], model(ids(), output_attentions=True).attentions[1][:, :, 6:]
    )


def test_generate_returns_all_that_can_be_asked_for(model):
    for extra in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}):
        out = model.generate(
            ids(), max_new_tokens=4, return_dict_in_generate=True, output_scores=True,
            output_logits=True, output_hidden_states=True, output_attentions=True, **PLAIN, **extra,
        )  # fmt: skip
        assert len(out.scores) == len(out.logits) == len(out.hidden_states) == 4
        assert len(out.attentions) == 4
        assert len(out.hidden_states[0]) == 3
        assert len(out.attentions[0]) == 2
        assert out.attentions[0][0].shape[-1] == 9


def test_an_empty_prompt_begins_with_bos(model):
    out = model.generate(max_new_tokens=3, **{**PLAIN, "bos_token_id": 2})
    assert out.shape == (1, 4)
    assert out[0, 0] == 2


def test_eager_attention_gives_the_same(folder, model, greedy):
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert torch.equal(eager.generate(ids(), **GREEDY), greedy)
    padded = F.pad(ids(), (4, 0), value=1)
    out = eager.generate(padded, attention_mask=(padded != 1).long(), **GREEDY)
    assert torch.equal(out[:, 4:], greedy)


def test_half_precision_runs(folder):
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for settings in ({}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}):
        assert half.generate(ids(), **GREEDY, **settings).shape == (1, 39)


def test_a_batch_is_its_rows(model):
    with torch.no_grad():
        batch = ids(batch=4)
        together = model(batch).logits
        apart = torch.cat([model(row[None]).logits for row in batch])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_a_model_can_be_copied_and_written_as_a_state_dict(model, tmp_path):
    fresh = I3ForCausalLM(I3Config(**model.config.to_dict()))
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(ids()).logits, model(ids()).logits)
        assert torch.equal(copy.deepcopy(model)(ids()).logits, model(ids()).logits)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_a_wrong_weight_shape_is_refused_or_drawn(folder, tmp_path):
    part = shutil.copytree(folder, tmp_path / "part")
    config = I3Config.from_pretrained(part, rank=5)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(part, config=config)
    loaded = AutoModelForCausalLM.from_pretrained(part, config=config, ignore_mismatched_sizes=True)
    assert loaded.lm_head.A.shape == (450, 5)
    assert all(p.isfinite().all() for p in loaded.parameters())
