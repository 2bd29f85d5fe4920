"""Colour operations against the images that the official recipe makes, and against each other."""

import numpy as np
import pytest
from PIL import Image

from poa_jax.data import photometric
from poa_jax.data.photometric import Photometric


@pytest.fixture(scope="module")
def augment(golden):
    return golden("augment")


@pytest.fixture(scope="module")
def crop(augment):
    return augment["exact/crop_7_12_40_30_to_32"]


@pytest.mark.parametrize(
    ("operation", "factor"),
    [
        ("brightness", 0.6),
        ("brightness", 1.4),
        ("contrast", 0.6),
        ("contrast", 1.4),
        ("saturation", 0.8),
        ("saturation", 1.2),
        ("hue", -0.1),
        ("hue", 0.1),
    ],
)
def test_jitter_gives_the_official_pixels_exactly(augment, crop, operation, factor):
    got = photometric.jitter(crop, operation, factor)
    np.testing.assert_array_equal(got, augment[f"exact/{operation}_{factor}"])


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_gives_the_official_pixels_exactly(augment, crop, sigma):
    got = photometric.gaussian_blur(crop, sigma)
    np.testing.assert_array_equal(got, augment[f"exact/gaussian_blur_k9_sigma{sigma}"])


def test_solarize_and_grayscale_give_the_official_pixels_exactly(augment, crop):
    got = photometric.apply_photometric(crop, Photometric(solarize=True))
    np.testing.assert_array_equal(got, augment["exact/solarize_128"])
    got = photometric.apply_photometric(crop, Photometric(grayscale=True))
    np.testing.assert_array_equal(got, augment["exact/grayscale"])


def test_operations_run_in_the_order_jitter_gray_blur_solarize(crop):
    jitter = (("hue", 0.1), ("brightness", 1.3), ("saturation", 0.9), ("contrast", 0.7))
    expected = crop
    for operation, factor in jitter:
        expected = photometric.jitter(expected, operation, factor)
    expected = np.asarray(Image.fromarray(expected).convert("L").convert("RGB"))
    expected = photometric.solarize(photometric.gaussian_blur(expected, 1.3))
    got = photometric.apply_photometric(crop, Photometric(jitter, True, 1.3, True))
    np.testing.assert_array_equal(got, expected)
    backwards = photometric.apply_photometric(crop, Photometric(jitter[::-1], True, 1.3, True))
    assert (backwards != expected).any()


def test_a_grey_picture_in_one_channel_gets_the_pixels_it_gets_in_three(crop):
    grey = photometric.to_grey(crop)
    three_channels = np.repeat(grey[..., None], 3, axis=2)
    rng = np.random.default_rng(0)
    for _ in range(100):
        u = rng.random(photometric.UNIFORMS).tolist()
        what = photometric.draw_photometric(u, 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.5, 0.5)
        one = photometric.apply_photometric(grey, what)
        three = photometric.apply_photometric(three_channels, what)
        np.testing.assert_array_equal(one, three)


def test_jitter_factors_cover_their_range_and_every_order_is_equally_likely():
    rng = np.random.default_rng(1)
    strength = (0.4, 1.5, 0.2, 0.1)
    draws = 4800
    factors = {name: [] for name in photometric.JITTER_OPS}
    orders = {}
    for _ in range(draws):
        u = rng.random(photometric.UNIFORMS).tolist()
        what = photometric.draw_photometric(u, 1.0, strength, 0.0, 0.0, 0.0)
        for name, factor in what.jitter:
            factors[name].append(factor)
        order = tuple(name for name, _ in what.jitter)
        orders[order] = orders.get(order, 0) + 1
    expected = {
        "brightness": (0.6, 1.4),
        "contrast": (0.0, 2.5),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in expected.items():
        values = np.array(factors[name])
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        standard_error = (high - low) / np.sqrt(12 * draws)
        assert abs(values.mean() - (low + high) / 2) < 4 * standard_error
    assert len(orders) == 24
    chance = draws / 24
    assert all(abs(n - chance) < 4.5 * np.sqrt(chance) for n in orders.values())


@pytest.mark.parametrize("factor", [0.0, 0.37, 0.6, 1.0, 1.213, 2.5])
def test_brightness_and_contrast_are_pillows_for_every_value(factor):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.stack([ramp, ramp[::-1], ramp.T], axis=2)
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L"))
    for operation, base in (("brightness", 0), ("contrast", int(grey.mean() + 0.5))):
        expected = Image.blend(Image.new("RGB", image.size, (base,) * 3), image, factor)
        got = photometric.jitter(pixels, operation, factor)
        np.testing.assert_array_equal(got, np.asarray(expected))


def test_saturation_is_pillows_but_for_a_last_bit():
    rng = np.random.default_rng(0)
    for factor in (0.0, 0.8, 1.0, 1.2, *rng.uniform(0.0, 2.0, 20)):
        pixels = rng.integers(0, 256, (150, 150, 3), np.uint8)
        image = Image.fromarray(pixels)
        expected = Image.blend(image.convert("L").convert("RGB"), image, float(factor))
        difference = photometric.jitter(pixels, "saturation", factor) - np.asarray(expected, int)
        assert np.abs(difference).max() <= 1
        # Where a factor makes whole numbers, float32 may cut them by one.
        assert (difference != 0).mean() < (0.02 if factor == 1.2 else 0.003)
