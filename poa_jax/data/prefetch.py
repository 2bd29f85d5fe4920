"""Values made ahead of time by threads, in order (grain does the work)."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import grain

T = TypeVar("T")


def in_order(
    make: Callable[[int], T], start: int, stop: int, workers: int, prefetch: int
) -> Iterator[tuple[int, T]]:
    """Yield (i, make(i)) for start ≤ i < stop.

    `workers` threads keep up to `prefetch` values ready; with 0 workers each is made when it is
    asked for. What `make` raises is raised here, at its place in the order. Closing the iterator
    stops the threads.
    """
    if workers < 0 or prefetch < 0:
        raise ValueError(f"workers and prefetch must be 0 or more; got {workers} and {prefetch}")
    if start >= stop:
        return
    if workers == 0:
        for i in range(start, stop):
            yield i, make(i)
        return

    def attempt(i: int) -> tuple[T | None, Exception | None]:
        # Errors travel as values: grain would take frames out of their traceback and add a note.
        try:
            return make(i), None
        except Exception as error:
            return None, error

    # Threads share the image arrays and the epoch order; Pillow and OpenCV let go of the lock.
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(prefetch, workers))
    values = iter(grain.MapDataset.range(start, stop).map(attempt).to_iter_dataset(options))
    try:
        for i, (value, error) in zip(range(start, stop), values, strict=True):
            if error is not None:
                raise error
            yield i, value
    finally:
        values.close()
