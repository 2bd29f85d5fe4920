"""Turns of the hue: every colour as Pillow's HSV mode gives it, whatever the turn."""

import numpy as np
import pytest
from PIL import Image

from poa_jax.data.hue import turn_hue


def by_pillow(pixels, factor):
    table = np.tile(np.arange(256), (3, 1))
    table[0] = (table[0] + int(factor * 255)) % 256
    return np.asarray(Image.fromarray(pixels).convert("HSV").point(table.ravel()).convert("RGB"))


@pytest.mark.parametrize("factor", [-0.5, -0.1, -0.003, 0.0, 0.004, 0.1, 0.37, 0.5])
def test_every_pair_of_differences_is_turned_as_pillow_does(factor):
    """All (r − g, g − b) with the least channel at 0, at 20 and at a random value that fits."""
    high, low = np.meshgrid(np.arange(256), np.arange(256))
    for floor in (0, 20, None):
        rng = np.random.default_rng(0)
        span = np.maximum(high, low)
        base = (rng.random(span.shape) * (256 - span)).astype(int) if floor is None else floor
        channels = np.minimum(
            np.stack([high, low, np.zeros_like(low)], 2) + np.atleast_3d(base), 255
        )
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            pixels = np.ascontiguousarray(channels[..., order].astype(np.uint8))
            np.testing.assert_array_equal(turn_hue(pixels, factor), by_pillow(pixels, factor))


def test_grey_has_no_hue_to_turn():
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    np.testing.assert_array_equal(turn_hue(pixels, 0.3), pixels)
