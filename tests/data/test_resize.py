"""Boxes resized: the fast way is near Pillow, never looks outside the box, and has its limits."""

import cv2
import numpy as np
import pytest

from poa_jax.data import resize


def picture(height, width, seed=0):
    """Noise of every scale, as strong as in photographs (each octave as much as the next)."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for n in (3, 6, 12, 24, 48, 96, 192):
        grid = rng.normal(size=(n, n * width // height, 3)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 60 / n**0.55
    return np.clip(total + 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (375, 500, 224),
        (300, 280, 224),
        (170, 190, 96),
        (97, 96, 96),
        (240, 100, 96),
        (320, 310, 40),
    ],
)
def test_the_fast_way_is_nearer_to_pillow_than_opencvs_own_kernels(height, width, size):
    image = picture(375, 500)
    box = (0, 0, height, width, size)
    exact = resize.cut(image, *box).astype(float)
    fast = resize.cut(image, *box, "fast")
    error = np.abs(fast - exact).mean()
    part = image[:height, :width]
    if min(height, width) > 1.1 * size:  # there is nothing to antialias in a box of the same size
        for other in (cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LINEAR):
            plain = cv2.resize(part, (size, size), interpolation=other)
            assert error < np.abs(plain - exact).mean()
    assert error < 0.5
    assert abs((fast - exact).mean()) < 0.06  # no brighter, no darker
    assert np.abs(fast - exact)[[0, -1]].mean() < 1.0  # at the border of the box too


@pytest.mark.parametrize("way", resize.WAYS)
def test_pixels_outside_the_box_take_no_part(way):
    image = picture(120, 150)
    other = 255 - image
    other[20:100, 30:120] = image[20:100, 30:120]
    np.testing.assert_array_equal(
        resize.cut(image, 20, 30, 80, 90, 50, way), resize.cut(other, 20, 30, 80, 90, 50, way)
    )


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (50, 481), (30, 30)])
def test_the_fast_way_is_exact_where_a_box_grows_or_is_very_large(height, width):
    image = picture(120, 500)
    np.testing.assert_array_equal(
        resize.cut(image, 3, 5, height, width, 50 if height < 100 else 10, "fast"),
        resize.cut(image, 3, 5, height, width, 50 if height < 100 else 10),
    )


def test_black_and_white_stay_within_8_bits_and_flat_stays_flat():
    steps = np.zeros((90, 90, 3), np.uint8)
    steps[:, 30:60] = 255
    exact, fast = (
        resize.cut(steps, 0, 0, 90, 90, 60, way).astype(int) for way in resize.WAYS[::-1]
    )
    assert np.abs(exact - fast).max() < 20
    for value in (0, 1, 128, 255):
        flat = np.full((90, 80, 3), value, np.uint8)
        np.testing.assert_array_equal(resize.cut(flat, 0, 0, 90, 80, 60, "fast"), value)


def test_one_channel_gives_what_three_equal_ones_give():
    grey = picture(100, 100)[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    for way in resize.WAYS:
        one = resize.cut(grey, 4, 5, 90, 80, 64, way)
        np.testing.assert_array_equal(one, resize.cut(three, 4, 5, 90, 80, 64, way)[..., 1])


def test_the_filter_sums_to_one_and_grows_with_the_scale():
    lengths = []
    for scale in (1.0, 1.7, 2.5, 4.0, 8.0):
        kernel = resize._filter(round(64 * scale))
        np.testing.assert_allclose(kernel.sum(), 1.0, atol=1e-6)
        np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-6)
        lengths.append(len(kernel))
    assert lengths == sorted(lengths)
