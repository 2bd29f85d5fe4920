"""Training batches as a pure function of (seed, step), and batches for evaluation.

Sample i of step t is image `order(t·B + i)`: epoch after epoch, each in its own permutation. Every
random number of that sample comes from a Philox generator with key (seed, purpose) and counter
(step, i), those of a group's masks from (step, group). So a batch is the same however many
processes share it, however many threads make it, and wherever a run starts again.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from poa_jax import errors
from poa_jax.data.crops import CropRecipe, make_crops, resize_centre_crop
from poa_jax.data.folder import UnreadableImage
from poa_jax.data.health import BatchInfo, Health, listed
from poa_jax.data.masking import MaskRecipe, group_masks
from poa_jax.data.prefetch import in_order
from poa_jax.data.sources import Source

Batch = dict[str, np.ndarray]
PLACEMENTS = ("host", "split", "resident")  # values of data.placement
_ORDER, _CROPS, _MASKS = range(3)  # purposes of random streams


class TrainPipeline:
    """The batches of one process.

    `batch_size` is the global number of images B; this process makes rows
    [B·p/P, B·(p+1)/P) for p = `process_index`, P = `process_count`. `workers` threads or processes
    (`worker_kind`) keep up to `prefetch` batches ready; 0 makes each batch when it is asked for.

    `placement` says what a batch holds beside masks (b, 2, N), bool, for b = `len(rows)`:

    | placement | what is left for the device | arrays |
    |---|---|---|
    | host | nothing | global_crops (b, 2, S, S, 3), local_crops (b, n, s, s, 3), uint8 |
    | split | colours | the same, cut and flipped only; sample (b, 2): step and row, int32 |
    | resident | everything | image (b,): index into the source, int32; sample as above |

    An unreadable image is replaced by the next readable one of the source, named once in the log
    and counted; too many of them end the iteration with a ValueError (`health.Health`).

    Raises ValueError for sizes that do not divide.
    """

    def __init__(
        self,
        source: Source,
        crops: CropRecipe,
        masks: MaskRecipe,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        workers: int = 2,
        worker_kind: str = "thread",
        prefetch: int = 4,
        max_bad_fraction: float = 0.01,
        placement: str = "host",
    ):
        _check_sizes(batch_size, seed, process_index, process_count, masks.group)
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction must be from 0 to 1; got {max_bad_fraction}")
        if placement not in PLACEMENTS:
            raise ValueError(errors.unknown("value of data.placement:", placement, PLACEMENTS))
        self.source, self.crops, self.masks = source, crops, masks
        self.placement = placement
        self.batch_size, self.seed = batch_size, seed
        local = batch_size // process_count
        self.rows = range(local * process_index, local * (process_index + 1))
        self.workers, self.worker_kind, self.prefetch = workers, worker_kind, prefetch
        self._health = Health(source, max_bad_fraction)
        self._next_step = 0

    @classmethod
    def from_config(
        cls, config: Any, source: Source, process_index: int = 0, process_count: int = 1
    ) -> "TrainPipeline":
        """Build the pipeline that a run's configuration asks for."""
        return cls(
            source,
            CropRecipe.from_config(config),
            MaskRecipe.from_config(config),
            batch_size=config.train.batch_size,
            seed=config.seed,
            process_index=process_index,
            process_count=process_count,
            workers=config.data.workers,
            worker_kind=config.data.worker_kind,
            prefetch=config.data.prefetch,
            max_bad_fraction=config.data.max_bad_fraction,
            placement=config.data.placement,
        )

    def batch_at(self, step: int) -> tuple[Batch, BatchInfo]:
        """Return this process's rows of the batch of `step`, and what was read for it.

        A pure function: no state is touched.
        """
        if self.placement == "resident":
            first = step * self.batch_size
            batch = {"image": np.array([self._index(first + row) for row in self.rows], np.int32)}
            bad = []
        else:
            batch, bad = self._crops(step)
        if self.placement != "host":
            batch["sample"] = np.array([(step, row) for row in self.rows], np.int32)
        batch["masks"] = self._masks(step)
        return batch, BatchInfo(len(self.rows) + len(bad), tuple(bad))

    def _crops(self, step: int) -> tuple[Batch, list[tuple[int, str]]]:
        c, b = self.crops, len(self.rows)
        global_crops = np.empty((b, 2, c.global_size, c.global_size, 3), np.uint8)
        local_crops = np.empty((b, c.local_crops, c.local_size, c.local_size, 3), np.uint8)
        bad: list[tuple[int, str]] = []
        for i, row in enumerate(self.rows):
            image = self._read(self._index(step * self.batch_size + row), bad)
            rng = generator(self.seed, _CROPS, step, row)
            global_crops[i], local_crops[i] = make_crops(rng, image, c, self.placement == "host")
        return {"global_crops": global_crops, "local_crops": local_crops}, bad

    def iterate(self, start: int, stop: int) -> Iterator[tuple[int, Batch, BatchInfo]]:
        """Yield (step, batch, info) for start ≤ step < stop, made ahead by the workers.

        Raises ValueError for too many unreadable images, and when worker processes keep dying.
        """
        for step, (batch, info) in in_order(
            self.batch_at, start, stop, self.workers, self.prefetch, self.worker_kind
        ):
            self._health.record(info)
            self._next_step = step + 1
            yield step, batch, info

    def get_state(self, next_step: int | None = None) -> dict[str, Any]:
        """Return what a checkpoint needs to go on exactly: the next step and its terms.

        `next_step` is the one after the last that was used, where batches are taken ahead of their
        use; by default the one after the last that `iterate` yielded.
        """
        return {
            "next_step": self._next_step if next_step is None else next_step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "source": self.source.fingerprint,
        }

    def set_state(self, state: dict[str, Any]) -> int:
        """Take up a state from `get_state`; returns the step to go on from.

        Raises ValueError if seed, batch size or images are not those of the state, for then the
        images could not come in the same order. The share of unreadable images starts afresh.
        """
        mine = self.get_state()
        for key in ("seed", "batch_size", "source"):
            if state[key] != mine[key]:
                raise ValueError(
                    f"the data position was saved with {key} {state[key]}, but this run has "
                    f"{mine[key]}; start it with the same data settings, or in a new workdir"
                )
        self._next_step = int(state["next_step"])
        return self._next_step

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.source))
        return int(epoch_order(self.seed, epoch, len(self.source))[place])

    def _read(self, index: int, bad: list[tuple[int, str]]) -> np.ndarray:
        """Read image `index`, or the next readable one; failures are added to `bad`."""
        in_a_row = self._health.longest_run
        for attempt in range(in_a_row):
            at = (index + attempt) % len(self.source)
            try:
                return self.source[at][0]
            except UnreadableImage as error:
                bad.append((at, error.reason))
        names = [self.source.name(at) for at, _ in bad[-in_a_row:]]
        raise ValueError(f"{in_a_row} images in a row cannot be read: {listed(names)}")

    def _masks(self, step: int) -> np.ndarray:
        m = self.masks
        groups = range(self.rows.start // m.group, self.rows.stop // m.group)
        return np.concatenate(
            [
                group_masks(
                    generator(self.seed, _MASKS, step, group),
                    2 * m.group,
                    m.grid,
                    m.probability,
                    m.ratio,
                ).reshape(m.group, 2, -1)
                for group in groups
            ]
        )


def generator(seed: int, purpose: int, a: int, b: int = 0) -> np.random.Generator:
    """Return the generator of one (seed, purpose, a, b); different ones never overlap.

    Philox numbers its output blocks by a 256-bit counter; word 0 counts the blocks drawn, so 2⁶⁴
    of them are free for every (a, b).
    """
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, a, b, 0]))


@lru_cache(maxsize=4)  # a batch looks at one epoch or two; threads may be a batch apart
def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order of the images in an epoch: a permutation of range(length)."""
    order = generator(seed, _ORDER, epoch).permutation(length)
    order.flags.writeable = False
    return order


def _check_sizes(
    batch_size: int, seed: int, process_index: int, process_count: int, group: int
) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be from 0 to 2^64 - 1; got {seed}")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index {process_index} is not below process_count {process_count}"
        )
    step = group * process_count
    if batch_size < 1 or batch_size % step:
        nearest = max(1, round(batch_size / step)) * step
        raise ValueError(
            f"train.batch_size {batch_size} cannot be divided over {process_count} processes in "
            f"mask groups of {group} images; the nearest that can is {nearest}"
        )


def eval_batches(
    source: Source,
    resize: int,
    crop: int,
    batch_size: int,
    workers: int = 2,
    prefetch: int = 4,
    max_bad_fraction: float = 0.01,
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (images uint8 (b, S, S, 3), labels int32 (b,), valid) over a source, in its order.

    b is always `batch_size`; only the first `valid` rows count, the rest are zeros with label −1.
    Unreadable images are left out, under the rule of `health.Health`. Label −1 also stands
    for "no label". Raises ValueError if `crop` > `resize`.
    """
    if not 0 < crop <= resize or batch_size < 1:
        raise ValueError(
            f"expected 0 < crop <= resize and a batch of 1 or more; got crop {crop}, resize "
            f"{resize}, batch {batch_size}"
        )
    health = Health(source, max_bad_fraction)

    def make(number: int) -> tuple[np.ndarray, np.ndarray, int, BatchInfo]:
        images = np.zeros((batch_size, crop, crop, 3), np.uint8)
        labels = np.full(batch_size, -1, np.int32)
        valid, bad = 0, []
        indices = range(number * batch_size, min((number + 1) * batch_size, len(source)))
        for index in indices:
            try:
                image, label = source[index]
            except UnreadableImage as error:
                bad.append((index, error.reason))
                continue
            images[valid] = resize_centre_crop(image, resize, crop)
            labels[valid] = -1 if label is None else label
            valid += 1
        return images, labels, valid, BatchInfo(len(indices), tuple(bad))

    batches = -(-len(source) // batch_size)
    for _, (images, labels, valid, info) in in_order(make, 0, batches, workers, prefetch):
        health.record(info)
        yield images, labels, valid
