"""Runs a function of 0, 1, 2, ... ahead of its consumer, in order, on threads."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(
    compute: Callable[[int], T], steps: Iterable[int], workers: int, ahead: int = 2
) -> Iterator[T]:
    """compute(step) for each step, in order; up to `workers` + `ahead` are under way or waiting.

    Each result has its own future, so no queue can fill up and block; an exception comes out where
    its result would have. Closing the iterator ends the threads. workers=0 computes in line.
    """
    if workers == 0:
        yield from map(compute, steps)
        return
    steps = iter(steps)
    with ThreadPoolExecutor(workers, thread_name_prefix="ldae-data") as pool:
        waiting = deque(
            pool.submit(compute, step) for step in itertools.islice(steps, workers + ahead)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(compute, step) for step in itertools.islice(steps, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
