"""Folders in 4 and 8 bits: the numbers, the two ways to load them, what is refused."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import i3lm
from i3lm.errors import UserError
from i3lm.folder import load_folder, save_folder
from i3lm.model.network import I3Network
from i3lm.model.stored import StoredMatrix
from i3lm.model.stored_i3 import GROUP, LEVELS, nearest
from i3lm.presets import Architecture
from i3lm.quantizing import RANGES, quantize
from i3lm.tokenizer import ChunkTokenizer, rule

BITS = pytest.mark.parametrize("bits", [4, 8])
IDS = torch.tensor([[2, 40, 50, 60, 70, 80, 90, 100]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose branches are not silent; rank 60 leaves groups that cross rows."""
    torch.manual_seed(0)
    tokenizer = ChunkTokenizer([*rule.SPECIAL_TOKENS, *rule.BYTE_TOKENS, *map(chr, range(33, 127))])
    sizes = Architecture(
        vocab_size=len(tokenizer) + 40, hidden_size=72, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=144, max_position_embeddings=64, rank=60, state_size=4,
        used_vocab_size=len(tokenizer),
    )  # fmt: skip
    network = I3Network(sizes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("model")
    save_folder(path, network, tokenizer)
    return path


def rounded(x: torch.Tensor, bits: int) -> StoredMatrix:
    return StoredMatrix(*nearest(x, bits, RANGES), x.shape, bits)


@BITS
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 31), (64, 96)])
def test_numbers_are_the_nearest_of_their_scale(bits, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stored = rounded(x, bits)
    scale = stored.scales.float().repeat_interleave(GROUP)[: x.numel()].view(shape)
    best = (x / scale).round().clamp(-LEVELS[bits], LEVELS[bits]) * scale
    assert torch.equal(stored.read(), best)
    assert not rounded(torch.zeros(shape), bits).read().any()


def test_a_clipped_range_is_taken_where_it_is_better():
    x = torch.full((1, GROUP), 0.5)
    x[0, 0] = 1.0
    plain = (x * 7).round() / 7
    assert (rounded(x, 4).read() - x).square().sum() < (plain - x).square().sum()


@BITS
def test_a_folder_is_smaller_and_alike(folder, tmp_path, bits):
    out = tmp_path / "small"
    result = quantize(folder, out, bits)
    assert result["bytes_after"] < result["bytes_before"] * (0.26 if bits == 4 else 0.4)
    assert result["error"] == pytest.approx(0.083 if bits == 4 else 0.0048, rel=0.2)
    before, after = load_folder(folder), load_folder(out)
    assert after.weight_bits == bits
    for (name, p), q in zip(
        before.network.named_parameters(), after.network.parameters(), strict=True
    ):
        assert torch.allclose(p, q, atol=0.1 if bits == 4 else 0.004), name
    assert i3lm.info(out)["weight_bits"] == bits
    assert f"{bits} bits a number" in (out / "README.md").read_text()


@BITS
def test_transformers_computes_what_our_path_does(folder, tmp_path, bits):
    from transformers import AutoModelForCausalLM

    out, again = tmp_path / "small", tmp_path / "again"
    quantize(folder, out, bits)
    model = AutoModelForCausalLM.from_pretrained(out)
    ours = load_folder(out).network
    with torch.no_grad():
        wanted = ours(IDS)
        assert torch.allclose(model(IDS).logits, wanted, atol=1e-4)
        used = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        whole = sum(4 * p.numel() for p in ours.parameters())
        assert used < whole * (0.26 if bits == 4 else 0.4)
    reply = model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert reply.shape == (1, IDS.shape[1] + 5)
    model.save_pretrained(again)
    assert (again / "stored_i3.py").exists()
    saved = load_file(again / "model.safetensors")
    original = load_file(out / "model.safetensors")
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name].to(t.dtype), t) for name, t in original.items())
    reloaded = AutoModelForCausalLM.from_pretrained(again)
    with torch.no_grad():
        assert torch.equal(reloaded(IDS).logits, model(IDS).logits)
    half = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    with torch.no_grad():
        assert half(IDS).logits.dtype == torch.bfloat16


def test_it_loads_without_i3lm(folder, tmp_path):
    out = tmp_path / "small"
    quantize(folder, out)
    code = f"""
import sys
sys.modules["i3lm"] = None
from transformers import AutoModel, AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)
assert model.lm_head.A_codes.any()
base = AutoModel.from_pretrained({str(out)!r}, trust_remote_code=True)
ours, theirs = base.layers[0].attention.q_up, model.model.layers[0].attention.q_up
assert ours.weight_codes.equal(theirs.weight_codes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_refused(folder, tmp_path):
    for bits in (0, 2, 16, 32):
        with pytest.raises(UserError, match="must be 4 or 8"):
            quantize(folder, tmp_path / "x", bits)
    out = tmp_path / "small"
    quantize(folder, out)
    with pytest.raises(UserError, match="not empty"):
        quantize(folder, out)
    with pytest.raises(UserError, match="already"):
        quantize(out, tmp_path / "smaller")
    assert not (tmp_path / "smaller").exists()
    state = load_file(out / "model.safetensors")
    name = next(name for name in state if name.endswith("_codes"))
    save_file({**state, name: state[name][:-1].clone()}, out / "model.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        load_folder(out)
