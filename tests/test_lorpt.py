"""LoRPt as a tool, on stock transformers models."""

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from i3lm import lorpt
from i3lm.errors import UserError
from i3lm.lorpt import LoRPtLinear

IDS = torch.arange(12)[None] % 50


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    return request.getfixturevalue(request.param)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_full_rank_changes_nothing(model):
    expected = logits(model)
    report = lorpt.replace(model, {"*mlp*": 32}, force=True)
    assert len(report.rows) in (4, 6)  # GPT-2 has two maps a layer, Llama three
    assert torch.allclose(logits(model), expected, atol=1e-4)
    assert all(row.energy == pytest.approx(1.0) for row in report.rows)


def test_merging_keeps_the_low_rank_model(model):
    lorpt.replace(model, {"*attn*": 4, "*mlp*": 8})
    expected = logits(model)
    count = sum(isinstance(m, LoRPtLinear) for m in model.modules())
    assert lorpt.merge(model) == count > 0
    assert not any(isinstance(m, LoRPtLinear) for m in model.modules())
    assert torch.allclose(logits(model), expected, atol=1e-5)


def test_the_report_counts_real_parameters(model):
    before = model.num_parameters()
    report = lorpt.replace(model, {"*mlp*": 4})
    assert before - model.num_parameters() == report.saved > 0
    assert f"{report.saved:,} parameters saved" in str(report)
    assert all(row.name in str(report) for row in report.rows)


def test_the_first_pattern_counts_and_none_stays_dense(llama):
    report = lorpt.replace(llama, {"*down_proj": None, "model.layers.0.*": 3, "*mlp*": 5})
    ranks = {row.name: row.rank for row in report.rows}
    assert ranks["model.layers.0.mlp.up_proj"] == 3
    assert ranks["model.layers.1.mlp.up_proj"] == 5
    assert not any("down_proj" in name for name in ranks)
    assert isinstance(llama.model.layers[0].mlp.down_proj, nn.Linear)


def test_a_replaced_model_trains_and_generates(model):
    lorpt.replace(model, {"*mlp*": 4}, init="orthogonal")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    out = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape[1] <= 16


def test_tied_weights_are_left_alone(gpt2):
    report = lorpt.replace(gpt2, 2)
    assert "shared" in report.kept["lm_head"]
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight


def test_ranks_that_save_nothing_are_left_alone(llama):
    report = lorpt.replace(llama, {"*q_proj": 16})
    assert not report.rows
    assert "not save" in report.kept["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_approximation_is_the_best_one(rank):
    linear = nn.Linear(9, 7)
    pair = lorpt.from_linear(linear, rank)
    weight = linear.weight.detach().double()
    error = torch.linalg.matrix_norm(weight - (pair.A @ pair.B).detach().double()) ** 2
    tail = (torch.linalg.svdvals(weight)[rank:] ** 2).sum()
    assert float(error) == pytest.approx(float(tail), abs=1e-6)
    assert torch.allclose(pair.A.norm(dim=0), pair.B.norm(dim=1), rtol=1e-4)  # balanced
    assert torch.equal(pair.bias, linear.bias)


def test_states_modes_and_types_survive(llama):
    llama.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    llama.to(torch.bfloat16).train()
    lorpt.replace(llama, {"*up_proj": 4})
    pair = llama.model.layers[0].mlp.up_proj
    assert pair.A.dtype == torch.bfloat16
    assert pair.training
    assert not pair.A.requires_grad
    assert llama.model.layers[1].mlp.up_proj.A.requires_grad
    other = copy.deepcopy(llama)
    other.load_state_dict(llama.state_dict())
    dense = lorpt.to_linear(pair)
    assert dense.weight.dtype == torch.bfloat16
    assert not dense.weight.requires_grad


@pytest.mark.parametrize(
    ("ranks", "settings", "message"),
    [
        ({"*mlpp*": 4}, {}, "no linear layer matches"),
        ({"*mlp*": 0}, {}, "impossible"),
        ({"*mlp*": 33}, {"force": True}, "impossible"),
        (4, {"init": "magic"}, "must be"),
    ],
)
def test_mistakes_are_named(llama, ranks, settings, message):
    expected = logits(llama)
    with pytest.raises(UserError, match=message):
        lorpt.replace(llama, ranks, **settings)
    assert torch.equal(logits(llama), expected)
    with pytest.raises(UserError, match="impossible"):
        lorpt.from_linear(nn.Linear(3, 3), 4)
