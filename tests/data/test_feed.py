"""Batches on their way to the devices: in order, ahead, and how long the devices waited."""

import threading
import time

import jax.numpy as jnp
import pytest

from poa_jax.data import feed
from poa_jax.data.feed import Feed


def numbered(stop, log=None, seconds=0.0, error_at=None):
    try:
        for i in range(stop):
            time.sleep(seconds)
            if i == error_at:
                raise ValueError("batch three is wrong")
            yield i, f"batch {i}", f"info {i}"
    finally:
        if log is not None:
            log.append("closed")


def test_everything_arrives_in_order_and_the_end_is_none():
    with Feed(numbered(5), str.upper) as batches:
        got = [batches.take() for _ in range(6)]
    assert [item[:3] for item in got[:5]] == [(i, f"BATCH {i}", f"info {i}") for i in range(5)]
    assert got[5] is None


def test_only_so_many_batches_are_made_ahead():
    put = []
    with Feed(numbered(100), put.append) as batches:
        batches.take()
        time.sleep(0.3)
        assert len(put) <= 1 + feed.AHEAD + 1  # used, waiting, and in the hand of the thread


def test_an_error_is_raised_in_its_place():
    log = []
    with Feed(numbered(5, log, error_at=3), str) as batches:
        assert [batches.take()[0] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match=r"^batch three is wrong$"):
            batches.take()
    assert log == ["closed"]


def test_leaving_early_closes_the_batches_and_ends_the_thread():
    log, before = [], set(threading.enumerate())
    with Feed(numbered(1000, log), str) as batches:
        batches.take()
    assert log == ["closed"]
    assert set(threading.enumerate()) == before


class Busy:
    """Stands for a result of the devices that is there after some seconds."""

    def __init__(self, seconds):
        self._until = time.perf_counter() + seconds

    def is_ready(self):
        return time.perf_counter() > self._until


def test_only_the_time_in_which_the_devices_had_nothing_to_do_counts(monkeypatch):
    monkeypatch.setattr(feed.jax, "Array", Busy)
    with Feed(numbered(4, seconds=0.4), str) as batches:
        waited = [batches.take(seconds and Busy(seconds))[3] for seconds in (None, 0.2, 5.0)]
    assert 0.3 < waited[0] < 2.0  # nothing ran before
    assert 0.1 < waited[1] < 0.39  # busy for the first 0.2 seconds
    assert waited[2] == 0.0


def test_results_of_jax_tell_whether_they_are_there():
    with Feed(numbered(2), str) as batches:
        time.sleep(0.1)
        assert batches.take({"loss": jnp.ones(3).block_until_ready(), "lr": 0.1})[3] < 0.1
