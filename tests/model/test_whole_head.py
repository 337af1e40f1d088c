"""The head's loss in one call, against float64 and against torch's products."""

import pytest
import torch
import torch.nn.functional as F

from i3lm.model import COMPILED, kernels, ops_i3, whole_head

pytestmark = pytest.mark.skipif(
    not COMPILED or not kernels.multiplies_bfloat16(),
    reason="no compiled kernels, or no bfloat16 products on this processor",
)
SIZES = {  # tokens, width, rank, classes
    "one block": (32, 32, 32, 2),
    "whole rows": (64, 96, 32, 64),
    "rows without a class": (96, 64, 96, 77),
    "many classes": (160, 32, 32, 1033),
}


def drawn(tokens, width, rank, classes):
    torch.manual_seed(tokens)
    shapes = (tokens, width), (classes, rank), (rank, width), (classes,)
    scales = 1.0, 0.5, width**-0.5, 0.3
    tensors = [scale * torch.randn(shape) for scale, shape in zip(scales, shapes, strict=True)]
    return tensors, torch.randint(0, classes, (tokens,))


def through_autograd(tensors, targets):
    tensors = [t.clone().requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops_i3.head_loss(*tensors, targets)
    (0.5 * loss).backward()
    return loss.item(), [t.grad.double() for t in tensors]


def truth_of(tensors, targets):
    hidden, A, B, bias = tensors = [t.double().requires_grad_() for t in tensors]
    loss = F.cross_entropy(hidden @ (A @ B).T + bias, targets, reduction="sum")
    (0.5 * loss).backward()
    return loss.item(), [t.grad for t in tensors]


def errors(found, truth):
    return [float((a - b).norm() / b.norm()) for a, b in zip(found[1], truth[1], strict=True)]


@pytest.mark.parametrize("logits", [1 << 22, 2048])  # at once: all, or those of 32 tokens
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_it_is_as_near_the_truth_as_torchs_products(monkeypatch, instructions, sizes, logits):
    monkeypatch.setattr(whole_head, "LOGITS", logits)
    tensors, targets = drawn(*sizes)
    truth, calls = truth_of(tensors, targets), []
    kernel = ops_i3.head_kernel
    monkeypatch.setattr(ops_i3, "head_kernel", lambda *a: calls.append(1) or kernel(*a))
    mine = through_autograd(tensors, targets)
    monkeypatch.setattr(ops_i3, "head_kernel", None)
    plain = through_autograd(tensors, targets)
    assert calls
    assert mine[0] == pytest.approx(truth[0], rel=3e-3)
    bounds = [1.3 * error + 1e-3 for error in errors(plain, truth)]
    assert all(error < bound for error, bound in zip(errors(mine, truth), bounds, strict=True))


def test_a_loss_without_gradients_is_the_same(instructions):
    tensors, targets = drawn(*SIZES["rows without a class"])
    loss, none = whole_head.head_loss(*tensors, targets, False)
    again, grads = whole_head.head_loss(*tensors, targets, True)
    assert none is None
    assert torch.equal(loss, again)
    assert [g.shape for g in grads] == [t.shape for t in tensors]


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch, block):
    tensors, targets = drawn(*SIZES["one block"])
    tensors = [t.requires_grad_() for t in tensors]
    kernel, wanted = ops_i3.head_kernel, []
    monkeypatch.setattr(ops_i3, "head_kernel", lambda *a: wanted.append(a[-1]) or kernel(*a))
    with torch.autocast("cpu", torch.bfloat16):
        loss = ops_i3.head_loss(*tensors, targets)
        with block():
            again = ops_i3.head_loss(*tensors, targets)
    assert wanted == [True, False]
    assert torch.equal(loss, again)


def test_its_sums_do_not_depend_on_the_number_of_threads(on_threads):
    tensors, targets = drawn(*SIZES["many classes"])
    found = []
    for threads in (1, 2):
        on_threads(threads)
        found.append(whole_head.head_loss(*tensors, targets, True))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize(
    "sizes", [(33, 32, 32, 9), (32, 48, 32, 9), (32, 32, 8, 9), (0, 32, 32, 9)]
)
def test_other_sizes_are_left_to_torch(sizes):
    tensors, targets = drawn(*sizes)
    assert whole_head.head_loss(*tensors, targets, True) is None


def test_float64_is_left_to_torch():
    tensors, targets = drawn(*SIZES["one block"])
    assert whole_head.head_loss(*(t.double() for t in tensors), targets, True) is None
