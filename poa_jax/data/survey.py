"""One look at every image of a folder: which cannot be read, how large they are, which classes."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from poa_jax.data.folder import UnreadableImage
from poa_jax.data.prefetch import in_order
from poa_jax.data.sources import Source


@dataclass(frozen=True)
class Survey:
    """What `survey` found.

    `sizes` are (height, width) of the readable images, in order; `labels` their labels; `bad` are
    (name, reason) of the others; `bytes_decoded` is what the readable ones take as pixels.
    """

    sizes: np.ndarray
    labels: tuple[int | None, ...]
    bad: tuple[tuple[str, str], ...]

    @property
    def bytes_decoded(self) -> int:
        """Bytes of all readable images in three channels."""
        return 3 * int(np.prod(self.sizes.astype(np.int64), axis=1).sum())

    def per_class(self, names: tuple[str, ...]) -> dict[str, int]:
        """Return how many readable images each class has, classes without any included."""
        count = Counter(self.labels)
        return {name: count[i] for i, name in enumerate(names)}


def survey(source: Source, workers: int = 2) -> Survey:
    """Read every image of a source once, with `workers` threads."""

    def look(index: int):
        try:
            image, label = source[index]
        except UnreadableImage as error:
            return None, error.reason
        return image.shape[:2], label

    sizes, labels, bad = [], [], []
    for index, (size, found) in in_order(look, 0, len(source), workers, 64):
        if size is None:
            bad.append((source.name(index), found))
        else:
            sizes.append(size)
            labels.append(found)
    return Survey(np.array(sizes, np.int64).reshape(-1, 2), tuple(labels), tuple(bad))


def report(found: Survey, class_names: tuple[str, ...] | None, most: int = 20) -> str:
    """Return the lines that `poa-jax data check` prints; of long lists the first `most`."""
    readable, bad = len(found.sizes), len(found.bad)
    lines = [f"{readable + bad:,} images, {readable:,} readable, {bad:,} not"]
    if readable:
        kinds = Counter(map(tuple, found.sizes.tolist()))
        low, middle, high = (
            "×".join(str(int(x)) for x in reversed(pair))
            for pair in np.quantile(found.sizes, [0, 0.5, 1], axis=0, method="nearest")
        )
        lines.append(
            f"sizes (width×height): {low} to {high}, median {middle}, {len(kinds):,} different; "
            f"{found.bytes_decoded / 2**20:,.1f} MiB as pixels"
        )
    if class_names is None:
        lines.append("classes: none (images are not all in sub-folders)")
    else:
        counts = found.per_class(class_names)
        values = sorted(counts.values())
        lines.append(
            f"classes: {len(counts):,}, with {values[0]:,} to {values[-1]:,} readable images each"
        )
        lines += _shortened([f"  {name}  {n:,}" for name, n in counts.items()], most)
    if bad:
        lines.append(f"unreadable: {bad:,} ({bad / (bad + readable):.2%})")
        lines += _shortened([f"  {name}: {reason}" for name, reason in found.bad], most)
    return "\n".join(lines)


def _shortened(lines: list[str], most: int) -> list[str]:
    more = len(lines) - most
    return lines if more <= 0 else [*lines[:most], f"  and {more:,} more"]
