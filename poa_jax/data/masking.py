"""Which patches of the global crops are hidden: random blocks, BEiT style, as in DINOv2 and POA.

A grid is held as one Python integer, bit row · W + column: counting how much of a rectangle is
still free is then a few machine instructions instead of a walk over an array.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from poa_jax import config_families
from poa_jax.config import leaves

MIN_BLOCK = 4  # patches a block aims at, at least, unless fewer are left to mask
LOG_ASPECT = math.log(1 / 0.3)  # height / width of a block is log-uniform between 0.3 and 1/0.3
MAX_SHARE = 0.5  # largest block, as a share of the grid
BLOCK_TRIES = 10


@dataclass(frozen=True)
class MaskRecipe:
    """How masks are drawn: the `probability` of a masked crop, the `ratio` of its patches.

    `grid` is (rows, columns) of patches, `ratio` (low, high); `group` images (2 · group crops)
    share one set of equally spaced ratios.
    """

    grid: tuple[int, int]
    probability: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    group: int = 8

    def __post_init__(self):
        low, high = self.ratio
        if min(self.grid) < 1 or self.group < 1:
            raise ValueError(
                f"the mask grid and group must be 1 or more; got {self.grid} and {self.group}"
            )
        if not 0 <= self.probability <= 1:
            raise ValueError(f"masks.probability must be from 0 to 1; got {self.probability}")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"masks.ratio must be 0 <= low <= high <= 1; got ({low}, {high})")

    @classmethod
    def from_config(cls, config: Any) -> "MaskRecipe":
        """Read the recipe from the `model` and `masks` keys of a run's configuration."""
        size = config.model.image_size
        patch = config_families.mask_patch(dict(leaves(config.to_dict())))
        if size % patch:
            raise ValueError(
                f"model.image_size {size} is not a multiple of the {patch} pixels of a mask's "
                f"squares; the nearest is {max(1, round(size / patch)) * patch}"
            )
        m = config.masks
        grid = (size // patch, size // patch)
        return cls(grid, m.probability, tuple(m.ratio), m.group)

    @property
    def max_masked(self) -> int:
        """Most patches that can be masked in one group."""
        rows, columns = self.grid
        return max_masked(2 * self.group, rows * columns, self.probability, self.ratio)


def group_masks(
    rng: np.random.Generator,
    num_crops: int,
    grid: tuple[int, int],
    probability: float,
    ratio: tuple[float, float],
) -> np.ndarray:
    """Draw the masks of a group of crops; returns bool (num_crops, rows · columns), True = hidden.

    int(num_crops · probability) crops are masked, one from each equal slice of `ratio`; their
    places in the group are shuffled.
    """
    rows, columns = grid
    patches = rows * columns
    edges = ratio_edges(int(num_crops * probability), ratio).tolist()
    uniform = _uniforms(rng)
    bits = [0] * num_crops
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        bits[i] = block_mask(uniform, grid, int(patches * (low + (high - low) * next(uniform))))
    order = rng.permutation(num_crops)
    packed = b"".join(bits[i].to_bytes((patches + 7) // 8, "little") for i in order)
    packed = np.frombuffer(packed, np.uint8).reshape(num_crops, -1)
    return np.unpackbits(packed, axis=1, count=patches, bitorder="little").astype(bool)


def max_masked(
    num_crops: int, num_patches: int, probability: float, ratio: tuple[float, float]
) -> int:
    """Return the most patches `group_masks` can hide: Σ int(N · upper edge of each slice)."""
    upper = ratio_edges(int(num_crops * probability), ratio)[1:]
    return int((np.float32(num_patches) * upper).astype(np.int64).sum())


def ratio_edges(slices: int, ratio: tuple[float, float]) -> np.ndarray:
    """Return the slices + 1 edges that cut `ratio` into equal slices, float32.

    Counted up from the low end in the first half and down from the high end in the second, with
    one rounding, as torch.linspace does: the last bit decides int(N · edge) where that is whole.
    """
    low, high = np.float32(ratio[0]), np.float32(ratio[1])
    if slices == 0:
        return np.array([low], np.float32)
    step = np.float64((high - low) / np.float32(slices))
    i = np.arange(slices + 1)
    return np.where(i < (slices + 1) // 2, low + step * i, high - step * (slices - i)).astype(
        np.float32
    )


def block_mask(uniform: Iterator[float], grid: tuple[int, int], requested: int) -> int:
    """Hide `requested` patches, or slightly fewer, block after block; returns the bits.

    A block aims at U(4, left) patches (at most half the grid), with a log-uniform aspect and a
    uniform place. It counts if it hides something new and not too much; 10 misses end the mask.
    """
    rows, columns = grid
    largest = MAX_SHARE * rows * columns
    bits, hidden = 0, 0
    while hidden < requested:
        allowed = min(requested - hidden, largest)
        block = _fitting_block(uniform, grid, bits, allowed)
        if block == 0:
            break
        bits |= block
        hidden = bits.bit_count()
    return bits


def _fitting_block(
    uniform: Iterator[float], grid: tuple[int, int], bits: int, allowed: float
) -> int:
    """Return a random block that adds 1 … `allowed` patches to `bits`, 0 after 10 misses."""
    rows, columns = grid
    for _ in range(BLOCK_TRIES):
        area = MIN_BLOCK + (allowed - MIN_BLOCK) * next(uniform)
        aspect = math.exp(LOG_ASPECT * (2.0 * next(uniform) - 1.0))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (h < rows and w < columns):
            continue
        top = int(next(uniform) * (rows - h + 1))
        left = int(next(uniform) * (columns - w + 1))
        line = ((1 << w) - 1) << left
        block = sum(line << (columns * row) for row in range(top, top + h))
        if 0 < (block & ~bits).bit_count() <= allowed:
            return block
    return 0


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Yield numbers in [0, 1) without end, drawn 128 at a time."""
    while True:
        yield from rng.random(128).tolist()
