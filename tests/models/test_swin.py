"""The Swin against the official network: forward, intermediates, extraction, shifts, cost."""

import functools

import golden_swin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden_params import under

from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import depth_mask, kept_blocks
from poa_jax.elastic.width import Width
from poa_jax.models.swin import Swin
from poa_jax.models.windows import from_windows, relative_positions, shift_mask, to_windows

TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}
SMALL = Swin(image_size=64, width=64, depths=(2, 2, 4, 2), window=4)
OFFICIAL = SMALL.clone(official_patch_norm=True)
NAMES = {"cls": "x_norm_clstoken", "patches": "x_norm_patchtokens", "prenorm": "x_prenorm"}


def nhwc(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@functools.cache
def params():
    from golden_params import load

    return golden_swin.backbone(under(load("swin"), "param/"))


@functools.partial(jax.jit, static_argnames=("swin", "bound"))
def forward(swin, bound, active, keep, params, inputs):
    """Both image sizes, masked and not, with one compilation for all depths of a bound."""
    width = Width(bound, active)
    small = {"params": cut(params, swin.cuts(width))}
    images, masks = zip(*inputs, strict=True)
    resized = swin.resized(bound)
    return resized.apply(small, list(images), list(masks), keep=keep, width=width, method="views")


def case(key, arrays):
    image, mask = key.split("/")
    return nhwc(arrays[f"input/{image}"]), arrays["input/mask64"] if mask == "mask" else None


CASES = ("img64/nomask", "img64/mask", "img40/nomask")


@pytest.mark.parametrize("masked", [False, True], ids=["sliced", "masked"])
@pytest.mark.parametrize("variant", ["official", "consistent"])
def test_forward_equals_the_official_network_for_every_size_image_and_mask(golden, variant, masked):
    arrays = golden("swin")
    swin = OFFICIAL if variant == "official" else SMALL
    stored = {k.rsplit("/", 1)[0] for k in arrays if k.startswith(variant) and "mask/" in k}
    checked = set()
    for width, depth in arrays["nets"].tolist():
        active = jnp.int32(width) if masked else None
        keep = depth_mask((2, 2, depth, 2), swin.depths)
        inputs = [case(c, arrays) for c in CASES]
        outs = forward(swin, 64 if masked else width, active, keep, params(), inputs)
        for out, name in zip(outs, CASES, strict=True):
            key = f"{variant}/w{width}_d{depth}/{name}"
            if key in stored:
                checked.add(key)
                for ours, theirs in NAMES.items():
                    expected = arrays[f"{key}/{theirs}"]
                    found = out[ours][..., : expected.shape[-1]]
                    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert checked == stored
    assert len(checked) == (21 if variant == "official" else 14)


def test_stages_equal_the_official_intermediates_before_their_norms(golden):
    arrays = golden("swin")
    small = OFFICIAL.resized(48)
    run = jax.jit(functools.partial(small.apply, with_stages=True))
    keep = depth_mask((2, 2, 3, 2), OFFICIAL.depths)
    cut_params = {"params": cut(params(), OFFICIAL.cuts(Width(48)))}
    out = run(cut_params, nhwc(arrays["input/img64"]), keep=keep)
    for i, x_BHWC in enumerate(out["stages"]):
        channels = x_BHWC.shape[-1]
        x = x_BHWC.reshape(2, -1, channels)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        scale, bias = (arrays[f"param/norm{i}.norm.{n}"][:channels] for n in ("weight", "bias"))
        key = f"official/w48_d3/img64/intermediate{i}"
        found = x * scale[None, None] + bias[None, None]
        np.testing.assert_allclose(found, arrays[f"{key}/tokens"], **TOLERANCE)
        np.testing.assert_allclose(found.mean(1), arrays[f"{key}/mean"], **TOLERANCE)


def extract(swin, width, depth):
    kept = tuple(kept_blocks(d, m) for d, m in zip((2, 2, depth, 2), swin.depths, strict=True))
    small = cut(swin.pick(params(), kept), swin.cuts(Width(width)))
    return swin.resized(width, (2, 2, depth, 2)), {"params": small}


@pytest.mark.parametrize(("width", "depth"), [(32, 2), (48, 3)])
def test_extracted_network_equals_the_official_one_that_kept_its_shifts(golden, width, depth):
    arrays = golden("extract_swin")
    image, mask = nhwc(golden("swin")["input/img64"]), golden("swin")["input/mask64"]
    swin, small = extract(SMALL, width, depth)
    run = jax.jit(lambda swin, *args: swin.apply(*args), static_argnums=0)
    alternating = swin.clone(shifts=None)
    for name, masks in (("nomask", None), ("mask", mask)):
        for pattern, net in (("original", swin), ("alternating", alternating)):
            out = run(net, small, image, masks)
            for ours, theirs in list(NAMES.items())[:2]:
                key = f"w{width}_d{depth}_static_{pattern}_shift/{name}/{theirs}"
                np.testing.assert_allclose(out[ours], arrays[key], atol=2e-5)
    if depth == 3:  # blocks 0, 1, 3: the pattern is not that of a new network
        assert swin.shift_pattern[2] == (False, True, True)
        assert np.abs(run(alternating, small, image, None)["cls"] - out["cls"]).max() > 0.1


def test_extracted_parameters_are_what_the_official_tool_writes(golden):
    for width, depth in ((32, 2), (48, 3)):
        stored = under(golden("extract_swin"), f"w{width}_d{depth}/backbone.")
        found = flatten_dict(extract(SMALL, width, depth)[1]["params"], sep="/")
        names = [n for n in stored if golden_swin.backbone_path(n)]
        assert len(names) > 80
        for name in names:
            path, block = golden_swin.backbone_path(name)
            ours = found[path] if block is None else found[path][block]
            expected = golden_swin.layout(path, stored[name])
            np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=1e-6, err_msg=name)


def test_extraction_with_the_official_patch_norm_keeps_the_whole_embedding(golden):
    arrays = golden("swin")
    swin, small = extract(OFFICIAL, 48, 3)
    assert small["params"]["patch_embed"]["kernel"].shape[-1] == 64
    assert small["params"]["mask_token"].shape == (1, 48)
    out = jax.jit(swin.apply)(small, nhwc(arrays["input/img64"]), arrays["input/mask64"])
    for ours, theirs in NAMES.items():
        expected = arrays[f"official/w48_d3/img64/mask/{theirs}"]
        np.testing.assert_allclose(out[ours], expected, **TOLERANCE)


def test_windows_of_padded_and_rolled_maps_come_back_as_they_were():
    x = jnp.arange(2.0 * 5 * 7 * 3).reshape(2, 5, 7, 3)
    for shifted in (False, True):
        cut_up = to_windows(x, 4, jnp.asarray(shifted))
        assert cut_up.shape == (2 * 2 * 2, 16, 3)
        np.testing.assert_array_equal(from_windows(cut_up, (5, 7), 4, jnp.asarray(shifted)), x)


def test_shift_mask_separates_what_was_not_adjacent_even_in_a_single_window():
    mask = shift_mask(4, 4, 4)
    assert mask.shape == (1, 16, 16)
    regions = np.unique(mask[0] == 0, axis=0)
    assert len(regions) == 4
    assert regions.sum(0).tolist() == [1] * 16


def test_relative_positions_are_symmetric_about_the_centre():
    index = relative_positions(7)
    assert index.shape == (49, 49)
    assert (index + index.T == 168).all()
    assert len(np.unique(index)) == 169


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image_size": 66}, "66×66 pixels is not a multiple of the patch size 4; the nearest is"),
        ({"image_size": 12}, "smaller than one window of 4 patches of 4 pixels; expected 16 or"),
        ({"width": 40}, "a width of 40 is not a multiple of the head size 16"),
        ({"depths": (2, 2, 4)}, "a Swin has 4 stages"),
        ({"shifts": ((False,),) * 4}, "do not fit stages"),
    ],
)
def test_impossible_networks_are_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        SMALL.clone(**fields)


def test_masks_that_do_not_fit_are_refused():
    image = jnp.zeros((1, 64, 64, 3))
    for masks, size in ((jnp.zeros((1, 15), bool), 64), (jnp.zeros((1, 16), bool), 48)):
        with pytest.raises(ValueError, match="mask"):
            jax.eval_shape(SMALL.init, jax.random.key(0), image[:, :size, :size], masks)
