"""What this machine does best, and what the process uses."""

import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from i3lm.errors import UserError
from i3lm.model import kernels
from i3lm.model.whole_layer import drop_work
from i3lm.native import multiplies_bfloat16

TRIAL = 0.05  # seconds


def choose_device(name: str, number: int = 0) -> torch.device:
    """Return the device; UserError when torch does not know it or the machine has none.

    `number`: of the process on this machine; each of several takes a GPU of its own.
    """
    name = f"{name}:{number}" if name == "cuda" and number else name
    try:
        device = torch.device(name)
        torch.ones(1, device=device).tolist()  # "meta" has shapes and no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"--device {name} is not to be had here; use --device cpu") from None
    return device


def to_device(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array on the device; to a GPU through pinned memory, without waiting for it."""
    tensor = torch.from_numpy(rows)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return "fp32" or "bf16". "auto" takes what multiplies faster here, measured in 50 ms.

    bfloat16 products are twice as fast on CPUs with instructions for them and several times slower
    on others, so nothing but a trial tells.
    """
    if wanted != "auto":
        return wanted
    if device.type != "cpu":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    half, full = products_per_second(torch.bfloat16, torch.float32)
    return "bf16" if half > 1.25 * full else "fp32"


def products_per_second(*dtypes: torch.dtype) -> list[float]:
    """Return the rates of a product of matrices on this CPU, in FLOP/s, by dtype.

    Each is the best of what 50 ms hold, and they take turns: on a shared machine other work can
    hold up one spell of a few milliseconds, and a trial that it fell upon must not decide a run.
    """
    products = [_product(dtype) for dtype in dtypes]
    best = [float("inf")] * len(dtypes)
    end = time.perf_counter() + TRIAL
    turn = 0
    while turn < 5 or time.perf_counter() < end:
        for number, multiply in enumerate(products):
            begin = time.perf_counter()
            multiply()
            best[number] = min(best[number], time.perf_counter() - begin)
        turn += 1
    return [2 * 256 * 512 * 512 / seconds for seconds in best]


def _product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Return a product of (256, 512) and (512, 512): our own kernel's where training has it."""
    x, w = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    if dtype == torch.bfloat16 and multiplies_bfloat16():
        exact = w.float()
        return lambda: kernels.product(x, exact)
    return lambda: x @ w


def resident_bytes() -> tuple[int, int]:
    """Return the process's resident memory now and at its peak, in bytes; zeros if unknown."""
    if sys.platform.startswith("linux"):
        fields = {}
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(":")
                fields[name] = value
        return tuple(int(fields[k].split()[0]) * 1024 for k in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    try:
        import resource
    except ImportError:  # Windows
        return 0, 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, peak  # macOS reports bytes


NO_MEMORY = "the system gives no more memory"
# glibc's parameters of mallopt(3): above the first size blocks have pages of their own, and beyond
# the second the heap's free end is given back.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def return_freed_memory(smallest: int = 1 << 16) -> None:
    """Let freed tensors go back to the system at once, where its C library can be told to.

    Those of `smallest` bytes and more.

    Else the heap keeps the holes that activations leave, 20 to 130 MB for i3-12m. It costs half of
    the speed: every page that is taken again is cleared first.
    """
    _set_heap(smallest, 1 << 17)


def keep_freed_memory() -> None:
    """Let the process keep what steps free: the next one takes it without new pages.

    What was freed before, while the model was made, goes back first.
    """
    give_back_freed()
    _set_heap(1 << 25, 1 << 30)


@contextlib.contextmanager
def undisturbed_steps(keep: bool) -> Iterator[None]:
    """Within the block, leave the process's memory to training's steps; `keep` what they free.

    The garbage collector does not search what was there before, again and again.
    """
    gc.collect()
    freeze = gc.get_freeze_count() == 0  # else it is the host's
    if freeze:
        gc.freeze()
    if keep:
        keep_freed_memory()
    try:
        yield
    finally:
        if freeze:
            gc.unfreeze()
        drop_work()
        if keep:
            _set_heap(1 << 20, 1 << 22)
            give_back_freed()


def _libc() -> ctypes.CDLL | None:
    """Return the C library where it may be glibc."""
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def give_back_freed() -> None:
    """Give back to the system what is free within the heap."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:  # musl has none
        trim(0)


def _set_heap(mmap_threshold: int, trim_threshold: int) -> None:
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, mmap_threshold)
        mallopt(_TRIM_THRESHOLD, trim_threshold)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the system refused memory: torch's allocator and oneDNN say so in RuntimeErrors."""
    said = ("can't allocate memory", "could not create a primitive")
    refused = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return refused or any(words in str(error) for words in said)
