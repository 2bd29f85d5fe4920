"""Block masks against the statistics of the official generator and its batch rule.

A statistic may be off by 4 standard errors of the difference between our sample and the stored
one; for whole tables (14 × 14 places, 197 counts) the largest of many is allowed 5.
"""

import itertools

import numpy as np
import pytest

from poa_jax import config
from poa_jax.data import masking
from poa_jax.data.masking import MaskRecipe

GRID, RATIO = (14, 14), (0.1, 0.5)
BATCHES = 600  # of 64 crops
DRAWS = 1500  # masks for each requested count


@pytest.fixture(scope="module")
def stored(golden):
    return golden("masks")


@pytest.fixture(scope="module")
def batches():
    """Bool (BATCHES, 64, 196)."""
    draw = (
        masking.group_masks(np.random.default_rng(i), 64, GRID, 0.5, RATIO) for i in range(BATCHES)
    )
    return np.stack(list(draw))


def z_score(ours, mean, std, n):
    """Difference of the means over its standard error; 0 where both agree without varying."""
    ours = np.asarray(ours, np.float64)
    error = np.sqrt(ours.var(axis=0) / len(ours) + np.asarray(std) ** 2 / n)
    difference = ours.mean(axis=0) - mean
    return np.where(difference == 0, 0.0, difference / np.maximum(error, 1e-12))


def share_z_score(ours, theirs, n):
    """The same for shares of yes/no draws, pooled so that a share of 0 on one side has an error."""
    pooled = (ours.mean(axis=0) * len(ours) + theirs * n) / (len(ours) + n)
    error = np.sqrt(pooled * (1 - pooled) * (1 / len(ours) + 1 / n))
    return (ours.mean(axis=0) - theirs) / np.maximum(error, 1e-12)


def neighbours(masks):
    """Mean number of masked 4-neighbours of a masked patch, for masks (n, rows, columns)."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1))).astype(np.int64)
    count = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return (count * masks).sum(axis=(1, 2)) / np.maximum(masks.sum(axis=(1, 2)), 1)


def generated(requested, grid, draws):
    """Bool (draws, rows, columns) of the generator alone."""
    uniform = iter(np.random.default_rng(requested).random(draws * 400).tolist())
    size = grid[0] * grid[1]
    bits = [masking.block_mask(uniform, grid, requested) for _ in range(draws)]
    flat = np.array([[b >> i & 1 for i in range(size)] for b in bits], bool)
    return flat.reshape(draws, *grid)


@pytest.mark.parametrize("crops", [8, 64, 128])
def test_ratio_slices_and_upper_bound_are_the_official_ones_to_the_last_bit(stored, crops):
    probs = stored[f"collate/slots/B{crops}/probs"]
    np.testing.assert_array_equal(masking.ratio_edges(crops // 2, RATIO), probs)
    upper = masking.max_masked(crops, 196, 0.5, RATIO)
    assert upper == stored[f"collate/slots/B{crops}/upperbound"]


def test_half_of_the_crops_are_masked_and_no_group_exceeds_the_upper_bound(batches, stored):
    counts = batches.sum(axis=2)
    np.testing.assert_array_equal((counts > 0).sum(axis=1), 32)
    assert stored["collate/share_masked"] == 0.5
    assert counts.sum(axis=1).max() <= masking.max_masked(64, 196, 0.5, RATIO)


def test_batches_hide_as_much_as_the_official_ones(batches, stored):
    counts = batches.sum(axis=2)
    images, num, per_batch = stored["collate/n"]
    assert (images, per_batch) == (32, 64)
    totals = counts.sum(axis=1)
    mean, std = stored["collate/n_masked_mean_std"]
    assert abs(z_score(totals, mean, std, num)) < 4
    square = (totals - totals.mean()) ** 2  # kurtosis near 3, so its std is about √2 std²
    assert abs(z_score(square, std**2, np.sqrt(2) * std**2, num)) < 4
    low, high = stored["collate/n_masked_minmax"]
    assert low - 5 <= totals.min() <= totals.max() <= high + 5
    fractions = counts.mean(axis=1) / 196
    assert (
        abs(z_score(fractions, stored["collate/mean_fraction_per_image"], std / 64 / 196, num)) < 4
    )
    masked = counts[counts > 0] / 196
    mean, std = (stored[f"collate/{k}_fraction_of_masked"] for k in ("mean", "std"))
    # Slices make these fractions far more even than independent draws: the bound is generous.
    assert abs(z_score(masked, mean, std, num * 32)) < 4
    assert abs(masked.std() - std) < 4 * std / np.sqrt(2 * len(masked))


def test_counts_and_places_are_distributed_as_in_the_official_batches(batches, stored):
    num = int(stored["collate/n"][1])
    counts = batches.sum(axis=2)
    histogram = stored["collate/hist_counts"]
    assert histogram.sum() == num * 64
    ours = np.stack([np.bincount(c, minlength=197) for c in counts])
    # A slot of the batch lands on a count about as a Poisson number of times; seldom ones too.
    pooled = (ours.sum(axis=0) + histogram) / (BATCHES + num)
    error = np.sqrt(pooled * (1 / BATCHES + 1 / num))
    z = (ours.mean(axis=0) - histogram / num) / np.maximum(error, 1e-12)
    assert np.abs(z).max() < 5
    flat = batches.reshape(-1, 14, 14)
    place = share_z_score(flat, stored["collate/spatial_probability"], num * 64)
    assert np.abs(place).max() < 5


def test_places_of_masked_crops_in_a_group_are_shuffled(batches):
    counts = batches.sum(axis=2)
    shares = (counts > 0).mean(axis=0)
    assert np.abs(shares - 0.5).max() < 4.5 * 0.5 / np.sqrt(BATCHES)
    means = counts.mean(axis=0)
    assert np.abs(means - counts.mean()).max() < 4.5 * counts.std() / np.sqrt(BATCHES)


@pytest.mark.parametrize("i", range(14))
def test_generator_is_distributed_as_the_official_one(stored, i):
    requested, n = int(stored["generator/requested"][i]), int(stored["generator/draws"])
    masks = generated(requested, GRID, DRAWS)
    got = masks.sum(axis=(1, 2))
    assert got.max() <= requested
    assert abs(z_score(got, stored["generator/got_mean"][i], stored["generator/got_std"][i], n)) < 4
    ours = got[:, None] == np.arange(197)
    z = share_z_score(ours, stored["generator/got_hist"][i] / n, n)
    assert np.abs(z).max() < 4.5
    place = share_z_score(masks, stored["generator/spatial_probability"][i], n)
    assert np.abs(place).max() < 5
    blocky = neighbours(masks)[got > 0]
    if requested > 1:
        mean, std = (stored[f"generator/neighbours_{k}"][i] for k in ("mean", "std"))
        assert abs(z_score(blocky, mean, std, n)) < 4
        spread = (blocky - blocky.mean()) ** 2
        assert abs(z_score(spread, std**2, spread.std(), n)) < 4


@pytest.mark.parametrize("i", range(5))
def test_generator_is_distributed_as_the_official_one_on_a_small_grid(stored, i):
    requested = int(stored["generator4/requested"][i])
    n = int(stored["generator4/got_hist"][i].sum())
    got = generated(requested, (4, 4), 4000).sum(axis=(1, 2))
    mean, std = (stored[f"generator4/got_{k}"][i] for k in ("mean", "std"))
    assert abs(z_score(got, mean, std, n)) < 4
    z = share_z_score(got[:, None] == np.arange(17), stored["generator4/got_hist"][i] / n, n)
    assert np.abs(z).max() < 4


def test_masks_on_a_wide_grid_are_laid_out_row_by_row():
    masks = masking.group_masks(np.random.default_rng(0), 200, (3, 9), 1.0, (0.2, 0.4))
    masks = masks.reshape(200, 3, 9)
    # Blocks are lower than the grid and narrower than it, so one row or column is never all of it.
    wide, high = masks.all(axis=2).any(axis=1), masks.all(axis=1).any(axis=1)
    assert wide.mean() < 0.05 < high.mean()


def test_a_block_as_high_as_the_grid_is_refused_and_the_next_one_is_tried():
    # Each try reads area, aspect and, if the block is small enough, top and left.
    tall = [0.9999, 0.7878]  # area 8, height / width 2: 4 × 2 on a grid of 4 rows
    wide = [0.9999, 1 - 0.7878]
    first = [0.0, 0.5, 0.0, 0.0]  # area 4: 2 × 2 in the top left corner
    last = [0.0, 0.5, 0.9999, 0.9999]  # the same in the bottom right corner
    bits = masking.block_mask(iter(tall + wide + first + last), (4, 4), 8)
    rows = [[bits >> (4 * row + column) & 1 for column in range(4)] for row in range(4)]
    assert rows == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("probability", "ratio", "grid"),
    [
        (1.0, (0.0, 1.0), (14, 14)),
        (0.5, (0.3, 0.3), (7, 5)),
        (0.0, (0.1, 0.5), (4, 4)),
        (0.9, (0.1, 0.9), (1, 6)),
    ],
)
def test_any_recipe_respects_its_upper_bound(probability, ratio, grid):
    size = grid[0] * grid[1]
    for seed, crops in itertools.product(range(5), (1, 2, 7, 16)):
        masks = masking.group_masks(np.random.default_rng(seed), crops, grid, probability, ratio)
        assert masks.shape == (crops, size)
        assert masks.dtype == bool
        assert masks.sum() <= masking.max_masked(crops, size, probability, ratio)
        assert (masks.any(axis=1)).sum() <= int(crops * probability)


def test_recipe_reads_the_configuration():
    recipe = MaskRecipe.from_config(config.default())
    assert recipe == MaskRecipe((14, 14), 0.5, (0.1, 0.5), 8)
    assert recipe.max_masked == masking.max_masked(16, 196, 0.5, (0.1, 0.5))


def test_impossible_recipes_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"masks\.ratio must be 0 <= low <= high <= 1"):
        MaskRecipe((4, 4), ratio=(0.5, 0.1))
    with pytest.raises(ValueError, match=r"masks\.probability must be from 0 to 1; got 2"):
        MaskRecipe((4, 4), probability=2)
    with pytest.raises(ValueError, match="grid and group must be 1 or more"):
        MaskRecipe((4, 4), group=0)
    c = config.default()
    c.model.image_size = 220
    with pytest.raises(ValueError, match=r"220 is not a multiple of the 16 .*; the nearest is 224"):
        MaskRecipe.from_config(c)
