"""Episodes over worker processes, with an interrupt that loses none that has begun."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from diffuser_core.workers import available_cores

__all__ = ['as_they_end', 'process_pool']

Item = TypeVar('Item')
Result = TypeVar('Result')


def process_pool(jobs: int, workers: int | None, start: Callable[..., None], arguments: tuple[Any, ...]) -> Executor:
    """At most `jobs` processes, `workers` or one a core, each of which calls `start(*arguments)` first."""
    return ProcessPoolExecutor(min(jobs, workers or available_cores()), multiprocessing.get_context('spawn'), start, arguments)


def as_they_end(pool: Executor, function: Callable[[Item], Result], jobs: Sequence[Item]) -> Iterator[Result]:
    """What `function` makes of the jobs, as they end; after an interrupt no more are begun, but those that run are kept."""
    waiting = {pool.submit(function, job) for job in jobs}
    try:
        for future in as_completed(set(waiting)):
            waiting.remove(future)
            yield future.result()
    except KeyboardInterrupt:
        pool.shutdown(wait=True, cancel_futures=True)
        for future in waiting:
            if not future.cancelled() and future.exception() is None:
                yield future.result()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
