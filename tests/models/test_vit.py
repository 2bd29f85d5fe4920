"""The ViT against the official network: forward, intermediates, positions, SwiGLU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_params import under, vit_backbone

from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import depth_mask, kept_blocks
from poa_jax.elastic.width import Width
from poa_jax.models.positions import resize_positions
from poa_jax.models.vit import ViT, evenly_spaced_blocks

SMALL = ViT(image_size=32, patch_size=8, width=64, depth=5, head_dim=16)
TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}


def nhwc(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


@functools.partial(jax.jit, static_argnames=("vit", "width", "with_blocks"))
def forward(vit, width, params, keep, images, masks, with_blocks=False):
    """The elastic forward with exact slicing; one compilation serves every depth."""
    small = {"params": cut(params, vit.cuts(Width(width)))}
    return [
        vit.resized(width).apply(small, i, m, keep=keep, with_blocks=with_blocks)
        for i, m in zip(images, masks, strict=True)
    ]


def run(vit, params, width, depth, images, masks=None, **kwargs):
    keep = depth_mask((depth,), vit.max_depths)
    images = [nhwc(x) for x in images]
    return forward(vit, width, params, keep, images, masks or [None] * len(images), **kwargs)


def check(out, expected, prefix):
    for name, key in (
        ("cls", "x_norm_clstoken"),
        ("patches", "x_norm_patchtokens"),
        ("prenorm", "x_prenorm"),
    ):
        np.testing.assert_allclose(out[name], expected[f"{prefix}/{key}"], **TOLERANCE)


def test_forward_equals_the_official_network_for_every_size_image_and_mask(golden):
    arrays = golden("vit")
    params = vit_backbone(under(arrays, "param/"))
    inputs = [("img16", None), ("img16x48", None), ("img32", None), ("img32", "mask32")]
    inputs += [("img48", None), ("img48", "mask48")]
    stored = {k.rsplit("/", 1)[0] for k in arrays if k.startswith("out/")}
    checked = set()
    for net in sorted({k.split("/")[1] for k in stored}):
        width, depth = (int(x[1:]) for x in net.split("_"))
        masks = [None if m is None else arrays[f"input/{m}"] for _, m in inputs]
        outs = run(SMALL, params, width, depth, [arrays[f"input/{i}"] for i, _ in inputs], masks)
        for out, (image, mask) in zip(outs, inputs, strict=True):
            key = f"out/{net}/{image}/{'nomask' if mask is None else 'mask'}"
            if key in stored:
                check(out, arrays, key)
                checked.add(key)
    assert checked == stored
    assert len({k.split("/")[1] for k in stored}) == 12


def test_several_crop_sizes_in_one_pass_equal_separate_passes(golden):
    arrays = golden("vit")
    params = vit_backbone(under(arrays, "param/"))
    keep = depth_mask((3,), (5,))
    small = {"params": cut(params, SMALL.cuts(Width(48)))}
    images = [nhwc(arrays["input/img32"]), nhwc(arrays["input/img16"])]
    masks = [jnp.asarray(arrays["input/mask32"]), None]
    vit = SMALL.resized(48)
    large, small = jax.jit(lambda p: vit.apply(p, images, masks, keep=keep, method="views"))(small)
    check(large, arrays, "out/w48_d3/img32/mask")
    check(small, arrays, "out/w48_d3/img16/nomask")


def test_position_tables_equal_pytorch_bicubic_with_offset(golden):
    arrays = golden("pos_embed_interp")
    table = jnp.asarray(arrays["pos_embed_14x14"])
    for key in (k for k in arrays if k.startswith("interp/")):
        grid = tuple(int(n) for n in key.split("/")[1].split("x"))
        np.testing.assert_allclose(resize_positions(table, grid), arrays[key], atol=5e-5)
    arrays = golden("vit")
    for key in (k for k in arrays if k.startswith("pos_interp/")):
        _, width, size = key.split("/")
        table = jnp.asarray(arrays["param/pos_embed"][..., : int(width[1:])])
        grid = tuple(int(n.removesuffix("_px")) // 8 for n in size.split("x"))
        np.testing.assert_allclose(resize_positions(table, grid), arrays[key], atol=5e-5)


def test_position_table_of_the_trained_grid_is_returned_untouched():
    table = jnp.arange(17.0 * 4).reshape(1, 17, 4)
    assert resize_positions(table, (4, 4)) is table
    with pytest.raises(ValueError, match="square"):
        resize_positions(table[:, :-1], (4, 4))


def test_intermediate_layers_equal_the_official_ones(golden):
    arrays = golden("vit_intermediate")
    vit = ViT(image_size=32, patch_size=8, width=32, depth=8, head_dim=8)
    params = vit_backbone(under(arrays, "param/"))
    for key in sorted({k.rsplit("/", 1)[0] for k in arrays if k.startswith("out/")}):
        _, net, count, layer = key.split("/")
        width, depth = (int(x[1:]) for x in net.split("_"))
        taken = evenly_spaced_blocks(depth, int(count[1:]))[int(layer[5:])]
        block = kept_blocks(depth, 8)[taken]
        images = [arrays["input/img32"]]
        tokens = run(vit, params, width, depth, images, with_blocks=True)[0]["blocks"][block]
        normed = normalise(vit, width, params, tokens)
        np.testing.assert_allclose(normed[:, 0], arrays[f"{key}/cls"], **TOLERANCE)
        np.testing.assert_allclose(normed[:, 1:], arrays[f"{key}/patch"], **TOLERANCE)
        if f"{key}/cls_nonorm" in arrays:
            np.testing.assert_allclose(tokens[:, 0], arrays[f"{key}/cls_nonorm"], **TOLERANCE)


@functools.partial(jax.jit, static_argnames=("vit", "width"))
def normalise(vit, width, params, tokens):
    small = {"params": cut(params, vit.cuts(Width(width)))}
    return vit.resized(width).apply(small, tokens, method="normalise")


def test_choice_of_intermediate_layers_follows_the_official_rule(golden):
    arrays = golden("vit_intermediate")
    for count in (1, 2, 3, 4):
        for depth, expected in enumerate(arrays[f"layers_taken/n{count}"], start=1):
            if expected[0] < 0:
                with pytest.raises(ValueError, match="too few"):
                    evenly_spaced_blocks(depth, count)
            else:
                assert evenly_spaced_blocks(depth, count) == tuple(expected[expected >= 0])


def test_swiglu_equals_the_official_network(golden):
    arrays = golden("vit_swiglu")
    vit = ViT(image_size=32, patch_size=8, width=48, depth=2, head_dim=8, mlp="swiglu")
    params = vit_backbone(under(arrays, "param/"))
    for net in sorted({k.split("/")[1] for k in arrays if k.startswith("out/")}):
        width, depth = (int(x[1:]) for x in net.split("_"))
        assert vit.resized(width).hidden_width == arrays[f"hidden/w{width}"]
        check(run(vit, params, width, depth, [arrays["input/img32"]])[0], arrays, f"out/{net}")


def test_initialised_parameters_have_the_structure_of_the_slicing_rules():
    for mlp in ("gelu", "swiglu"):
        for layer_scale in (0.0, 1e-5):
            vit = SMALL.clone(mlp=mlp, layer_scale=layer_scale)
            params = jax.eval_shape(vit.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
            small = jax.eval_shape(lambda p, v=vit: cut(p, v.cuts(Width(32))), params["params"])
            resized = vit.resized(32)
            expected = jax.eval_shape(resized.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
            assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, expected["params"])


@pytest.mark.parametrize("policy", ["full", "dots_saveable", "nothing_saveable"])
def test_rematerialisation_changes_neither_outputs_nor_gradients(policy):
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    params = SMALL.init(jax.random.key(0), images)

    def loss(params, vit):
        return jnp.square(vit.apply(params, images)["patches"]).mean()

    grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    expected = grad(params, SMALL)
    found = grad(params, SMALL.clone(remat=policy))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_remat_policy_is_really_applied_to_the_blocks():
    images = jnp.zeros((1, 32, 32, 3))
    params = SMALL.init(jax.random.key(0), images)
    for name, count in (("none", 0), ("full", 1)):
        vit = SMALL.clone(remat=name)
        text = str(jax.make_jaxpr(lambda p, v=vit: v.apply(p, images)["cls"])(params))
        assert text.count("remat") + text.count("checkpoint") >= count
        assert bool(count) == ("remat" in text or "checkpoint" in text)


def test_bfloat16_stays_close_to_float32():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    params = SMALL.clone(layer_scale=0.5).init(jax.random.key(0), images)
    exact = SMALL.clone(layer_scale=0.5).apply(params, images)["cls"]
    rough = SMALL.clone(layer_scale=0.5, dtype=jnp.bfloat16).apply(params, images)["cls"]
    assert rough.dtype == jnp.bfloat16
    assert 0 < float(jnp.abs(rough.astype(jnp.float32) - exact).max()) < 0.1


def test_impossible_sizes_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="multiple of the head size 16"):
        ViT(image_size=32, patch_size=8, width=50, depth=2, head_dim=16)
    with pytest.raises(ValueError, match="multiple of the patch size 8"):
        ViT(image_size=30, patch_size=8, width=64, depth=2, head_dim=16)
    params = SMALL.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="31×32 pixels"):
        SMALL.apply(params, jnp.zeros((1, 31, 32, 3)))
    with pytest.raises(ValueError, match="remat policy 'dots'"):
        SMALL.clone(remat="dots").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("remat", ["none", "lean"])
def test_dropped_samples_are_not_computed_also_under_rematerialisation(remat):
    images = [jnp.zeros((8, 32, 32, 3)), jnp.zeros((16, 16, 16, 3))]
    params = jax.eval_shape(SMALL.init, jax.random.key(0), images[0])

    def flops(rate):
        vit = SMALL.clone(remat=remat, drop_path=rate)

        def loss(params):
            views = vit.apply(params, images, [None, None], key=jax.random.key(1), method="views")
            return sum(jnp.square(v["patches"]).sum() for v in views)

        return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]

    assert flops(0.5) < 0.65 * flops(0.0)
