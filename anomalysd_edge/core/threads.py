"""numpy's work in several Python threads.

numpy lets go of the interpreter inside a product, and these threads sleep when there is nothing to do. The BLAS's own
threads would serve, too, but go on spinning after each product and take the cores from the networks (see __init__.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")

_asked: int | None = None


def cores() -> int:
    """Cores that this process may use; os.cpu_count() ignores a container's share of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int | None) -> None:
    """From here on `spread` takes `count` threads in this process, by default its cores, as a BLAS would.

    The BLAS's own become one, unless OPENBLAS_NUM_THREADS asks for more: where numpy was imported before this package,
    they are not yet, and a photo takes a third longer.
    """
    global _asked  # noqa: PLW0603 - a setting of the process
    _asked = count
    if os.environ.get("OPENBLAS_NUM_THREADS") == "1":
        threadpool_limits(limits=1, user_api="blas")


def spread(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` of each item, in order; in threads, of which the caller's is one, where there are several of both.

    What comes out must not depend on the number of threads: cut the work by its size. `work` must not call `spread`.
    """
    todo = list(items)
    count = min(_asked or cores(), len(todo))
    if count < 2:
        return [work(item) for item in todo]

    def share(first: int) -> list[R]:
        return [work(item) for item in todo[first::count]]

    # One call a thread, and none idle: waking a thread takes as long as a small product.
    others = [_pool(os.getpid(), count - 1).submit(share, first) for first in range(1, count)]
    try:
        shares = [share(0)]
    finally:
        wait(others)
    shares += [other.result() for other in others]
    return [shares[number % count][number // count] for number in range(len(todo))]


@lru_cache(maxsize=8)
def _pool(_process: int, count: int) -> ThreadPoolExecutor:
    """A pool a process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(count, thread_name_prefix="sd-edge-numpy")
