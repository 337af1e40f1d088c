"""What transformers expects of every causal language model, checked on i3."""

import copy
import inspect

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.generation import GenerationMixin

from i3lm.model.modeling_i3 import I3ForCausalLM, I3Model

IDS = torch.randint(6, 290, (2, 10), generator=torch.Generator().manual_seed(1))
CLASSES = pytest.mark.parametrize("kind", [I3Model, I3ForCausalLM])


def flat(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, DynamicCache):
        return [t for x in outputs.layers for t in (x.keys, x.values, x.recurrent_states[0])]
    return [tensor for part in outputs for tensor in flat(part)]


@CLASSES
def test_the_signature_begins_with_ids_and_takes_more(kind):
    parameters = list(inspect.signature(kind.forward).parameters.values())
    assert [p.name for p in parameters[:3]] == ["self", "input_ids", "attention_mask"]
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    assert issubclass(I3ForCausalLM, GenerationMixin)
    assert I3ForCausalLM.can_generate()


@CLASSES
def test_the_same_twice_in_training_mode_too(kind, folder):
    model = kind.from_pretrained(folder)
    for mode in (model.eval(), model.train()):
        with torch.no_grad():
            assert torch.equal(mode(IDS)[0], mode(IDS)[0])


@CLASSES
def test_tuples_hold_what_the_outputs_hold(kind, folder):
    model = kind.from_pretrained(folder)
    extra = {"labels": IDS} if kind is I3ForCausalLM else {}
    asked = {"output_hidden_states": True, "output_attentions": True, **extra}
    with torch.no_grad():
        named = model(IDS, **asked)
        plain = model(IDS, return_dict=False, **asked)
    pairs = list(zip(flat(named.to_tuple()), flat(plain), strict=True))
    assert len(pairs) > 10
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@CLASSES
def test_shapes_of_all_outputs(kind, folder):
    model = kind.from_pretrained(folder)
    model.config.output_hidden_states = True
    with torch.no_grad():
        out = model(IDS, output_attentions=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 10, 32)] * 3
    assert [tuple(w.shape) for w in out.attentions] == [(2, 2, 10, 10)] * 2
    cache = out.past_key_values
    assert len(cache) == 2
    assert cache.get_seq_length() == 10
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (2, 2, 10, 16)
        assert layer.recurrent_states[0].shape == (2, 36)


def test_attentions_can_be_asked_for_in_the_config(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_attentions=True
    )
    assert len(model(IDS).attentions) == 2


def test_gradients_reach_all_that_is_returned(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    kept = [out.hidden_states[0], out.hidden_states[1], out.attentions[0]]
    for tensor in kept:
        tensor.retain_grad()
    out.logits[..., :290].sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in kept)


def test_every_parameter_learns(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    model(IDS, labels=IDS).loss.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_can_be_switched_on_and_off(folder, reentrant):
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    enable, disable = (
        getattr(model, f"activation_checkpointing_{word}", None)
        or getattr(model, f"gradient_checkpointing_{word}")
        for word in ("enable", "disable")
    )
    model(IDS, labels=IDS).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    enable({"use_reentrant": reentrant})
    assert model.model.gradient_checkpointing
    model.get_input_embeddings().register_forward_hook(lambda m, a, out: out.requires_grad_())
    model.zero_grad()
    out = model(IDS, labels=IDS, use_cache=True)
    assert out.past_key_values is None
    out.loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=2e-5)
    disable()
    assert not model.model.gradient_checkpointing
    assert model(IDS).past_key_values is not None


def test_loading_leaves_nothing_over(folder):
    for auto, unexpected in ((AutoModelForCausalLM, set()), (AutoModel, {"lm_head"})):
        _, report = auto.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["mismatched_keys"]
        assert {key.split(".")[0] for key in report["unexpected_keys"]} <= unexpected


def test_the_base_model_is_the_same_model(folder, tmp_path):
    whole = AutoModelForCausalLM.from_pretrained(folder)
    whole.model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        hidden = whole.model(IDS).last_hidden_state
        assert torch.equal(base(IDS).last_hidden_state, hidden)
    assert whole.base_model is whole.model


def test_embeddings_are_found_and_replaced(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    head = model.get_output_embeddings()
    assert head is model.lm_head
    with torch.no_grad():  # for tools that multiply by a dense matrix, as TRL does
        hidden = model.model(IDS).last_hidden_state
        dense = torch.nn.functional.linear(hidden, head.weight, head.bias)
        torch.testing.assert_close(dense[..., :290], model(IDS).logits[..., :290])
    assert not model.config.tie_word_embeddings
    other = torch.nn.Embedding(450, 32)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is model.model.embed_tokens is other


def test_exactly_one_kind_of_input(model):
    with pytest.raises(ValueError, match="exactly one"):
        model(IDS, inputs_embeds=model.get_input_embeddings()(IDS))
    with pytest.raises(ValueError, match="exactly one"):
        model()


def test_packed_rows_are_refused(model):
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]).repeat(2, 1)
    with pytest.raises(ValueError, match="row of its own"):
        model(IDS, position_ids=positions)


def test_later_tokens_change_nothing_before(model):
    changed = IDS.clone()
    changed[:, 6:] = 17
    with torch.no_grad():
        ours, theirs = model(IDS).logits[:, :6], model(changed).logits[:, :6]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cache", ["none", "dynamic", "plain dynamic", "static"])
def test_a_text_read_in_parts_is_the_text(model, cache):
    made = {
        "none": lambda: None,
        "dynamic": lambda: DynamicCache(config=model.config),
        "plain dynamic": DynamicCache,
        "static": lambda: StaticCache(config=model.config, max_cache_len=20),
    }[cache]()
    with torch.no_grad():
        whole, parts = model(IDS).logits, []
        for part in (IDS[:, :4], IDS[:, 4:5], IDS[:, 5:]):
            out = model(part, past_key_values=made)
            made = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_four_dimensional_masks(model):
    seen = torch.ones(10, 10, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        for mask in (seen, added):
            torch.testing.assert_close(model(IDS, attention_mask=mask).logits, model(IDS).logits)


def test_embeddings_and_a_static_cache(model):
    settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    embeds = model.get_input_embeddings()(IDS)
    out = model.generate(
        inputs_embeds=embeds, cache_implementation="static", disable_compile=True, **settings
    )
    assert torch.equal(out, model.generate(IDS, **settings)[:, 10:])


def test_the_forward_pass_is_one_graph(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        found, expected = compiled(IDS, use_cache=False).logits, model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # sums in another order


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_attention_that_i3_has_not_is_refused(folder, name):
    with pytest.raises((ValueError, ImportError)):
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation=name)


def test_caches_that_i3_has_not_are_refused(model):
    with pytest.raises((ValueError, ImportError, NotImplementedError)):
        model.generate(IDS, cache_implementation="quantized", max_new_tokens=2)


def test_training_in_bfloat16(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).train()
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        exact = AutoModelForCausalLM.from_pretrained(folder)(IDS, labels=IDS).loss
    assert abs(loss.item() - exact.item()) < 0.1 * exact.item()


def test_a_copy_is_a_model_of_its_own(model):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.A.zero_()
        assert not torch.equal(twin(IDS).logits, model(IDS).logits)
