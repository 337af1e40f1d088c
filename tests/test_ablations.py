"""Ablations of `benchmarks.quality`: each changes what it names, and wrong ones are refused."""

import math

import pytest
import torch
from benchmarks.quality import ablations
from benchmarks.quality.contenders import Budget, build

from i3lm.data import Loader, open_source, prepare
from i3lm.errors import UserError
from i3lm.model.layers_i3 import LoRPtLinear
from i3lm.model.network import I3Network
from i3lm.presets import PRESETS
from i3lm.training import loop

CHANGED = """
heads=2 state_bits=8 weight_bits=8 optimizer=lion dropout=0.5 matrix=0.1 table=0.1 vector=0.1
momentum=0.5 beta1=0.5 beta2=0.5 decay=9 table_decay=9 product_decay=9 flat=0.01 clip=0.01 warmup=1
loud=1 normal=0.02 gauss=1 induction=0 tau=3 w=0.5 embeddings=0.5 anywhere=1 short=0.5
outer=2 inner=0.5 ramp=0.5 spectral=0.5 balance=2
"""
VALUES = {
    **dict(change.split("=") for change in CHANGED.split()),
    "radius": "0.5+induction=0",  # alone it would leave half a head
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text.inst.txt"
    line = "[INST] where is the {} cat [/INST] on the {} mat [INST] thanks [/INST] bye\n"
    text.write_text("".join(line.format(n, n * 7) for n in range(400)))
    return prepare(open_source([str(text)]), folder / "data", vocab_size=400, held_out=0.05)


@pytest.fixture(autouse=True)
def schedule(monkeypatch):
    """Put the schedule back that `flat` replaces."""
    monkeypatch.setattr(loop, "learning_rate_factor", loop.learning_rate_factor)


def trained(name: str, corpus) -> torch.Tensor:
    """Return all weights after four steps, as one vector."""
    contender = build(name, corpus, "i3-tiny", 256, seed=0, context=64)
    for _ in contender.steps(Budget(4 * 256, None)):
        pass
    return torch.cat([p.detach().float().flatten() for p in contender.network.parameters()])


@pytest.fixture(scope="module")
def as_it_is(corpus):
    return trained("i3lm", corpus)


def test_a_run_is_the_same_again(corpus, as_it_is):
    assert torch.equal(trained("i3lm", corpus), as_it_is)


def test_all_changes_have_a_value_here():
    assert {*VALUES} == {
        *(*ablations.SIZES, *ablations.SETTINGS, *ablations.STARTS, *ablations.CHANGES)
    }


@pytest.mark.parametrize("name", VALUES)
def test_a_change_changes_what_is_learned(corpus, as_it_is, name):
    changed = trained(f"i3lm+{name}={VALUES[name]}", corpus)
    assert changed.isfinite().all()
    assert changed.shape != as_it_is.shape or (changed - as_it_is).abs().max() > 1e-6


def test_changes_that_name_what_is_there_change_nothing(corpus, as_it_is):
    same = "i3lm+heads=4+momentum=0.95+flat=0.4+loud=0+anywhere=0+short=0"
    same += "+ramp=0+balance=0+outer=1+inner=1"
    for last in ("induction=1", "gauss=0"):  # they do not go together
        assert torch.equal(trained(f"{same}+{last}", corpus), as_it_is)


def network(changes: str) -> I3Network:
    torch.manual_seed(0)
    made = I3Network(PRESETS["i3-tiny"].architecture)
    ablations.start(made, ablations.parse(changes.split("+")))
    return made


@pytest.mark.parametrize("changes", ["loud=1+normal=0.02", "normal=0.02+loud=1"])
def test_the_start_is_changed_in_one_order(changes):
    layer = network(changes).model.layers[0]
    for factor in (layer.ffn.down.A, layer.ffn.down.B, layer.attention.o_proj.weight):
        assert factor.detach().std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    "changes", ["induction=0+radius=0.9+tau=3", "tau=3+radius=0.9+induction=0"]
)
def test_what_sets_less_comes_later(changes):
    mix = network(changes).model.layers[0].recurrence
    assert torch.equal(mix.A, 0.9 * torch.eye(len(mix.A)))
    w = mix.w_mix.detach().sigmoid()
    assert w.min() == pytest.approx(math.exp(-1), abs=1e-4)
    assert w.max() == pytest.approx(math.exp(-1 / 3), abs=1e-4)


@pytest.mark.parametrize(
    "change",
    ["speed=1", "flat", "flat=", "heads=x", "heads=2.5", "w=1", "tau=1", "clip=1+clip=2"],
)
def test_unknown_changes(change):
    with pytest.raises(UserError, match=r"no change is written .*NAME=NUMBER"):
        ablations.parse(change.split("+"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ("radius=0.5", "radius needs induction=0"),
        ("normal=0.02+induction=0", "induction and normal set the same"),
        ("tau=3+w=0.5", "tau and w set the same"),
        ("loud=1+weight_bits=8", "loud needs weights that are not stored"),
        ("product_decay=1+weight_bits=4", "product_decay needs weights"),
        ("inner=2+weight_bits=8", "inner needs weights"),
        ("balance=2+weight_bits=8", "balance needs weights"),
        ("balance=2+state_bits=8", "balance forgets states of 32 bits"),
    ],
)
def test_changes_that_do_not_go_together(changes, reason):
    with pytest.raises(UserError, match=reason):
        ablations.parse(changes.split("+"))


def test_short_windows_and_what_they_do_not_go_with(corpus):
    with pytest.raises(UserError, match="add dropout=0"):
        trained("i3lm+short=0.5+dropout=0.2", corpus)
    with pytest.raises(UserError, match="not 62 tokens"):
        build("i3lm+short=0.5", corpus, "i3-tiny", 248, seed=0, context=62)


def first_step(name: str, corpus) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Return the names of all weights, what they were, and how far the first step moves them."""
    contender = build(name, corpus, "i3-tiny", 256, seed=0, context=64)
    before = [p.detach().clone() for p in contender.network.parameters()]
    next(contender.steps(Budget(4 * 256, None)))
    return [
        (name, old, p.detach() - old)
        for (name, p), old in zip(contender.network.named_parameters(), before, strict=True)
    ]


def test_outer_and_inner_matrices_move_so_many_times_as_far(corpus):
    far = 0
    for plain, outer, inner in zip(
        *(first_step(f"i3lm{more}", corpus) for more in ("", "+outer=3", "+inner=2")), strict=True
    ):
        name, old, moved = plain
        matrix = old.ndim == 2 and not name.startswith(("model.embed_", "lm_head.A"))
        matrix = matrix and not name.endswith("recurrence.A")
        tall = old.shape[0] // (3 if "qkv_down" in name else 1) - old.shape[-1] if matrix else 0
        times = 3 if tall > 0 else 1, 2 if tall < 0 else 1
        for (_, _, found), factor in zip((outer, inner), times, strict=True):
            torch.testing.assert_close(found, factor * moved, rtol=1e-3, atol=1e-6)
        far += matrix and float(moved.abs().max()) > 1e-4
    assert far > 10


def test_a_ramp_takes_half_steps_and_reads_on(corpus, monkeypatch):
    read, windows = list[int](), Loader.windows

    def noted(loader, first: int, count: int):
        read.extend(range(first, first + count))
        return windows(loader, first, count)

    monkeypatch.setattr(Loader, "windows", noted)
    contender = build("i3lm+ramp=0.5", corpus, "i3-tiny", 256, seed=0, context=64)
    counts = [progress.tokens for progress in contender.steps(Budget(4 * 256, None))]
    assert counts == [128, 256, 384, 512, 768, 1024]
    assert read == [*range(16)]
    with pytest.raises(UserError, match="not 3 sequences"):
        build("i3lm+ramp=0.5", corpus, "i3-tiny", 192, seed=0, context=64)


def test_spectral_moves_a_pair_by_its_norms(corpus):
    plain, found = (first_step(f"i3lm{more}", corpus) for more in ("", "+spectral=0.01"))
    old = {name: before.double() for name, before, _ in plain}
    for (name, _, moved), (_, _, slowed) in zip(plain, found, strict=True):
        if ".ffn." in name and name.endswith((".A", ".B")):
            pair = name[:-1]
            norms = sum(torch.linalg.matrix_norm(old[pair + part], 2) for part in "AB")
            torch.testing.assert_close(
                slowed, (moved * 0.01 / 0.0025 / (norms + 1)).float(), rtol=1e-3, atol=1e-6
            )
        else:
            assert torch.equal(moved, slowed)


def test_balance_keeps_products_and_halves_them_evenly(corpus, monkeypatch):
    contender = build("i3lm+balance=1", corpus, "i3-tiny", 256, seed=0, context=64)
    pairs = [p for p in contender.network.model.layers.modules() if isinstance(p, LoRPtLinear)]
    steps = contender.steps(Budget(4 * 256, None))
    for _ in range(2):
        next(steps)
    products = [pair.A.detach() @ pair.B.detach() for pair in pairs]
    monkeypatch.setattr(loop.Trainer, "_accumulate_gradients", stopped)
    with pytest.raises(InterruptedError):
        next(steps)  # at half of the run the pairs are halved before the gradients
    for pair, product in zip(pairs, products, strict=True):
        A, B = pair.A.detach(), pair.B.detach()
        torch.testing.assert_close(A @ B, product, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(A.t() @ A, B @ B.t(), rtol=1e-4, atol=1e-5)


def stopped(trainer):
    raise InterruptedError


@pytest.mark.parametrize("name", ["gpt-muon", "gpt-adamw"])
def test_the_gpt_takes_dropout_and_decay(corpus, name):
    as_it_is, both = trained(name, corpus), trained(f"{name}+decay=20+dropout=0", corpus)
    assert both.norm() < as_it_is.norm()
    assert not torch.equal(trained(f"{name}+dropout=0.5", corpus), as_it_is)
    for change in ("heads=2", "decay=1+table=1"):
        with pytest.raises(UserError, match=r"\+dropout and \+decay for the GPT"):
            trained(f"{name}+{change}", corpus)
    with pytest.raises(UserError, match=r"\+dropout and \+decay for the GPT"):
        trained("published+decay=1", corpus)
