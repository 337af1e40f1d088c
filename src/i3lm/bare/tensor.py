"""A tensor in memory: what training asks of torch's between two kernels, over a numpy array."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from i3lm.bare.products import multiply
from i3lm.native import tensor_call

float64, float32, float16 = np.dtype("f8"), np.dtype("f4"), np.dtype("f2")
int64, int32, int8, uint8 = np.dtype("i8"), np.dtype("i4"), np.dtype("i1"), np.dtype("u1")
bool_ = np.dtype("?")
IN_CACHE = 1 << 14  # numbers whose intermediate results stay in a core's cache
bfloat16 = np.dtype([("bfloat16", "<u2")])  # numpy has none; the kernels read its bits


class Size(tuple):
    """A shape."""

    def numel(self) -> int:
        """The number of numbers."""
        return int(np.prod(self, dtype=np.int64))


class Device:
    """Where a tensor is: in memory, or, of one that has nothing but a shape, "meta"."""

    usual: ClassVar[list["Device"]] = []  # where new tensors are: the last one's place

    def __init__(self, kind: "str | Device") -> None:
        self.type: str = kind.type if isinstance(kind, Device) else kind
        if self.type not in ("cpu", "meta"):
            raise RuntimeError(f"no device {self.type!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.type == other.type

    def __hash__(self) -> int:
        return hash(self.type)

    def __repr__(self) -> str:
        return f"device(type={self.type!r})"

    def __enter__(self) -> None:
        """Let new tensors be there until the block ends."""
        Device.usual.append(self)

    def __exit__(self, *_: object) -> None:
        Device.usual.pop()


CPU, META = Device("cpu"), Device("meta")
Device.usual.append(CPU)


def array(x: Any) -> Any:
    """Return the numbers of a tensor; anything else as it is."""
    return x.a if isinstance(x, Tensor) else x


def shape_of(sizes: Sequence[Any]) -> tuple[int, ...]:
    """Return the shape that was given as sizes, or as one tuple of them."""
    one = len(sizes) == 1 and isinstance(sizes[0], tuple | list)
    return tuple(sizes[0]) if one else tuple(sizes)


class Tensor:
    """An array with the names that torch has for what is done to it."""

    requires_grad = False
    grad: "Tensor | None" = None
    device = CPU
    is_cpu, is_meta = True, False
    _backward_hooks = _post_accumulate_grad_hooks = None

    def __init__(self, a: Any) -> None:
        self.a: np.ndarray = np.asarray(a)

    # What it is.
    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers."""
        return self.a.dtype

    @property
    def shape(self) -> Size:
        """Its sizes."""
        return Size(self.a.shape)

    @property
    def ndim(self) -> int:
        """The number of sizes."""
        return self.a.ndim

    @property
    def data(self) -> "Tensor":
        """The same numbers."""
        return Tensor(self.a)

    @data.setter
    def data(self, other: "Tensor") -> None:
        self.a = other.a

    def data_ptr(self) -> int:
        """Return its address."""
        return self.a.__array_interface__["data"][0]

    def numel(self) -> int:
        """Return the number of numbers."""
        return self.a.size

    def element_size(self) -> int:
        """Return the bytes of a number."""
        return self.a.itemsize

    def is_contiguous(self) -> bool:
        """Say whether its rows follow one another."""
        return self.a.flags.c_contiguous

    def is_floating_point(self) -> bool:
        """Say whether it holds no whole numbers."""
        return self.a.dtype.kind in "fV"

    def __len__(self) -> int:
        return len(self.a)

    def __iter__(self) -> Iterator["Tensor"]:
        return (Tensor(row) for row in self.a)

    def __float__(self) -> float:
        return float(self.a)

    def __int__(self) -> int:
        return int(self.a)

    def __bool__(self) -> bool:
        return bool(self.a)

    def __neg__(self) -> "Tensor":
        return Tensor(-self.a)

    def __repr__(self) -> str:
        return f"Tensor({self.a!r})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.a, dtype, copy=copy)

    def tolist(self) -> Any:
        """Return its numbers as Python's."""
        return self.a.tolist()

    def numpy(self) -> np.ndarray:
        """Return its numbers, shared."""
        return self.a

    # The same numbers, seen differently.
    def detach(self) -> "Tensor":
        """Return the same numbers."""
        return Tensor(self.a)

    cpu = detach

    def view(self, *sizes: Any) -> "Tensor":
        """Return the same numbers in another shape, or their bytes as another type."""
        if isinstance(sizes[0], np.dtype):
            return Tensor(self.a.view(sizes[0]))
        return Tensor(self.a.reshape(shape_of(sizes)))

    reshape = view

    def flatten(self, first: int = 0, last: int = -1) -> "Tensor":
        """Return the same numbers with the sizes from `first` to `last` as one."""
        last %= self.a.ndim
        shape = self.a.shape
        return Tensor(self.a.reshape(*shape[:first], -1, *shape[last + 1 :]))

    def unflatten(self, axis: int, sizes: Sequence[int]) -> "Tensor":
        """Return the same numbers with one size as several."""
        axis %= self.a.ndim
        return Tensor(self.a.reshape(*self.a.shape[:axis], *sizes, *self.a.shape[axis + 1 :]))

    def t(self) -> "Tensor":
        """Return the transpose."""
        return Tensor(self.a.T)

    @property
    def mT(self) -> "Tensor":
        """The transposes of its matrices."""
        return Tensor(self.a.swapaxes(-1, -2))

    def transpose(self, one: int, two: int) -> "Tensor":
        """Return it with two sizes exchanged."""
        return Tensor(self.a.swapaxes(one, two))

    def tril(self) -> "Tensor":
        """Return a copy with zeros above the diagonals of its matrices."""
        return Tensor(np.tril(self.a))

    def split(self, sizes: int | Sequence[int], axis: int = 0) -> list["Tensor"]:
        """Return its parts of these sizes."""
        if isinstance(sizes, int):
            sizes = [
                min(sizes, self.a.shape[axis] - i) for i in range(0, self.a.shape[axis], sizes)
            ]
        return [Tensor(part) for part in np.split(self.a, np.cumsum(sizes)[:-1], axis)]

    def chunk(self, count: int, dim: int = 0) -> list["Tensor"]:
        """Return `count` parts of equal size."""
        return [Tensor(part) for part in np.split(self.a, count, dim)]

    def __getitem__(self, at: Any) -> "Tensor":
        at = tuple(map(array, at)) if isinstance(at, tuple) else array(at)
        return Tensor(self.a[at])

    def __setitem__(self, at: Any, value: Any) -> None:
        at = tuple(map(array, at)) if isinstance(at, tuple) else array(at)
        self.a[at] = array(value)

    # Copies.
    def clone(self, **_: Any) -> "Tensor":
        """Return a copy."""
        return Tensor(self.a.copy())

    def contiguous(self) -> "Tensor":
        """Return it with rows that follow one another."""
        return self if self.is_contiguous() else Tensor(np.ascontiguousarray(self.a))

    def to(self, *targets: Any, **_: Any) -> "Tensor":
        """Return it as another type; itself for a device."""
        for target in targets:
            if isinstance(target, np.dtype):
                return converted(self, target)
        return self

    def bfloat16(self) -> "Tensor":
        """Return it in bfloat16, rounded to the nearest, to even."""
        return converted(self, bfloat16)

    def new_empty(self, *sizes: Any, dtype: np.dtype | None = None, **_: Any) -> "Tensor":
        """Return an uninitialised tensor of its type."""
        return Tensor(np.empty(shape_of(sizes), dtype or self.dtype))

    def new_zeros(self, *sizes: Any, dtype: np.dtype | None = None, **_: Any) -> "Tensor":
        """Return zeros of its type."""
        return Tensor(np.zeros(shape_of(sizes), dtype or self.dtype))

    def new_full(self, sizes: Any, value: Any, dtype: np.dtype | None = None) -> "Tensor":
        """Return equal numbers of its type."""
        return Tensor(np.full(sizes, value, dtype or self.dtype))

    # Changes in place.
    def copy_(self, other: Any) -> "Tensor":
        """Take the numbers of another."""
        np.copyto(self.a, converted(other, self.dtype).a)
        return self

    def zero_(self) -> "Tensor":
        """Become zero."""
        self.a.fill(0)
        return self

    def add_(self, other: Any, alpha: Any = 1) -> "Tensor":
        """Add alpha times another."""
        self.a += array(other) if alpha == 1 else alpha * array(other)
        return self

    def sub_(self, other: Any, alpha: Any = 1) -> "Tensor":
        """Subtract alpha times another."""
        return self.add_(other, -alpha)

    def mul_(self, other: Any) -> "Tensor":
        """Multiply by another."""
        self.a *= array(other)
        return self

    def lerp_(self, other: "Tensor", weight: Any) -> "Tensor":
        """Go this share of the way to another."""
        self.a += weight * (other.a - self.a)
        return self

    def sign_(self) -> "Tensor":
        """Become the signs."""
        np.sign(self.a, out=self.a)
        return self

    def index_add_(self, axis: int, rows: "Tensor", other: "Tensor") -> "Tensor":
        """Add rows of another to rows of this."""
        assert axis == 0
        tensor_call("i3_add_rows", *other.a.shape, rows.contiguous(), other.contiguous(), self)
        return self

    def masked_fill(self, where: "Tensor", value: float) -> "Tensor":
        """Return a copy with this value where it is told."""
        return Tensor(np.where(where.a, self.dtype.type(value), self.a))

    # Numbers of numbers.
    def sum(self, dim: Any = None) -> "Tensor":
        """Return the sum, over these sizes."""
        return Tensor(self.a.sum(dim, dtype=self.dtype if self.a.dtype.kind == "f" else None))

    def argmax(self, dim: int | None = None) -> "Tensor":
        """Return the place of the largest."""
        return Tensor(self.a.argmax(dim))

    def min(self) -> "Tensor":
        """Return the least number."""
        return Tensor(self.a.min())

    def max(self) -> "Tensor":
        """Return the greatest number."""
        return Tensor(self.a.max())

    def all(self) -> "Tensor":
        """Say whether all are true."""
        return Tensor(self.a.all())

    def any(self) -> "Tensor":
        """Say whether one is true."""
        return Tensor(self.a.any())

    def isnan(self) -> "Tensor":
        """Return where it is no number."""
        return Tensor(np.isnan(self.a))

    def sqrt(self) -> "Tensor":
        """Return the roots."""
        return Tensor(np.sqrt(self.a))

    def float(self) -> "Tensor":
        """Return it in float32."""
        return converted(self, float32)


def converted(x: Any, dtype: np.dtype) -> Tensor:
    """Return x as this type: itself where it has it."""
    a = np.asarray(array(x))
    if a.dtype == dtype:
        return x if isinstance(x, Tensor) else Tensor(a)
    if a.dtype == bfloat16:
        a = (a.view("<u2").astype("<u4") << 16).view("<f4")
        return Tensor(a if dtype == float32 else a.astype(dtype))
    if dtype == bfloat16:
        bits = np.ascontiguousarray(a, "<f4").view("<u4").reshape(-1)
        rounded = np.empty(bits.size, "<u2")
        for begin in range(0, bits.size, IN_CACHE):
            part = bits[begin : begin + IN_CACHE]
            rounded[begin : begin + IN_CACHE] = part + 0x7FFF + (part >> 16 & 1) >> 16
        return Tensor(rounded.view(bfloat16).reshape(a.shape))
    return Tensor(a.astype(dtype))


def numbers(x: Any) -> Any:
    """Return what numpy can reckon with: bfloat16 numbers in float32."""
    a = array(x)
    return converted(x, float32).a if getattr(a, "dtype", None) == bfloat16 else a


def result(a: Any, *operands: Any) -> Tensor:
    """Return a tensor of what was reckoned: bfloat16 where all tensors among the operands were."""
    low = all(x.dtype == bfloat16 for x in operands if isinstance(x, Tensor))
    return converted(a, bfloat16) if low and a.dtype == float32 else Tensor(a)


def _operator(operation: Callable[[Any, Any], Any]) -> Callable[[Tensor, Any], Tensor]:
    def run(self: Tensor, other: Any) -> Tensor:
        return result(operation(numbers(self), numbers(other)), self, other)

    return run


def _reflected(operation: Callable[[Any, Any], Any]) -> Callable[[Tensor, Any], Tensor]:
    def run(self: Tensor, other: Any) -> Tensor:
        return result(operation(numbers(other), numbers(self)), self, other)

    return run


def _in_place(operation: Callable[..., Any]) -> Callable[[Tensor, Any], Tensor]:
    def run(self: Tensor, other: Any) -> Tensor:
        operation(self.a, numbers(other), out=self.a)
        return self

    return run


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
    "pow": np.power, "matmul": multiply, "and": np.bitwise_and, "or": np.bitwise_or,
    "lshift": np.left_shift, "rshift": np.right_shift, "xor": np.bitwise_xor,
}  # fmt: skip
for _name, _operation in _OPERATIONS.items():
    setattr(Tensor, f"__{_name}__", _operator(_operation))
    setattr(Tensor, f"__r{_name}__", _reflected(_operation))
    if _name != "matmul":
        setattr(Tensor, f"__i{_name}__", _in_place(_operation))
for _name, _operation in {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal
}.items():  # fmt: skip
    setattr(Tensor, f"__{_name}__", _operator(_operation))
