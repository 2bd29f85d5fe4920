"""Crops cut on the device: Pillow's pixels, the official boxes; what does not fit is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_statistics import (
    MEAN,
    OFFICIAL,
    STD,
    VIEWS,
    assert_official_pixels,
    assert_same_distribution,
)

from poa_jax.data import crops, device_photometric, resident, resize
from poa_jax.data.folder import UnreadableImage
from poa_jax.data.sources import ArraySource

DRAWS = 1500
FEW = dataclasses.replace(OFFICIAL, local_crops=2)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def augment(golden):
    return golden("augment")


cut = jax.jit(resident.cut, static_argnums=5)


@pytest.mark.parametrize(
    "box", [(7, 12, 40, 30, 32), (20, 5, 13, 17, 16), (0, 0, 64, 64, 16), (3, 4, 50, 60, 32)]
)
def test_cut_gives_pillows_pixels(augment, box):
    pixels = augment["image"].astype(np.float32)
    expected = resize.cut(augment["image"], *box).astype(int)
    for flip in (False, True):
        got = np.asarray(cut(pixels, *map(float, box[:4]), box[4], flip)).astype(int)
        wrong = np.abs(got - (expected[:, ::-1] if flip else expected))
        assert wrong.max() <= 1
        # Pillow takes the columns first where the box shrinks in height and grows in width.
        columns_first = box[2] > box[4] > box[3]
        assert (wrong > 0).mean() < (0.3 if columns_first else 0.01)


def test_one_channel_becomes_three(augment):
    grey = augment["image"][..., :1].astype(np.float32)
    got = np.asarray(cut(grey, 7.0, 12.0, 40.0, 30.0, 32, False))
    assert got.shape == (32, 32, 3)
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


@pytest.mark.parametrize("size", [(64, 64), (48, 100), (5, 90), (300, 3)])
@pytest.mark.parametrize("scale", [(0.32, 1.0), (0.05, 0.32)])
def test_boxes_are_those_that_the_host_draws_from_the_same_numbers(size, scale):
    run = jax.jit(jax.vmap(lambda u: resident.crop_box(u, *size, scale)))
    u = RNG.random((300, crops.CROP_UNIFORMS)).astype(np.float32)
    got = np.stack(run(u), axis=1).astype(int)
    expected = np.array([crops.crop_box(row.tolist(), *size, scale) for row in u])
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 0.01
    assert (got[:, 0] >= 0).all()
    assert (got[:, 0] + got[:, 2] <= size[0]).all()
    assert (got[:, 1] + got[:, 3] <= size[1]).all()


def test_whole_recipe_is_distributed_as_the_official_one(augment):
    images = jnp.asarray(augment["image"][None])

    @jax.jit
    def run(batch):
        batch = resident.cut_crops(images, batch, FEW, 3)
        made = device_photometric.finish_crops(batch, FEW, 3, MEAN, STD)
        return [(x * np.float32(STD) + np.float32(MEAN)) * 255 for x in made.values()]

    found = {view: [] for view in VIEWS}
    with jax.numpy_rank_promotion("allow"):
        for first in range(0, DRAWS, 250):
            sample = np.array([(first // 250, row) for row in range(250)], np.int32)
            big, small = run({"image": np.zeros(250, np.int32), "sample": sample})
            big, small = (np.asarray(x).round().astype(np.uint8) for x in (big, small))
            for view, x in zip(VIEWS, (big[:, :1], big[:, 1:], small), strict=True):
                found[view].append(x.reshape(-1, *x.shape[2:]))
    for view in VIEWS:
        assert_official_pixels(np.concatenate(found[view]), augment, view)


@pytest.mark.parametrize(("view", "scale"), [("global1", (0.32, 1.0)), ("local", (0.05, 0.32))])
def test_boxes_are_distributed_as_the_official_ones(augment, view, scale):
    u = jax.random.uniform(jax.random.key(0), (3000, crops.CROP_UNIFORMS))
    boxes = np.stack(jax.vmap(lambda row: resident.crop_box(row, 64, 64, scale))(u), axis=1)
    assert_same_distribution(boxes, augment[f"{view}/crop_top_left_height_width"])


def test_a_sample_is_cut_the_same_however_the_batch_is_divided():
    images = jnp.asarray(RNG.integers(0, 256, (5, 40, 30, 1), np.uint8))
    batch = {
        "image": np.arange(20, dtype=np.int32) % 5,
        "sample": np.stack([np.full(20, 3), np.arange(20)], 1).astype(np.int32),
        "masks": np.ones((20, 2, 4), bool),
    }
    run = jax.jit(lambda b: resident.cut_crops(images, b, FEW, 3))
    whole = run(batch)
    assert whole["global_crops"].shape == (20, 2, 32, 32, 3)
    assert whole["global_crops"].dtype == whole["local_crops"].dtype == np.uint8
    assert "image" not in whole
    part = run({name: x[13:] for name, x in batch.items()})
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][13:])


class Broken:
    """Six images of one size, some of them unreadable."""

    def __init__(self, bad):
        self._bad, self._images = bad, RNG.integers(0, 256, (6, 8, 9, 3), np.uint8)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index in self._bad:
            raise UnreadableImage(self.name(index), "cut off")
        return self._images[index], None

    def name(self, index):
        return f"file{index}.png"


def test_load_replaces_broken_images_by_the_next_readable_one():
    source = Broken({0, 1, 3, 5})
    images = resident.load(source, 1, 1.0)
    np.testing.assert_array_equal(images, source._images[[2, 2, 2, 4, 4, 2]])
    with pytest.raises(ValueError, match="could not be decoded"):
        resident.load(source, 1, 0.1)
    with pytest.raises(ValueError, match="images"):
        resident.load(Broken(set(range(6))), 1, 1.0)


def test_grey_images_take_one_channel():
    grey = RNG.integers(0, 256, (4, 8, 9), np.uint8)
    assert resident.load(ArraySource(grey), 1, 0.0).shape == (4, 8, 9, 1)


def test_what_does_not_fit_is_refused_in_a_sentence():
    source = ArraySource(RNG.integers(0, 256, (100, 64, 64, 3), np.uint8))
    assert resident.load(source, 1.2, 0.0).shape == (100, 64, 64, 3)
    with pytest.raises(ValueError, match=r"needs 1.2 MiB of .* 100 images .*resident_limit"):
        resident.load(source, 1, 0.0)

    class Sizes(Broken):
        def __getitem__(self, index):
            return np.zeros((8, 9 + index, 3), np.uint8), None

    with pytest.raises(ValueError, match=r"one size, but file1\.png has 10 × 8 .* have 9 × 8"):
        resident.load(Sizes(set()), 1, 0.0)
