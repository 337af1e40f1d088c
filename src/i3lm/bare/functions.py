"""Functions on tensors, by torch's names."""

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from i3lm.bare import tensor as types
from i3lm.bare.products import multiply
from i3lm.bare.tensor import META, Device, Tensor, array, float32
from i3lm.native import tensor_call

Made = Callable[..., Tensor]
QUERIES = 128  # whose scores are there at once


class Meta(Tensor):
    """A tensor that has a shape and no numbers."""

    device, is_cpu, is_meta = META, False, True

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(np.broadcast_to(np.float32(0), tuple(shape)))

    def is_contiguous(self) -> bool:
        """Say whether its rows would follow one another."""
        return True


def _made(make: Callable[[tuple[int, ...], Any], np.ndarray]) -> Made:
    def run(*sizes: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
        shape = types.shape_of(sizes)
        if (Device.usual[-1] if device is None else Device(device)) == META:
            return Meta(shape)
        if dtype == types.bfloat16:
            return Tensor(make(shape, float32)).bfloat16()
        return Tensor(make(shape, dtype or float32))

    return run


def _like(make: Callable[..., np.ndarray]) -> Made:
    def run(x: Tensor, *value: Any, dtype: Any = None, **_: Any) -> Tensor:
        return Tensor(make(x.shape, *value, dtype or x.dtype))

    return run


empty, zeros, ones = _made(np.empty), _made(np.zeros), _made(np.ones)
empty_like, zeros_like, ones_like = _like(np.empty), _like(np.zeros), _like(np.ones)


def tensor(values: Any, dtype: Any = None, **_: Any) -> Tensor:
    """Return a tensor of Python's numbers: float32 where they are no whole ones."""
    a = np.array(values)
    return Tensor(a.astype(dtype or (float32 if a.dtype.kind == "f" else a.dtype)))


def from_numpy(a: np.ndarray) -> Tensor:
    """Return a tensor that shares its numbers with an array."""
    return Tensor(a)


def full(shape: Sequence[int], value: float, **_: Any) -> Tensor:
    """Return equal numbers: whole ones where the value is one."""
    return Tensor(np.full(shape, value))


def arange(*ends: int, dtype: Any = None, **_: Any) -> Tensor:
    """Return whole numbers in their order."""
    return Tensor(np.arange(*ends, dtype=dtype or types.int64))


def linspace(begin: float, end: float, count: int) -> Tensor:
    """Return numbers at equal distances."""
    return Tensor(np.linspace(begin, end, count, dtype=np.float32))


def eye(size: int, **_: Any) -> Tensor:
    """Return the unit matrix."""
    return Tensor(np.eye(size, dtype=np.float32))


def _of_one(operation: Callable[..., Any]) -> Made:
    return lambda x: Tensor(operation(x.a))


exp, log, cos, diag = _of_one(np.exp), _of_one(np.log), _of_one(np.cos), _of_one(np.diag)
erfc = _of_one(np.vectorize(math.erfc, otypes=[np.float64]))
solve: Made = lambda a, b: Tensor(np.linalg.solve(a.a, b.a))  # noqa: E731


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x))."""
    return Tensor(1 / (1 + np.exp(-x.a)))


def isfinite(x: Tensor) -> Tensor:
    """Return where it is a finite number."""
    return Tensor(np.isfinite(x.float().a))


def lerp(x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Return what is this share of the way from x to y."""
    return Tensor(x.a + weight * (y.a - x.a))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return tensors one after the other."""
    return Tensor(np.concatenate([t.a for t in tensors], dim))


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return tensors as the parts of one."""
    return Tensor(np.stack([t.a for t in tensors], dim))


def index_select(table: Tensor, axis: int, rows: Tensor, out: Tensor) -> Tensor:
    """Fill `out` with rows of a table."""
    np.take(table.a, rows.a, axis, out=out.a, mode="clip")
    return out


def foreach_add_(ones: Sequence[Tensor], others: Sequence[Tensor], alpha: Any = 1) -> None:
    """Add alpha times the others to the ones."""
    for one, other in zip(ones, others, strict=True):
        one.add_(other, alpha)


def foreach_mul_(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply tensors by a number."""
    for each in tensors:
        each.mul_(factor)


def fused_adamw_(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    _: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
) -> None:
    """Take a step of AdamW."""
    assert not amsgrad
    assert not maximize
    columns = parameters, grads, means, squares
    addresses = ((ctypes.c_void_p * len(c))(*(t.data_ptr() for t in c)) for c in columns)
    step = float(steps[0])
    unbias = 1 / (1 - beta1**step), (1 - beta2**step) ** -0.5
    tensor_call(
        "i3_adamw",
        len(parameters),
        tensor([p.numel() for p in parameters]),
        *addresses,
        *map(float, (lr, beta1, beta2, weight_decay, eps, *unbias)),
    )


# torch.nn.functional
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias."""
    rows = types.numbers(x).reshape(-1, x.shape[-1])  # many, so that threads share them
    y = multiply(rows, types.numbers(weight).T).reshape(*x.shape[:-1], -1)
    return types.result(y if bias is None else y + types.numbers(bias), x, weight)


def embedding(rows: Tensor, table: Tensor) -> Tensor:
    """Return rows of a table."""
    return Tensor(table.a[rows.a])


def pad(x: Tensor, widths: Sequence[int], value: float = 0) -> Tensor:
    """Return x with more before and after; `widths` begin with the last size."""
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    whole = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    return Tensor(np.pad(x.a, whole, constant_values=value))


def gelu(x: Tensor) -> Tensor:
    """Return x Phi(x)."""
    y, rows = empty_like(x), x.contiguous().view(-1, x.shape[-1])
    tensor_call("i3_gelu_forward_f32", *rows.shape, rows, zeros(rows.shape[1]), y)
    return y


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Return the rows with mean 0 and variance 1, times `gain`, plus `shift`."""
    centred = x.a - x.a.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    variance[~np.isfinite(variance)] = np.nan  # what overflows must not end as zeros
    scale = 1 / np.sqrt(variance + eps)
    return Tensor(centred * scale * gain.a + shift.a)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v for q (B, H, T, K); a mask says what may be attended."""
    heads, steps = q.shape[:-2], q.shape[-2]
    # Heads first, for threads to share; contiguous, since numpy multiplies others slowly.
    flat_q, flat_k, flat_v = (
        np.ascontiguousarray(t.a.reshape(-1, *t.shape[-2:])) for t in (q, k, v)
    )
    mask = array(attn_mask)
    out = np.empty((*flat_q.shape[:-1], v.shape[-1]), np.float32)
    for begin in range(0, steps, QUERIES):  # all scores at once would be (H, T, T) numbers
        end = min(begin + QUERIES, steps)
        keys = end if is_causal else k.shape[-2]
        scores = multiply(flat_q[:, begin:end], flat_k[:, :keys].swapaxes(1, 2))
        scores *= np.float32(q.shape[-1] ** -0.5)
        if is_causal:
            scores[:, np.arange(keys) > np.arange(begin, end)[:, None]] = -np.inf
        elif mask is not None:
            whole = scores.reshape(*heads, end - begin, keys)
            whole[~np.broadcast_to(mask, (*heads, steps, keys))[..., begin:end, :]] = -np.inf
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        out[:, begin:end] = multiply(scores, flat_v[:, :keys])
    return Tensor(out.reshape(*heads, steps, -1))


def bmm(x: Tensor, y: Tensor) -> Tensor:
    """Return the products of matrices."""
    return x @ y  # type: ignore[operator]


# What a program asks about itself.
class Mode(contextlib.ContextDecorator):
    """A state of autograd, of which there is none."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, function: Any = None) -> Any:
        """Return the decorated function as it is."""
        return self if function is None else function

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


_low = [False]


@contextlib.contextmanager
def autocast(device: str, dtype: Any = types.bfloat16, enabled: bool = True) -> Iterator[None]:
    """Let products run in bfloat16 within the block."""
    before, _low[0] = _low[0], enabled
    try:
        yield
    finally:
        _low[0] = before


def is_autocast_enabled(device: str) -> bool:
    """Say whether products run in bfloat16."""
    return _low[0]


class Function:
    """A step with a backward pass of its own, of which only the way forward is gone."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """Return what the way forward gives."""
        return cls.forward(_Context(), *arguments)  # type: ignore[attr-defined]


class _Context:
    needs_input_grad = (False,)

    def save_for_backward(self, *_: Any) -> None: ...
