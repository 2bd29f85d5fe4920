"""When unreadable images are an accident to be survived, and when they are a reason to stop."""

from dataclasses import dataclass

from absl import logging

from poa_jax.data.sources import Source

JUDGE_AFTER = 20  # failed files before their share is judged, unless the whole source was read


@dataclass(frozen=True)
class BatchInfo:
    """Bookkeeping of one batch: images read, and (index, reason) of those that could not be."""

    reads: int
    bad: tuple[tuple[int, str], ...]

    @property
    def num_bad(self) -> int:
        """Number of images that were replaced by another."""
        return len(self.bad)


class Health:
    """Counts unreadable images over a run and judges their share.

    Once 20 files have failed, or as many images were read as the source has, a share above `limit`
    of all reads is too large. (Earlier, one broken file among the first few would end a run.)
    """

    def __init__(self, source: Source, limit: float):
        self._source, self._limit = source, limit
        self._reads, self._failures = 0, 0
        self._files: dict[int, str] = {}
        # So many in a row are more than the allowed share of the whole source.
        self.longest_run = min(len(source), max(JUDGE_AFTER, int(limit * len(source))) + 1)

    def record(self, info: BatchInfo) -> None:
        """Add a batch; raises ValueError when the share is too large."""
        self._reads += info.reads
        self._failures += len(info.bad)
        for index, reason in info.bad:
            if index not in self._files:
                self._files[index] = self._source.name(index)
                logging.warning("skipped unreadable image %s: %s", self._files[index], reason)
        due = len(self._files) >= JUDGE_AFTER or self._reads >= len(self._source)
        if self._failures > self._limit * self._reads and (due or self._limit == 0):
            raise ValueError(
                f"{self._failures} of {self._reads} images read so far could not be decoded, more "
                f"than the share of {self._limit:g} that data.max_bad_fraction allows: "
                f"{listed(list(self._files.values()))}"
            )


def listed(names: list[str], most: int = 10) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
