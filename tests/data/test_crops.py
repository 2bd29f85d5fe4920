"""Geometry of the crops, statistics of the draws, normalisation and the evaluation transform.

`augment.npz` holds what the official augmentation drew and made from one 64 × 64 image. Its blur
probabilities are inverted, so the recipe here says so too. A statistic may be off by 4 standard
errors of the difference between two such samples.
"""

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
    assert_same_mean,
)
from PIL import Image

from poa_jax import config
from poa_jax.data import crops, photometric, resize
from poa_jax.data.crops import CropRecipe

DRAWS = 1500  # images; 12000 local crops


@pytest.fixture(scope="module")
def augment(golden):
    return golden("augment")


@pytest.fixture(scope="module")
def drawn(augment):
    """{view: (list of View, pixels uint8 (n, size, size, 3))} of our own augmentation."""
    image = augment["image"]
    views, pixels = {v: [] for v in VIEWS}, {v: [] for v in VIEWS}
    for i in range(DRAWS):
        draws = crops.draw_views(np.random.default_rng(i), OFFICIAL, 64, 64)
        big, small = crops.make_crops(np.random.default_rng(i), image, OFFICIAL)
        small = small[:2]  # enough to compare pixels with 4000 stored ones
        for name, some in zip(VIEWS, (draws[:1], draws[1:2], draws[2:]), strict=True):
            views[name] += some
        for name, some in zip(VIEWS, (big[:1], big[1:], small), strict=True):
            pixels[name].append(some)
    return {v: (views[v], np.concatenate(pixels[v])) for v in VIEWS}


@pytest.mark.parametrize(
    ("box", "size"), [((7, 12, 40, 30), 32), ((20, 5, 13, 17), 16)], ids=["global", "local"]
)
def test_cut_gives_the_official_pixels_exactly(augment, box, size):
    name = "_".join(map(str, box))
    got = resize.cut(augment["image"], *box, size)
    np.testing.assert_array_equal(got, augment[f"exact/crop_{name}_to_{size}"])


def test_evaluation_crop_gives_the_official_pixels_exactly(augment):
    got = crops.resize_centre_crop(augment["image"], 72, 64)
    np.testing.assert_array_equal(got, augment["exact/eval_resize72_centercrop64"])


def test_evaluation_crop_keeps_the_aspect_and_takes_the_centre():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 38:42] = 255
    got = crops.resize_centre_crop(image, 20, 16)
    assert got.shape == (16, 16, 3)
    np.testing.assert_array_equal(got, got[:, ::-1])
    assert got[:, 7:9].min() > 200
    assert got[:, :5].max() < 10
    with pytest.raises(ValueError, match="centre crop of 21 pixels must fit in the resize of 20"):
        crops.resize_centre_crop(image, 20, 21)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_normalise_gives_the_official_values(augment, array):
    got = crops.normalise(array(augment["exact/crop_7_12_40_30_to_32"]), MEAN, STD)
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        np.transpose(np.asarray(got), (2, 0, 1)), augment["exact/normalised"], rtol=0, atol=1e-6
    )


def test_normalise_runs_inside_jit_on_a_batch_of_views(augment):
    batch = np.stack([augment["exact/crop_7_12_40_30_to_32"]] * 4).reshape(2, 2, 32, 32, 3)
    got = jax.jit(lambda x: crops.normalise(x, MEAN, STD))(batch)
    np.testing.assert_allclose(got, crops.normalise(batch, MEAN, STD), rtol=0, atol=1e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_crop_boxes_are_distributed_as_the_official_ones(augment, drawn, view):
    ours = np.array([(v.top, v.left, v.height, v.width) for v in drawn[view][0]], np.float64)
    theirs = augment[f"{view}/crop_top_left_height_width"].astype(np.float64)
    assert_same_distribution(ours, theirs)
    area, log_aspect = ours[:, 2] * ours[:, 3] / 64**2, np.log(ours[:, 3] / ours[:, 2])
    for name, values in [
        ("area", area),
        ("log_aspect", log_aspect),
        ("aspect", np.exp(log_aspect)),
    ]:
        assert_same_mean(values, *augment[f"{view}/{name}_mean_std"], len(theirs))


@pytest.mark.parametrize("view", VIEWS)
def test_operations_run_as_often_as_in_the_official_recipe(augment, drawn, view):
    ours = np.array(
        [
            (
                v.flip,
                len(v.colours.jitter) > 0,
                v.colours.grayscale,
                v.colours.blur_sigma is not None,
                v.colours.solarize,
            )
            for v in drawn[view][0]
        ],
        np.float64,
    )
    theirs = augment[f"{view}/share_flip_jitter_gray_blur_solarize"]
    n = int(augment[f"{view}/draws"])
    never = theirs == 0
    assert not ours[:, never].any()
    spread = np.sqrt(theirs * (1 - theirs))
    assert_same_mean(ours[:, ~never], theirs[~never], spread[~never], n)
    if theirs[3] > 0:
        sigma = np.array([v.colours.blur_sigma for v in drawn[view][0] if v.colours.blur_sigma])
        low, mean, high = augment[f"{view}/blur_sigma_min_mean_max"]
        assert_same_mean(sigma, mean, (2.0 - 0.1) / np.sqrt(12), n * theirs[3])
        assert 0.1 <= sigma.min() < low + 0.02
        assert high - 0.02 < sigma.max() <= 2.0


@pytest.mark.parametrize("view", VIEWS)
def test_pixels_are_distributed_as_the_official_ones(augment, drawn, view):
    assert_official_pixels(drawn[view][1], augment, view)


def test_blur_probabilities_mean_what_they_say_unless_inverted():
    plain, inverted = CropRecipe(32, 16, 2), CropRecipe(32, 16, 2, blur_inverted=True)
    assert [plain.blur_probability(kind) for kind in range(3)] == [1.0, 0.1, 0.5]
    np.testing.assert_allclose([inverted.blur_probability(k) for k in range(3)], [0.0, 0.9, 0.5])
    views = crops.draw_views(np.random.default_rng(0), plain, 64, 64)
    assert views[0].colours.blur_sigma is not None


def test_a_shape_that_no_box_fits_falls_back_to_the_largest_central_box():
    # Every try asks for more than the width has: 30 % of the area with an aspect near 1.
    never_fits = [0.5] * 22
    assert crops.crop_box(never_fits, 300, 3, (0.3, 0.3)) == (148, 0, 4, 3)
    assert crops.crop_box(never_fits, 3, 300, (0.3, 0.3)) == (0, 148, 3, 4)
    assert crops.crop_box(never_fits, 1, 1, (0.3, 0.3)) == (0, 0, 1, 1)


def test_boxes_reach_every_edge():
    half = [0.5] * 20  # area 1/4, aspect 1
    assert crops.crop_box([*half, 0.0, 0.0], 8, 12, (0.25, 0.25)) == (0, 0, 5, 5)
    assert crops.crop_box([*half, 0.9999, 0.9999], 8, 12, (0.25, 0.25)) == (3, 7, 5, 5)


def test_operations_are_drawn_independently_of_each_other(drawn):
    """Every pair of draws of the local crops is uncorrelated."""
    table = []
    for v in drawn["local"][0]:
        if v.colours.jitter and v.colours.blur_sigma is not None:
            factors = dict(v.colours.jitter)
            order = [name for name, _ in v.colours.jitter]
            table.append(
                [
                    v.top / (65 - v.height),
                    v.left / (65 - v.width),
                    v.height * v.width,
                    v.height / v.width,
                    v.flip,
                    v.colours.grayscale,
                    v.colours.blur_sigma,
                    *(factors[name] for name in sorted(factors)),
                    *(order.index(name) for name in sorted(factors)[:3]),
                ]
            )
    correlation = np.corrcoef(np.array(table, np.float64).T)
    # Only the places in an order are tied to each other (the fourth one follows from three).
    places = np.arange(len(correlation)) >= 11
    tied = places[:, None] & places | np.eye(len(correlation), dtype=bool)
    assert np.abs(correlation[~tied]).max() < 4.5 / np.sqrt(len(table))
    applied = np.array(
        [
            (
                len(v.colours.jitter) > 0,
                v.colours.grayscale,
                v.colours.blur_sigma is not None,
                v.flip,
            )
            for v in drawn["local"][0]
        ],
        np.float64,
    )
    correlation = np.corrcoef(applied.T)[~np.eye(4, dtype=bool)]
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(applied))


def test_boxes_stay_inside_images_of_any_shape():
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 50), (50, 1), (2, 3), (7, 300), (64, 48)]:
        for _ in range(50):
            top, left, h, w = crops.crop_box(rng.random(22).tolist(), height, width, (0.05, 1.0))
            assert 0 <= top <= top + h <= height
            assert 0 <= left <= left + w <= width
            assert min(h, w) >= 1


def test_make_crops_has_fixed_shapes_and_depends_on_nothing_but_the_generator(augment):
    recipe = CropRecipe(32, 16, 3)
    first, again, other = (
        crops.make_crops(np.random.default_rng(seed), augment["image"], recipe)
        for seed in (0, 0, 1)
    )
    assert [x.shape for x in first] == [(2, 32, 32, 3), (3, 16, 16, 3)]
    assert all(x.dtype == np.uint8 for x in first)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    no_local = crops.make_crops(np.random.default_rng(0), augment["image"], CropRecipe(32, 16, 0))
    assert no_local[1].shape == (0, 16, 16, 3)
    np.testing.assert_array_equal(no_local[0], first[0])


def test_grey_images_take_the_short_cut_without_a_change(augment):
    grey = np.asarray(Image.fromarray(augment["image"]).convert("L"))
    image = np.repeat(grey[..., None], 3, axis=2)
    assert crops.is_grey(image)
    almost = image.copy()
    almost[-1, -1, 2] ^= 1
    assert not crops.is_grey(almost)
    recipe = CropRecipe(32, 16, 8)
    for seed in range(5):
        views = crops.draw_views(np.random.default_rng(seed), recipe, 64, 64)
        slow = [
            photometric.apply_photometric(crops.cut_view(image, view, recipe.resize), view.colours)
            for view in views
        ]
        fast = crops.make_crops(np.random.default_rng(seed), image, recipe)
        for a, b in zip(slow, (*fast[0], *fast[1]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_recipe_reads_the_configuration():
    c = config.default()
    c.data.blur_inverted = True
    c.data.local_crops = 5
    recipe = CropRecipe.from_config(c)
    assert recipe == CropRecipe(224, 96, 5, blur_inverted=True)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"global_scale": (0.5, 0.2)}, "global_scale must be 0 < low <= high <= 1"),
        ({"local_scale": (0.0, 0.2)}, "local_scale must be 0 < low <= high <= 1"),
        ({"flip": 1.5}, "flip must be a probability from 0 to 1; got 1.5"),
        ({"blur": (1.0, -0.1, 0.5)}, "blur must be a probability"),
        ({"blur": (1.0, 0.1)}, "blur takes 3 probabilities"),
        ({"jitter_strength": (0.4, 0.4, 0.2, 0.6)}, "at most 0.5 for hue"),
        ({"local_size": 0}, "crop sizes must be 1 or more"),
    ],
)
def test_impossible_recipes_are_refused_in_a_sentence(wrong, words):
    with pytest.raises(ValueError, match=words):
        CropRecipe(**({"global_size": 32, "local_size": 16, "local_crops": 2} | wrong))
