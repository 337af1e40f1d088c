"""More of what transformers checks of every model: exporting, compiling, devices, embeddings."""

import json
import warnings

import pytest
import torch
from test_transformers import BLOCK, run_python
from transformers import AutoModelForCausalLM, CompileConfig, DynamicCache

from i3lm.model.configuration_i3 import I3Config
from i3lm.model.modeling_i3 import I3ForCausalLM
from i3lm.quantizing import quantize

IDS = torch.randint(6, 290, (2, 10), generator=torch.Generator().manual_seed(1))
GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 1}


@pytest.fixture
def fresh(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
def test_a_compiled_training_step_is_the_same_step():
    """Forward and backward traced whole; the compiler's last stage is left out."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "rank": 4}
    fresh = I3ForCausalLM(I3Config(vocab_size=300, **sizes)).train()
    fresh(IDS, labels=IDS).loss.backward()
    expected = {name: p.grad.clone() for name, p in fresh.named_parameters()}
    fresh.zero_grad()
    compiled = torch.compile(fresh, backend="aot_eager", fullgraph=True)
    compiled(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for name, p in fresh.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=2e-5)


def test_torch_export_gives_a_graph_for_any_batch(fresh):
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = fresh

        def forward(self, input_ids):
            return self.model(input_ids, use_cache=False).logits

    free = {0: torch.export.Dim("batch", max=64)}
    with torch.no_grad():
        program = torch.export.export(Logits(), (IDS,), dynamic_shapes=(free,))
        for ids in (IDS, IDS.repeat(2, 1)):
            found = program.module()(ids)
            torch.testing.assert_close(found, fresh(ids).logits, rtol=1e-4, atol=1e-4)


def test_beams_from_embeddings(model):
    embeds = model.get_input_embeddings()(IDS)
    for beams in (1, 3):
        out = model.generate(inputs_embeds=embeds, num_beams=beams, **GREEDY)
        assert torch.equal(out, model.generate(IDS, num_beams=beams, **GREEDY)[:, 10:])


def test_embeddings_go_on_from_a_cache(model):
    table = model.get_input_embeddings()
    cache = DynamicCache(config=model.config)
    first = model.generate(inputs_embeds=table(IDS), past_key_values=cache, **GREEDY)
    whole = torch.cat([IDS, first, IDS[:, :3]], dim=1)
    again = model.generate(inputs_embeds=table(whole), past_key_values=cache, **GREEDY)
    assert torch.equal(again, model.generate(whole, **GREEDY)[:, whole.shape[1] :])


def test_compiled_generation_returns_all_that_can_be_asked_for(fresh):
    compiling = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compiling._compile_all_devices = True
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    plain = fresh.generate(IDS, **GREEDY, **asked)
    out = fresh.generate(
        IDS, cache_implementation="static", compile_config=compiling, **GREEDY, **asked
    )
    assert hasattr(fresh, "_compiled_call")
    assert torch.equal(out.sequences, plain.sequences)
    for ours, theirs in zip(out.scores, plain.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(out.hidden_states) == len(plain.hidden_states)


def test_loading_within_a_device(folder, fresh):
    with torch.device("cpu"):
        within = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(within.state_dict()[name], tensor)
    with torch.device("meta"):
        empty = type(fresh)(fresh.config)
    assert all(p.is_meta for p in empty.parameters())


@pytest.mark.parametrize(
    "name", ["gradient_checkpointing_enable", "activation_checkpointing_enable"]
)
def test_both_names_of_checkpointing(fresh, name):
    if not hasattr(fresh, name):
        pytest.skip("this transformers has one name")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older name will go
        getattr(fresh, name)()
    assert fresh.model.gradient_checkpointing


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_adapters_train_with_checkpointing(fresh):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_up", "v_up"])
    model = peft.get_peft_model(fresh, config).train()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(2))
    gradients = []
    for switch in (False, True):
        model.zero_grad()
        if switch:
            enable = getattr(fresh, "activation_checkpointing_enable", None)
            (enable or fresh.gradient_checkpointing_enable)()
            fresh.enable_input_require_grads()
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(g.any() for g in gradients[0])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_few_bits_without_i3lm(folder, tmp_path):
    for bits in (4, 8):
        quantize(folder, tmp_path / f"{bits}", bits=bits)
    code = f"""{BLOCK}
import json, torch
from transformers import AutoModelForCausalLM
for name in ("4", "8"):
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    print(json.dumps(model.generate(torch.tensor({IDS.tolist()}), **{GREEDY}).tolist()))"""
    for bits, line in zip((4, 8), run_python(code, tmp_path).splitlines(), strict=True):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"{bits}")
        assert json.loads(line) == model.generate(IDS, **GREEDY).tolist()
