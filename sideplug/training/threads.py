"""How many threads NumPy's matrix products get while a plugin is trained: as many as are measured to be faster.

On a machine that does nothing else all cores are a third faster than one. Beside other work they wait for each other,
and are many times slower; then one is taken. Where threadpoolctl is missing, or knows nothing of NumPy's library, the
number stays as it is. Test: pytest tests/training/test_threads.py
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np

ROUNDS = 5  # of each
FASTER = 0.85  # of one thread's time, that all must take at most
ROWS, WIDTH, COLUMNS = 64, 576, 4096  # of a product such as a training step has many of


@contextlib.contextmanager
def measured(say: Callable[[str], None] = lambda line: None) -> Iterator[int]:
    """Take the faster of one thread and all, for the block. Yields their number; 0 where it is left as it is."""
    try:
        import threadpoolctl
    except ImportError:
        yield 0
        return
    controller = threadpoolctl.ThreadpoolController().select(user_api="blas")
    every = max((library["num_threads"] for library in controller.info()), default=0)
    if every <= 1:
        yield every
        return

    def timed(threads: int) -> float:
        with controller.limit(limits=threads):
            return _product_s()

    count = chosen(timed, every)
    if count == 1:
        say(f"one thread is faster than {every} here: other work keeps the cores busy")
    with controller.limit(limits=count):
        yield count


def chosen(timed: Callable[[int], float], every: int) -> int:
    """Return 1 or `every`: whose product takes less, by `timed(threads)` in turn; the first round only warms up."""
    times: dict[int, list[float]] = {1: [], every: []}
    for number in range(ROUNDS + 1):
        for threads, found in times.items():
            seconds = timed(threads)
            if number:
                found.append(seconds)
    one, all_of_them = (float(np.median(found)) for found in times.values())
    return every if all_of_them <= FASTER * one else 1


def _product_s() -> float:
    """The seconds of one product."""
    left = np.ones((ROWS, WIDTH), np.float32)
    right = np.ones((WIDTH, COLUMNS), np.float32)
    start = time.perf_counter()
    left @ right
    return time.perf_counter() - start
