"""Batches brought to the devices by a thread while the devices work, and how long they waited."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

AHEAD = 2  # batches in device memory before they are used
_POLL = 0.001  # seconds


class Feed:
    """Takes (step, batch, info) from `batches` and holds up to `AHEAD` of `put(batch)` ready.

    Use it as a context manager: leaving it stops the thread and closes `batches`.
    """

    def __init__(self, batches: Iterator[tuple[int, Any, Any]], put: Callable[[Any], Any]):
        self._batches, self._put = batches, put
        self._ready: queue.Queue = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="data feed", daemon=True)

    def take(self, busy: Any = None) -> tuple[int, Any, Any, float] | None:
        """Return (step, batch on the devices, info, seconds the devices waited), None at the end.

        `busy` are results of the last update: the devices wait once they are there. Errors of
        `batches` are raised here, at their place in the order.
        """
        arrays = [x for x in jax.tree.leaves(busy) if isinstance(x, jax.Array)]
        idle_since = None
        while True:
            if idle_since is None and all(x.is_ready() for x in arrays):
                idle_since = time.perf_counter()
            try:
                item = self._ready.get(timeout=_POLL if idle_since is None else None)
            except queue.Empty:
                continue
            waited = 0.0 if idle_since is None else time.perf_counter() - idle_since
            if isinstance(item, BaseException):
                raise item
            return item if item is None else (*item, waited)

    def _work(self) -> None:
        try:
            try:
                for step, batch, info in self._batches:
                    if not self._hand_over((step, self._put(batch), info)):
                        return
            finally:
                self._batches.close()
            self._hand_over(None)
        except BaseException as error:
            self._hand_over(error)

    def _hand_over(self, item: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
