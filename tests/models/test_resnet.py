"""The ResNet against the official network: forward of all stored sub-networks, extraction, cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_params import load, under
from golden_resnet import resnet_backbone

from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import depth_mask, kept_blocks
from poa_jax.elastic.width import Width
from poa_jax.models.resnet import ResNet

SMALL = ResNet(image_size=64, width=32, depths=(2, 2, 3, 2), stem=16, groups=4)
PUBLISHED = ResNet(image_size=224, width=128, depths=(3, 8, 36, 3))
TINY = ResNet(image_size=32, width=8, depths=(1, 2, 3, 1), stem=8, groups=4)
TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}
NETS = [tuple(int(n) for n in row) for row in load("resnet")["nets"]]


def params():
    return resnet_backbone(under(load("resnet"), "param/"))


def views():
    """Return the larger images without and with their mask as one batch, then the smaller ones."""
    arrays = load("resnet")
    large, small = (arrays[f"input/{k}"].transpose(0, 2, 3, 1) for k in ("img64", "img32"))
    mask = arrays["input/mask64"]
    masks = np.concatenate([np.zeros_like(mask), mask])
    return [np.concatenate([large, large]), small], [masks, None]


def check(outs, net):
    arrays, prefix = load("resnet"), f"out/net{NETS.index(net)}"
    parts = {
        "img64/nomask": jax.tree.map(lambda x: x[:2], outs[0]),
        "img64/mask": jax.tree.map(lambda x: x[2:], outs[0]),
        "img32/nomask": outs[1],
    }
    for view, out in parts.items():
        for name, key in (
            ("cls", "x_norm_clstoken"),
            ("patches", "x_norm_patchtokens"),
            ("prenorm", "x_prenorm"),
        ):
            np.testing.assert_allclose(out[name], arrays[f"{prefix}/{view}/{key}"], **TOLERANCE)
    means = arrays[f"{prefix}/img64/multistage_mean"]
    np.testing.assert_allclose(parts["img64/nomask"]["multistage"], means, **TOLERANCE)


@functools.partial(jax.jit, static_argnames="bound")
def elastic(bound, active, keep, params, images, masks):
    width = Width(bound, active)
    small = {"params": cut(params, SMALL.cuts(width))}
    run = functools.partial(SMALL.resized(bound).apply, small, method="views")
    return run(images, masks, width=width, keep=keep, with_stages=True)


@functools.partial(jax.jit, static_argnames="net")
def static(net, params, images, masks):
    return net.apply({"params": params}, images, masks, with_stages=True, method="views")


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"w{net[0]}-d{net[4:]}")
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "sliced"])
def test_forward_equals_the_official_network(net, masked):
    width, keep = net[0], depth_mask(net[4:], SMALL.max_depths)
    assert net[:4] == tuple(width * 2**stage for stage in range(4))
    size = (32, jnp.int32(width)) if masked else (width, None)
    outs = elastic(*size, keep, params(), *views())
    check(outs, net)
    assert [x.shape[1:] for x in outs[0]["stages"]] == [
        (16, 16, 64), (8, 8, 128), (4, 4, 256), (2, 2, 512),
    ]  # fmt: skip


@pytest.mark.parametrize("net", NETS[:1] + NETS[3:4], ids=lambda net: f"w{net[0]}-d{net[4:]}")
def test_extracted_network_equals_the_official_network(net):
    kept = tuple(map(kept_blocks, net[4:], SMALL.max_depths))
    shallow = SMALL.resized(SMALL.width, net[4:])
    small = cut(SMALL.pick(params(), kept), shallow.cuts(Width(net[0])))
    ordinary = SMALL.resized(net[0], net[4:])
    own = jax.eval_shape(ordinary.init, jax.random.key(0), views()[0][0])["params"]
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, own)
    assert ordinary.max_depths == net[4:]
    check(static(ordinary, small, *views()), net)


def test_a_whole_stored_state_dict_becomes_the_parameters_of_the_network():
    own = jax.eval_shape(SMALL.init, jax.random.key(0), views()[0][0])["params"]
    assert jax.tree.map(jnp.shape, params()) == jax.tree.map(jnp.shape, own)
    whole = cut(params(), SMALL.cuts(Width(32)))
    jax.tree.map(np.testing.assert_array_equal, whole, params())


def test_one_batch_alone_equals_the_same_batch_among_others():
    keep = depth_mask(NETS[1][4:], SMALL.max_depths)
    together = elastic(32, jnp.int32(20), keep, params(), *views())[1]
    width = Width(32, jnp.int32(20))
    small = {"params": cut(params(), SMALL.cuts(width))}
    alone = jax.jit(functools.partial(SMALL.apply, width=width))(small, views()[0][1], keep=keep)
    assert set(alone) == {"cls", "patches", "prenorm"}
    for name, value in alone.items():
        np.testing.assert_allclose(value, together[name], atol=1e-5)


def test_costs_count_the_parameters_of_a_network_with_stages_of_one_block():
    shapes = jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert [set(shapes[f"stage{i}"]) for i in (1, 2)] == [{"first"}, {"first", "rest"}]
    count = sum(x.size for x in jax.tree.leaves(shapes)) - shapes["mask_token"].size
    assert TINY.cost(32).params == count


def test_features_and_mask_grid_do_not_depend_on_the_inner_width():
    assert PUBLISHED.mask_grid == (14, 14)
    assert PUBLISHED.clone(mask_scale=4).mask_grid == (28, 28)
    for width in (Width(64), Width(128, jnp.int32(64))):
        assert PUBLISHED.feature_width(width) == Width(2048)
    assert PUBLISHED.resized(64).feature_width(Width(64)) == Width(2048)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_patches_and_masks_have_the_same_grid_whatever_the_scale(scale):
    net = TINY.clone(mask_scale=scale)
    images = jnp.ones((1, 64, 32, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    masks = jnp.zeros((1, 2 * scale * scale), bool)
    out = jax.eval_shape(net.apply, variables, images, masks)
    assert out["patches"].shape == (1, 2 * scale * scale, 128)
    assert net.mask_grid == (scale, scale)


@functools.partial(jax.jit, static_argnums=0)
def gradient(net, variables, images):
    return jax.grad(lambda v: jnp.square(net.apply(v, images)["patches"]).mean())(variables)


def test_rematerialisation_redoes_convolutions_only_if_full_and_changes_no_gradient():
    net = TINY.clone(depths=(1, 2, 1, 1))
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = jax.jit(net.init)(jax.random.key(0), images)
    grads, convolutions = {}, {}
    for policy in ("none", "lean", "full"):
        program = gradient.lower(net.clone(remat=policy), variables, images).compile()
        grads[policy] = jax.tree.map(np.asarray, program(variables, images))
        convolutions[policy] = program.as_text().count(" dot(")
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, grads["lean"], grads["none"])
    jax.tree.map(close, grads["full"], grads["none"])
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads["none"]) if g.size) > 0.1
    assert convolutions["none"] == convolutions["lean"] < convolutions["full"]


def test_skipped_blocks_stand_behind_a_condition():
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(TINY.init, jax.random.key(0), images)
    keep = depth_mask((1, 1, 2, 1), TINY.max_depths)
    always = str(jax.make_jaxpr(TINY.apply)(variables, images))
    chosen = str(jax.make_jaxpr(lambda v, k: TINY.apply(v, images, keep=k))(variables, keep))
    each = always.count("cond[")  # one for each convolution: what platform it is for
    # The scans of stages 2 and 3; the others have one block.
    assert chosen.count("cond[") == each + 2


def test_a_stage_cannot_lose_its_first_block():
    picked = SMALL.pick(params(), ((0,), (0, 1), (0, 2), (0,)))
    before, after = (tree["stage3"]["rest"]["norm1"]["bias"] for tree in (params(), picked))
    np.testing.assert_array_equal(after, before[1:])
    with pytest.raises(ValueError, match="stage2 cannot lose its first block"):
        SMALL.pick(params(), ((0,), (1,), (0, 2), (0,)))


def test_impossible_networks_are_refused_in_one_sentence():
    for depths in ((2, 2, 2), (2, 0, 2, 2)):
        with pytest.raises(ValueError, match=r"4 stages .* got depths of 2\.[02]\.2"):
            TINY.clone(depths=depths)
    for field, width in (("width", 10), ("stem", 10), ("out_width", 10)):
        with pytest.raises(ValueError, match=r"width of 10 channels .* 4 groups .* is 12$"):
            TINY.clone(**{field: width})
    with pytest.raises(ValueError, match="not a multiple of the 4 groups"):
        TINY.resized(6)
    with pytest.raises(ValueError, match=r"side of a global or masked image of 40 .* 32 or 64"):
        TINY.clone(image_size=40)
    with pytest.raises(ValueError, match="mask scale of 3"):
        TINY.clone(mask_scale=3)
    with pytest.raises(ValueError, match="remat policy 'dots'"):
        jax.eval_shape(TINY.clone(remat="dots").init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_impossible_images_and_masks_are_refused_in_one_sentence():
    variables = jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    encode = functools.partial(jax.eval_shape, TINY.apply, variables)
    assert encode(jnp.zeros((1, 36, 20, 3)))["prenorm"].shape == (1, 2, 128)
    with pytest.raises(ValueError, match="of 30 pixels is not a multiple of 4, expected 28 or 32"):
        encode(jnp.zeros((1, 32, 30, 3)))
    with pytest.raises(ValueError, match="of 3 pixels is not a multiple of 4, expected 4"):
        TINY.check_image(3, 32)
    with pytest.raises(ValueError, match="of 36 pixels is not a multiple of 32, expected 32 or 64"):
        encode(jnp.zeros((1, 36, 32, 3)), jnp.zeros((1, 4), bool))
    with pytest.raises(ValueError, match=r"masks of shape \(1, 5\) .* 2×2; expected \(1, 4\)"):
        encode(jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 5), bool))
