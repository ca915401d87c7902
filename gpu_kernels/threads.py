"""How many threads the kernels of this process use.

Belongs here: one pool and its size. Work is split into parts that never share an output, so no picture depends on the
number of threads. Does not: processes (their owner limits those).
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_lock = Lock()
_count = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
_pool: ThreadPoolExecutor | None = None


def count() -> int:
    """Threads that one call may use."""
    return _count


def configure(threads: int) -> None:
    """Use so many threads from now on; at least 1."""
    global _count, _pool
    if threads < 1:
        raise ValueError(f"{threads} threads, at least 1 is needed")
    with _lock:
        _count, _pool = threads, None


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[work(item) for item in items] on the threads; the first error is raised when all have ended.

    The work must release the GIL to gain anything, and must not call `each` itself.
    """
    parts = list(items)
    if _count == 1 or len(parts) < 2:
        return [work(part) for part in parts]
    futures = [start(work, part) for part in parts]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


def start(work: Callable[[Item], Result], item: Item) -> Future[Result]:
    """work(item) on one of the threads, while the caller goes on; the same is asked of the work as by `each`."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_count, thread_name_prefix="gpu_kernels")
        return _pool.submit(work, item)
