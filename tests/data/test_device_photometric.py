"""Colours on the device: the host's operations to the pixel, the official distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_statistics import MEAN, OFFICIAL, STD, VIEWS, assert_official_pixels

from poa_jax.data import crops, device_photometric, photometric
from poa_jax.data.crops import CropRecipe

DRAWS = 1500
FEW = dataclasses.replace(OFFICIAL, local_crops=2)


@pytest.fixture(scope="module")
def augment(golden):
    return golden("augment")


@pytest.fixture(scope="module")
def crop(augment):
    return augment["exact/crop_7_12_40_30_to_32"]


finish = jax.jit(lambda batch: device_photometric.finish_crops(batch, FEW, 3, MEAN, STD))


def as_pixels(x):
    values = (np.asarray(x) * np.asarray(STD, np.float32) + np.asarray(MEAN, np.float32)) * 255
    np.testing.assert_allclose(values, np.round(values), atol=1e-3)
    return np.round(values).astype(np.uint8)


def split_batch(augment, first, count):
    """What the host makes with placement "split"."""
    made = [
        crops.make_crops(np.random.default_rng(i), augment["image"], FEW, colours=False)
        for i in range(first, first + count)
    ]
    return {
        "global_crops": np.stack([x for x, _ in made]),
        "local_crops": np.stack([x for _, x in made]),
        "sample": np.array([(i // 10, i % 10) for i in range(first, first + count)], np.int32),
    }


@pytest.mark.parametrize("operation", photometric.JITTER_OPS)
def test_each_operation_gives_the_official_pixels(augment, crop, operation):
    run = jax.jit(device_photometric._OPERATIONS[photometric.JITTER_OPS.index(operation)])
    for name in (n for n in augment if n.startswith(f"exact/{operation}_")):
        factor = float(name.rpartition("_")[2])
        got = np.asarray(run(jnp.asarray(crop, jnp.float32), factor))
        wrong = np.abs(got - augment[name])
        # A quotient that should be whole may come out just below: one of 256 steps of the hue.
        assert wrong.max() <= (6 if operation == "hue" else 1)
        assert (wrong > 0).mean() < 0.003


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_and_grey_give_the_official_pixels(augment, crop, sigma):
    x = jnp.asarray(crop, jnp.float32)
    got = np.asarray(jax.jit(device_photometric.blur)(x, sigma))
    wrong = np.abs(got - augment[f"exact/gaussian_blur_k9_sigma{sigma}"])
    assert wrong.max() <= 1
    assert (wrong > 0).mean() < 0.003
    grey = np.asarray(device_photometric.to_grey(x))
    np.testing.assert_array_equal(np.repeat(grey, 3, 2), augment["exact/grayscale"])


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_same_uniforms_give_the_hosts_pixels(crop, kind):
    recipe = CropRecipe(32, 16, 2, blur=(0.5, 0.5, 0.5), solarize=0.5)
    run = jax.jit(lambda u: device_photometric.apply(u, crop, recipe, kind))
    rng, different = np.random.default_rng(kind), 0
    for _ in range(40):
        u = rng.random(photometric.UNIFORMS).astype(np.float32)
        what = photometric.draw_photometric(
            u.tolist(),
            recipe.jitter,
            recipe.jitter_strength,
            recipe.grayscale,
            recipe.blur_probability(kind),
            recipe.solarize if kind == 1 else 0.0,
        )
        expected = photometric.apply_photometric(crop, what)
        wrong = np.abs(np.asarray(run(u)) - expected)
        if what.solarize:  # 127 and 128 are neighbours before it and far apart after it
            wrong = np.minimum(wrong, np.abs(wrong - (255 - 2 * expected.astype(float))))
        different += (wrong > 0).mean()
        assert np.quantile(wrong, 0.99) <= 2
    assert different / 40 < 0.02


def test_pixels_are_distributed_as_the_official_ones(augment):
    found = {view: [] for view in VIEWS}
    for first in range(0, DRAWS, 250):
        got = finish(split_batch(augment, first, 250))
        big, small = as_pixels(got["global_crops"]), as_pixels(got["local_crops"])
        parts = big[:, 0], big[:, 1], small.reshape(-1, 16, 16, 3)
        for view, pixels in zip(VIEWS, parts, strict=True):
            found[view].append(pixels)
    for view in VIEWS:
        assert_official_pixels(np.concatenate(found[view]), augment, view)


def test_a_sample_looks_the_same_however_the_batch_is_divided(augment):
    batch = split_batch(augment, 7, 8)
    whole = finish(batch)
    assert whole["global_crops"].dtype == jnp.float32
    for rows in (slice(0, 4), slice(4, 8)):
        part = finish({name: x[rows] for name, x in batch.items()})
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][rows])
    other = finish(batch | {"sample": batch["sample"] + np.array([1, 0], np.int32)})
    assert (np.asarray(other["local_crops"]) != np.asarray(whole["local_crops"])).any()


def test_views_of_an_image_are_coloured_independently(augment):
    """The same pixels in every view; no two views come out alike."""
    crop = np.broadcast_to(augment["image"][:16, :16], (1, 8, 16, 16, 3))
    recipe = CropRecipe(16, 16, 8, jitter=1.0)
    batch = {
        "global_crops": crop[:, :2],
        "local_crops": crop,
        "sample": np.array([[4, 5]], np.int32),
    }
    got = jax.jit(lambda b: device_photometric.finish_crops(b, recipe, 0, MEAN, STD))(batch)
    views = np.concatenate([got["global_crops"][0], got["local_crops"][0]]).reshape(10, -1)
    assert len(np.unique(views, axis=0)) == 10


def test_no_local_crops_are_no_trouble(augment):
    recipe = CropRecipe(32, 16, 0)
    batch = {
        "global_crops": np.zeros((2, 2, 32, 32, 3), np.uint8),
        "local_crops": np.zeros((2, 0, 16, 16, 3), np.uint8),
        "sample": np.zeros((2, 2), np.int32),
    }
    got = jax.eval_shape(lambda b: device_photometric.finish_crops(b, recipe, 0, MEAN, STD), batch)
    assert got["local_crops"].shape == (2, 0, 16, 16, 3)
