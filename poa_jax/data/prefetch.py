"""Values made ahead of time by threads or processes, in order (grain does the work)."""

import gc
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import cv2
import grain
import numpy as np
from absl import flags

from poa_jax import errors
from poa_jax.host_memory import keep_freed_memory

T = TypeVar("T")
KINDS = ("thread", "process")  # values of data.worker_kind
LOGGER = logging.getLogger("poa_jax")
_LOOK_FOR_PARENT = 2.0  # seconds


def in_order(
    make: Callable[[int], T],
    start: int,
    stop: int,
    workers: int,
    prefetch: int,
    kind: str = "thread",
) -> Iterator[tuple[int, T]]:
    """Yield (i, make(i)) for start ≤ i < stop.

    `workers` threads or processes keep up to `prefetch` values ready; with 0 workers each is made
    when it is asked for. What `make` raises is raised here, at its place in the order. Closing the
    iterator stops the workers. Threads share everything; a process gets its own copy of `make` and
    what it holds, and starts in seconds.

    A process that dies is replaced once, and nothing is lost; another death raises ValueError, as
    does a `make` that cannot be sent to a process.
    """
    if workers < 0 or prefetch < 0:
        raise ValueError(f"workers and prefetch must be 0 or more; got {workers} and {prefetch}")
    if kind not in KINDS:
        raise ValueError(errors.unknown("value of data.worker_kind:", kind, KINDS))
    if start >= stop:
        return
    if workers == 0:
        for i in range(start, stop):
            yield i, make(i)
        return
    if kind == "thread":
        values = _threads(_Attempt(make), start, stop, workers, prefetch)
    else:
        values = _processes(_SendableAttempt(make), start, stop, workers, prefetch)
    try:
        for i, (value, error) in zip(range(start, stop), values, strict=True):
            if error is not None:
                raise error
            yield i, value
    finally:
        values.close()


class _Attempt:
    """Errors travel as values: grain would take frames out of their traceback and add a note."""

    def __init__(self, make: Callable[[int], T]):
        self._make = make

    def __call__(self, i: int) -> tuple[T | None, Exception | None]:
        try:
            return self._make(i), None
        except Exception as error:
            return None, error


class _SendableAttempt(_Attempt):
    """The same for a worker process, where what cannot be pickled would be lost without a word."""

    def __call__(self, i: int) -> tuple[T | None, Exception | None]:
        value, error = super().__call__(i)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = ValueError(f"{type(error).__name__}: {error}")
        return value, error


def _threads(attempt, start, stop, workers, prefetch):
    # Threads share the image arrays and the epoch order; Pillow and OpenCV let go of the lock, and
    # OpenCV's own threads would only take the cores from the others.
    cv2.setNumThreads(1)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(prefetch, workers))
    values = iter(grain.MapDataset.range(start, stop).map(attempt).to_iter_dataset(options))
    try:
        yield from values
    finally:
        values.close()


def _processes(attempt, start, stop, workers, prefetch):
    """Like `_threads`; begins again at the first value not yet handed out when a process died."""
    deaths = 0
    while start < stop:
        values = _open_processes(attempt, start, stop, workers, prefetch)
        try:
            for value in values:
                yield _own(value)
                start += 1
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            # Errors of `make` travel as values, so this one is of sending `make` itself.
            raise ValueError(
                f"these images cannot be sent to a worker process ({_shortened(error)}); "
                "set data.worker_kind to thread"
            ) from error
        except RuntimeError as error:
            deaths += 1
            if deaths > 1:
                raise ValueError(
                    f"a data worker process died for the second time ({_shortened(error)}); "
                    "expected it to live as long as the run: look for a lack of memory, lower "
                    "data.workers or data.prefetch, or set data.worker_kind to thread"
                ) from error
            LOGGER.warning("a data worker process died (%s); starting again", _shortened(error))
        finally:
            values.close()
            del values
            gc.collect()  # grain's iterators form cycles, which would hold shared memory to the end


def _own(value):
    """Copy arrays out of the memory shared with a worker, which is given back with this."""
    if isinstance(value, np.ndarray):
        return np.array(value)
    if isinstance(value, tuple):
        return tuple(map(_own, value))
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return value


def _open_processes(attempt, start, stop, workers, prefetch):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain asks for flags that only absl's own main would parse
    options = grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=max(1, -(-prefetch // workers))
    )
    in_line = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = grain.MapDataset.range(start, stop).map(attempt).to_iter_dataset(in_line)
    return iter(dataset.mp_prefetch(options, worker_init_fn=_begin_process))


def _begin_process(index: int, count: int) -> None:
    """Settle into a worker process: one thread, no interrupts, no life after the parent's."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    cv2.setNumThreads(1)
    keep_freed_memory()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT)
    os._exit(1)


def _shortened(error: Exception) -> str:
    """Return grain's first sentence without its advice."""
    return " ".join(str(error).split()).partition(". ")[0]
