"""i3 in transformers: the same numbers, with and without caches, with and without i3lm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

from i3lm.folder import CODE
from i3lm.model.configuration_i3 import I3Config
from i3lm.model.modeling_i3 import I3ForCausalLM
from i3lm.presets import PRESETS

WINDOW = 48
GREEDY = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": 3, "pad_token_id": 1}
QUESTION = [{"role": "user", "content": "Who are you?"}]


def prompts(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(6, 290, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def uncached(model):
    return model.generate(prompts(), use_cache=False, **GREEDY)


def test_both_faces_have_one_set_of_names_and_numbers(model, network_and_tokenizer):
    network = network_and_tokenizer[0]
    assert list(model.state_dict()) == list(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            model(prompts()).logits, network(prompts()), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("preset", "total"),
    [("i3-12m", 12_691_186), ("i3-22m", 22_640_626), ("i3-tiny", 711_106)],
)
def test_published_totals(preset, total):
    from dataclasses import asdict

    with torch.device("meta"):
        model = I3ForCausalLM(I3Config(**asdict(PRESETS[preset].architecture)))
    assert model.num_parameters() == total


@pytest.mark.parametrize(
    "settings",
    [{}, {"cache_implementation": "static", "disable_compile": True}, {"prefill_chunk_size": 4}],
    ids=["dynamic", "static", "chunked-prefill"],
)
def test_caches_change_nothing(model, uncached, settings):
    assert torch.equal(model.generate(prompts(), **GREEDY, **settings), uncached)


def test_beams_and_sampling_are_the_same_with_a_cache(model):
    for settings in ({"num_beams": 4}, {"do_sample": True, "temperature": 0.7}):
        results = []
        for use_cache in (True, False):
            torch.manual_seed(7)
            results.append(model.generate(prompts(), use_cache=use_cache, **{**GREEDY, **settings}))
        assert torch.equal(*results)


def test_left_padding_changes_nothing(model, uncached):
    padded = F.pad(prompts(), (5, 0), value=1)
    mask = (padded != 1).long()
    for use_cache in (True, False):
        out = model.generate(padded, attention_mask=mask, use_cache=use_cache, **GREEDY)
        assert torch.equal(out[:, 5:], uncached)
    with torch.no_grad():
        plain = model(prompts()).logits
        assert torch.allclose(model(padded, attention_mask=mask).logits[:, 5:], plain, atol=1e-5)


def test_a_cache_serves_several_turns(model):
    first = model.generate(prompts(1), return_dict_in_generate=True, **GREEDY)
    longer = torch.cat([first.sequences, prompts(1, 5)], dim=1)
    again = model.generate(longer, past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(again, model.generate(longer, use_cache=False, **GREEDY))


def test_inputs_embeds_give_the_same_text(model, uncached):
    embedded = model.get_input_embeddings()(prompts())
    out = model.generate(inputs_embeds=embedded, **GREEDY)
    assert torch.equal(out, uncached[:, 9:])


def test_unused_rows_are_never_generated(model, network_and_tokenizer):
    used = len(network_and_tokenizer[1])
    torch.manual_seed(0)
    hot = {**GREEDY, "do_sample": True, "temperature": 100.0, "top_p": 1.0, "top_k": 0}
    assert model.generate(prompts(8), **hot).max() < used


def test_labels_with_ignored_positions(model):
    labels = prompts().clone()
    labels[:, :4] = -100
    with torch.no_grad():
        out = model(prompts(), labels=labels)
    expected = F.cross_entropy(out.logits[:, 3:-1].flatten(0, 1), labels[:, 4:].flatten())
    assert torch.allclose(out.loss, expected)


def test_hidden_states_and_logits_to_keep(model):
    with torch.no_grad():
        out = model(prompts(), output_hidden_states=True)
        last = model(prompts(), logits_to_keep=1).logits
        hidden = model.model(prompts()).last_hidden_state
    assert len(out.hidden_states) == 3
    assert torch.equal(out.hidden_states[-1], hidden)
    assert torch.allclose(out.logits[:, -1:], last, atol=1e-6)


def test_gradient_checkpointing_gives_the_same_gradients(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    gradients = []
    for switch in (False, True):
        model.zero_grad()
        if switch:
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        model(prompts(), labels=prompts()).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=2e-5), name


def test_the_cards_own_lines_answer(folder):
    answer = pipeline("text-generation", model=str(folder))(QUESTION)
    turns = answer[0]["generated_text"]
    assert turns[0] == QUESTION[0]
    assert turns[1]["role"] == "assistant"


def test_our_own_path_generates_the_same_tokens(model, network_and_tokenizer, uncached):
    from i3lm.generation import Decoder

    network, _ = network_and_tokenizer
    for row, expected in zip(prompts(), uncached, strict=True):
        decoder, ids = Decoder(network), row.tolist()
        fed = ids
        while len(ids) < len(expected):
            token = int(decoder.feed(fed).argmax())
            ids, fed = [*ids, token], [token]
            if token == 3:
                break
        assert ids == expected[: len(ids)].tolist()


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "i3lm":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""


def run_python(code: str, tmp_path: Path) -> str:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_process_without_i3lm_needs_trust_only(folder, tmp_path):
    code = f"""{BLOCK}
from transformers import pipeline
chat = pipeline("text-generation", model={str(folder)!r}, trust_remote_code=True)
turns = chat([{{"role": "user", "content": "Who are you?"}}])[0]["generated_text"]
print(turns[1]["role"], type(chat.model).__module__.split(".")[0])"""
    assert run_python(code, tmp_path).split() == ["assistant", "transformers_modules"]


@pytest.mark.parametrize("order", ["import i3lm, transformers", "import transformers, i3lm"])
def test_importing_i3lm_is_enough(folder, tmp_path, order):
    code = f"""{order}
model = transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})
print(type(model).__module__)"""
    assert run_python(code, tmp_path).strip() == "i3lm.model.modeling_i3"


def test_load_save_load_keeps_code_tokenizer_and_numbers(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    copy = tmp_path / "copy"
    model.save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    assert {name for name in CODE if (copy / name).exists()} == set(CODE)
    code = f"""{BLOCK}
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(copy)!r}, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({str(copy)!r}, trust_remote_code=True)
ids = tokenizer.apply_chat_template([{{"role": "user", "content": "Who?"}}], return_dict=False)
with torch.no_grad():
    print(float(model(torch.tensor([ids])).logits[0, -1, :300].sum()))"""
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], return_dict=False)
    with torch.no_grad():
        expected = float(model(torch.tensor([ids])).logits[0, -1, :300].sum())
    assert float(run_python(code, tmp_path)) == pytest.approx(expected, rel=1e-5)


def test_config_and_base_model_load(folder):
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, I3Config)
    written = json.loads((folder / "config.json").read_text())
    assert all(config.to_dict()[key] == value for key, value in written.items() if key != "dtype")
    assert config.d_model == config.hidden_size
    hidden = AutoModel.from_pretrained(folder)(prompts()).last_hidden_state
    assert hidden.shape == (2, 9, 32)


@pytest.mark.parametrize(
    "sizes",
    [{"hidden_size": 30, "num_attention_heads": 4}, {"rank": 0}, {"used_vocab_size": 10**6}],
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"must|divisible"):
        I3Config(**sizes)


def test_a_fresh_model_is_initialised_like_the_network():
    config = I3Config(vocab_size=300, hidden_size=32, num_hidden_layers=1, rank=4)
    model = I3ForCausalLM(config)
    layer = model.model.layers[0]
    assert not layer.attention.o_proj.weight.any()
    assert not layer.ffn.down.A.any()
    for factor in (layer.ffn.up.B, *layer.attention.qkv_down.weight.chunk(3)):
        gram = factor @ factor.T
        assert torch.allclose(gram, gram[0, 0] * torch.eye(4), atol=1e-4)
        assert gram[0, 0] > 1
    assert all(p.isfinite().all() for p in model.parameters())
