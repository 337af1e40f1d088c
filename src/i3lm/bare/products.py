"""Float32 products of numpy's, shared among as many threads as the kernels have.

numpy's own threads spin while they wait, and the kernels' threads wait for theirs: two runs side by
side then took ten times as long. So a product of numpy's has one thread (`__main__`).
"""

import concurrent.futures
import ctypes
import functools
import os
from pathlib import Path

import numpy as np

from i3lm.native import tensor_library

WORTH = 1 << 22  # multiplications that are worth another thread


@functools.cache
def _openmp() -> ctypes.CDLL:
    tensor_library()  # which loads it
    return ctypes.CDLL(None)


def cores() -> int:
    """Return the cores that this process may use; as torch counts, two threads of one are one."""
    mine = os.sched_getaffinity(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    try:
        return len({Path(topology.format(i)).read_text(encoding="ascii") for i in mine})
    except OSError:
        return len(mine)


def get_num_threads() -> int:
    """Return how many threads the kernels have."""
    return int(_openmp().omp_get_max_threads())


def set_num_threads(count: int) -> None:
    """Give the kernels so many threads."""
    _openmp().omp_set_num_threads(count)


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads)


def multiply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return x @ y, (..., M, K) and (K, N) or (..., K, N); the first size of x is divided."""
    if y.ndim > 2 and y.shape[0] != x.shape[0]:
        return np.matmul(x, y)
    parts = min(get_num_threads(), x.shape[0], x.size * y.shape[-1] // WORTH)
    if parts < 2 or x.ndim < 2:
        return np.matmul(x, y)
    out = np.empty((*x.shape[:-1], y.shape[-1]), np.result_type(x, y))
    ends = [len(x) * i // parts for i in range(parts + 1)]

    def run(begin: int, end: int) -> None:
        with np.errstate(all="ignore"):  # numpy's setting is a thread's own
            np.matmul(x[begin:end], y[begin:end] if y.ndim > 2 else y, out=out[begin:end])

    try:
        others = [_pool(parts - 1).submit(run, *ends[i : i + 2]) for i in range(1, parts)]
    except RuntimeError:  # the system gives no more threads
        return np.matmul(x, y)
    run(0, ends[1])
    for other in others:
        other.result()
    return out
