"""Slicing rules and α of each layer, apart from any network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poa_jax.elastic.extract import cut
from poa_jax.elastic.layers import Cut, Dense, LayerNorm, LayerScale, PatchEmbed, gelu
from poa_jax.elastic.width import Width

RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def masked(width, bound):
    return Width(bound, jnp.int32(width))


def test_halving_the_input_of_a_constant_map_keeps_its_output_before_the_bias():
    bias = random(5)
    params = {"kernel": np.full((16, 5), 0.5, np.float32), "bias": bias}
    whole = Dense(5).apply({"params": params}, np.ones((2, 16), np.float32))
    for width in (Width(8), masked(8, 16)):
        half = cut(params, Dense.cuts(width, 16, None))
        np.testing.assert_array_equal(half["bias"], bias)
        x = np.ones((2, 16), np.float32)
        x[:, 8:] = 0
        out = Dense(5).apply({"params": half}, x[:, : width.bound])
        np.testing.assert_allclose(out, whole, rtol=1e-6)
        np.testing.assert_allclose(out - bias[None], 8.0, rtol=1e-6)


@pytest.mark.parametrize("groups", [0, 3])
def test_dense_is_sliced_on_both_sides_and_scaled_by_the_ratio_of_inputs(groups):
    middle = (groups,) if groups else ()
    params = {"kernel": random(12, *middle, 8), "bias": random(*middle, 8)}
    rules = Dense.cuts(Width(4), 12, Width(6), groups=bool(groups))
    small = cut(params, rules)
    np.testing.assert_allclose(small["kernel"], 3 * params["kernel"][:4, ..., :6], rtol=1e-6)
    np.testing.assert_array_equal(small["bias"], params["bias"][..., :6])
    rules = Dense.cuts(masked(4, 12), 12, masked(6, 8), groups=bool(groups))
    zeroed = cut(params, rules)
    np.testing.assert_array_equal(zeroed["kernel"][:4, ..., :6], small["kernel"])
    np.testing.assert_array_equal(zeroed["bias"][..., :6], small["bias"])
    assert not zeroed["kernel"][4:].any()
    assert not zeroed["kernel"][..., 6:].any()
    assert not zeroed["bias"][..., 6:].any()


def test_a_qkv_slice_takes_the_first_heads_of_queries_keys_and_values():
    width, head_dim = 48, 16
    # The official fused matrix has rows q, k, v one after the other; entry = its row.
    rows = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    params = {"kernel": np.broadcast_to(rows, (64, 3, 64)), "bias": rows}
    small = cut(params, Dense.cuts(Width(width), 64, Width(width), groups=True))
    kept = small["bias"].reshape(3, width // head_dim, head_dim)
    for part in range(3):
        for head in range(3):
            first = 64 * part + head_dim * head
            np.testing.assert_array_equal(kept[part, head], np.arange(first, first + head_dim))
    np.testing.assert_allclose(small["kernel"][0] * (width / 64), small["bias"], rtol=1e-6)


def test_a_masked_width_within_a_narrower_bound_slices_and_masks():
    params = {"kernel": random(12, 12), "bias": random(12)}
    width = masked(4, 8)
    both = cut(params, Dense.cuts(width, 12, width))
    small = cut(params, Dense.cuts(Width(4), 12, Width(4)))
    assert both["kernel"].shape == (8, 8)
    np.testing.assert_array_equal(both["kernel"][:4, :4], small["kernel"])
    assert not both["kernel"][4:].any()
    assert not both["bias"][4:].any()


def test_the_intact_width_leaves_parameters_bit_equal():
    params = {"kernel": random(12, 8), "bias": random(8)}
    for width in (Width(12), masked(12, 12)):
        whole = cut(params, Dense.cuts(width, 12, Width(8)))
        jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_patch_embedding_slices_its_outputs_without_scaling():
    params = {"kernel": random(4, 4, 3, 8), "bias": random(8)}
    small = cut(params, PatchEmbed.cuts(Width(6)))
    np.testing.assert_array_equal(small["kernel"], params["kernel"][..., :6])
    np.testing.assert_array_equal(small["bias"], params["bias"][:6])


def test_patch_embedding_is_the_convolution_it_stands_for():
    params = {"kernel": random(4, 4, 3, 8), "bias": random(8)}
    images = random(2, 8, 12, 3)
    tokens = PatchEmbed(8, 4).apply({"params": params}, images)
    expected = jax.lax.conv_general_dilated(
        images, params["kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).reshape(2, 6, 8)
    np.testing.assert_allclose(tokens, expected + params["bias"][None, None], atol=1e-5)


def test_layer_norm_uses_the_statistics_of_the_channels_in_use():
    params = {"scale": random(8), "bias": random(8)}
    x = 3 * random(5, 8) + 2
    x[:, 6:] = 0
    small = cut(params, LayerNorm.cuts(Width(6)))
    narrow = LayerNorm().apply({"params": small}, x[:, :6])
    row = x[0, :6].astype(np.float64)
    by_hand = (row - row.mean()) / np.sqrt(row.var() + 1e-6) * small["scale"] + small["bias"]
    np.testing.assert_allclose(narrow[0], by_hand, atol=1e-5)
    width = masked(6, 8)
    wide = LayerNorm().apply({"params": cut(params, LayerNorm.cuts(width))}, x, width)
    np.testing.assert_allclose(wide[:, :6], narrow, atol=1e-5)
    assert not wide[:, 6:].any()


def test_layer_scale_is_sliced_and_not_scaled():
    params = {"gamma": random(8)}
    small = cut(params, LayerScale.cuts(Width(6)))
    np.testing.assert_array_equal(small["gamma"], params["gamma"][:6])


def test_parameters_are_float32_whatever_the_arithmetic_is():
    for layer in (Dense(4, dtype=jnp.bfloat16), LayerNorm(dtype=jnp.bfloat16)):
        out, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 3)))
        assert out.dtype == jnp.bfloat16
        assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_linear_maps_start_as_the_official_ones_do():
    params = Dense(400, groups=3).init(jax.random.key(0), jnp.ones((1, 300)))["params"]
    assert params["kernel"].shape == (300, 3, 400)
    assert abs(float(params["kernel"].std()) - 0.02) < 1e-4
    assert not params["bias"].any()


def test_gelu_and_its_derivative_are_the_exact_ones():
    x = jnp.linspace(-6, 6, 401)
    np.testing.assert_allclose(gelu(x), nn.gelu(x, approximate=False), atol=1e-6)
    found = jax.vmap(jax.grad(gelu))(x)
    expected = jax.vmap(jax.grad(lambda v: nn.gelu(v, approximate=False)))(x)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert gelu(jnp.float32(0)) == 0


def test_a_rule_without_axes_leaves_a_parameter_alone():
    x = random(3)
    np.testing.assert_array_equal(cut({"x": x}, {"x": Cut()})["x"], x)
