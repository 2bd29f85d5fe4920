"""Whether crops are distributed as the official ones: means within standard errors.

`augment.npz` holds what the official augmentation drew and made from one 64 × 64 image.
"""

import numpy as np

from poa_jax.data import crops
from poa_jax.data.crops import CropRecipe

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFFICIAL = CropRecipe(32, 16, 8, blur_inverted=True)  # the official code blurs with 1 − p
VIEWS = ("global1", "global2", "local")


def assert_same_mean(ours, theirs_mean, theirs_std, theirs_n):
    """Each column's mean within 4 standard errors (of a difference of two samples)."""
    ours = np.asarray(ours, np.float64)
    error = np.sqrt(ours.std(axis=0) ** 2 / len(ours) + np.asarray(theirs_std) ** 2 / theirs_n)
    z = (ours.mean(axis=0) - theirs_mean) / error
    assert np.abs(z).max() < 4, z


def assert_same_distribution(ours, theirs):
    """Means, and standard deviations with an error from the fourth moments."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert_same_mean(ours, theirs.mean(axis=0), theirs.std(axis=0), len(theirs))
    square = [(x - x.mean(axis=0)) ** 2 for x in (ours, theirs)]
    assert_same_mean(square[0], square[1].mean(axis=0), square[1].std(axis=0), len(theirs))


def assert_official_pixels(pixels, augment, view):
    """Compare uint8 crops (n, size, size, 3) of `augment["image"]` with those of one view."""
    x = crops.normalise(pixels, MEAN, STD)
    assert_same_distribution(x.mean(axis=(1, 2)), augment[f"{view}/channel_mean"])
    assert_same_distribution(x.std(axis=(1, 2)), augment[f"{view}/channel_std"])
    y = pixels.astype(np.float64) / 255
    steps = (np.abs(np.diff(y, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))
    sharpness = sum(steps) / 2
    assert_same_distribution(sharpness, augment[f"{view}/sharpness"])
    # The images of means, pixel by pixel: 1024 × 3 z-scores, so allow for the largest of them.
    n = int(augment[f"{view}/draws"])
    std = augment[f"{view}/std_image"].transpose(1, 2, 0)
    error = np.sqrt(x.std(axis=0) ** 2 / len(x) + std**2 / n)
    z = (x.mean(axis=0) - augment[f"{view}/mean_image"].transpose(1, 2, 0)) / error
    assert np.abs(z).max() < 5
    assert_same_mean(
        x.mean(axis=(1, 2)), augment[f"{view}/pixel_mean"], x.mean(axis=(1, 2)).std(axis=0), n
    )
