"""Values made ahead: in order, errors in their place, and worker processes that are killed."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest

from poa_jax.data.crops import CropRecipe
from poa_jax.data.folder import open_folder
from poa_jax.data.masking import MaskRecipe
from poa_jax.data.pipeline import TrainPipeline
from poa_jax.data.prefetch import _SendableAttempt, in_order
from poa_jax.data.sources import ArraySource

IMAGES = np.random.default_rng(0).integers(0, 256, (37, 20, 24, 3), np.uint8)


def pipeline(source=None, **options):
    """A pipeline of objects that a spawned process can import."""
    source = ArraySource(IMAGES) if source is None else source
    crops, masks = CropRecipe(16, 8, 3), MaskRecipe((4, 4), group=4)
    options = {"workers": 2, "worker_kind": "process", "prefetch": 2} | options
    return TrainPipeline(source, crops, masks, batch_size=8, seed=7, **options)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_in_order_keeps_order_and_raises_in_its_place(workers):
    def fail_at_five(i):
        if i == 5:
            raise ValueError("number five is wrong")
        return -i

    values = in_order(fail_at_five, 2, 9, workers, 4)
    assert [next(values) for _ in range(3)] == [(2, -2), (3, -3), (4, -4)]
    with pytest.raises(ValueError, match=r"^number five is wrong$"):
        next(values)
    assert list(in_order(fail_at_five, 3, 3, workers, 4)) == []
    with pytest.raises(ValueError, match="0 or more"):
        next(in_order(fail_at_five, 0, 9, -1, 4))


def test_an_unknown_kind_of_worker_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"data.worker_kind: 'proces', .* did you mean 'process'"):
        next(in_order(abs, 0, 9, 1, 4, "proces"))


def workers():
    return [p for p in multiprocessing.active_children() if "grain" in p.name]


def assert_gone(processes):
    for process in processes:
        process.join(timeout=30)
        assert not process.is_alive()


def test_worker_processes_give_the_same_batches_and_one_that_is_killed_is_replaced_once(caplog):
    expected = [batch for _, batch, _ in pipeline(workers=0).iterate(3, 12)]
    steps = pipeline().iterate(3, 100)
    got = [next(steps)]
    first = workers()
    assert len(first) == 2
    os.kill(first[0].pid, signal.SIGKILL)
    got += [next(steps) for _ in range(8)]
    assert [r.getMessage() for r in caplog.records if r.name == "poa_jax"] == [
        "a data worker process died (Worker process was terminated unexpectedly with exit code "
        "-9); starting again"
    ]
    assert_gone(first)
    second = workers()
    assert len(second) == 2
    assert [step for step, _, _ in got] == list(range(3, 12))
    for (_, batch, _), other in zip(got, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])
    os.kill(second[1].pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"died for the second time .* exit code -9") as caught:
        list(steps)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 60
    assert_gone(second)


def test_errors_of_a_worker_process_arrive_as_they_are_and_it_ends(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("no picture")
    p = pipeline(open_folder(tmp_path), workers=1)
    with pytest.raises(ValueError, match=r"^3 images in a row cannot be read: .*\.png"):
        next(p.iterate(0, 9))
    assert not workers()


def test_an_error_that_cannot_be_sent_is_sent_as_a_sentence():
    class Private(Exception):
        def __init__(self, lock, words):
            super().__init__(words)
            self.lock = lock

    def fail(i):
        raise Private(threading.Lock(), f"number {i} is locked")

    value, error = _SendableAttempt(fail)(3)
    assert value is None
    assert isinstance(error, ValueError)
    assert str(error) == "Private: number 3 is locked"
    assert _SendableAttempt(abs)(-3) == (3, None)


class Locked(ArraySource):
    """Images that no other process can have."""

    def __init__(self):
        super().__init__(IMAGES)
        self.lock = threading.Lock()


def test_images_that_cannot_be_sent_to_a_process_are_told():
    with pytest.raises(
        ValueError, match=r"cannot be sent to a worker process .* set data.worker_k"
    ):
        next(pipeline(Locked()).iterate(0, 4))
