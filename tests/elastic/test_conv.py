"""Convolution, group normalisation and max-pool against sums written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poa_jax.elastic.conv import Conv, GroupNorm, check_groups, max_pool
from poa_jax.elastic.extract import cut
from poa_jax.elastic.width import Width

RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def windows(x, size, stride, value):
    """Return (B, rows, columns, size, size, C) of x padded by (size − 1) / 2 with `value`."""
    p = (size - 1) // 2
    x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=value)
    found = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return found[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("side", [8, 5])
def test_convolution_is_the_sum_over_its_window(size, stride, side):
    x, kernel = random(2, side, side + 2, 4), random(size, size, 4, 6)
    out = jax.jit(Conv(6, size, stride).apply)({"params": {"kernel": kernel}}, x)
    expected = np.einsum("bhwijc,ijcd->bhwd", windows(x, size, stride, 0), kernel)
    assert out.shape == (2, -(-side // stride), -(-(side + 2) // stride), 6)
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_convolution_is_scaled_only_where_its_input_is_cut():
    params = {"kernel": random(3, 3, 12, 8)}
    both = cut(params, Conv.cuts(Width(4), 12, Width(6)))["kernel"]
    np.testing.assert_allclose(both, 3 * params["kernel"][:, :, :4, :6], rtol=1e-6)
    outputs = cut(params, Conv.cuts(None, 12, Width(6)))["kernel"]
    np.testing.assert_array_equal(outputs, params["kernel"][..., :6])
    inputs = cut(params, Conv.cuts(Width(6), 12, None))["kernel"]
    np.testing.assert_array_equal(inputs, 2 * params["kernel"][:, :, :6])
    masked = Width(12, jnp.int32(4)), 12, Width(8, jnp.int32(6))
    wide = cut(params, Conv.cuts(*masked))["kernel"]
    np.testing.assert_array_equal(wide[:, :, :4, :6], both)
    assert not wide[:, :, 4:].any()
    assert not wide[..., 6:].any()


def test_convolutions_start_within_one_over_the_root_of_the_fan_in():
    params = Conv(64, 3).init(jax.random.key(0), jnp.ones((1, 4, 4, 32)))["params"]
    bound = (3 * 3 * 32) ** -0.5
    assert set(params) == {"kernel"}
    assert 0.99 * bound < float(jnp.abs(params["kernel"]).max()) <= bound
    assert abs(float(params["kernel"].std()) - bound / 3**0.5) < 0.01 * bound


def by_hand(x, scale, bias, groups):
    b, h, w, c = x.shape
    parts = x.astype(np.float64).reshape(b, h * w, groups, c // groups)
    centred = parts - parts.mean((1, 3), keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + 1e-5)
    return normed.reshape(b, h, w, c) * scale + bias


@pytest.mark.parametrize("active", [4, 8, 12, 20, 24])
def test_groups_divide_the_channels_in_use_sliced_and_masked(active):
    x, params = 3 * random(2, 5, 4, 24) + 2, {"scale": random(24), "bias": random(24)}
    x[..., active:] = 0
    cotangent = random(2, 5, 4, 24)

    @jax.jit
    def value_and_grad(params, x, width):
        def pulled(params, x):
            small = {"params": cut(params, GroupNorm.cuts(width))}
            y = GroupNorm(4).apply(small, x[..., : width.bound], width)
            return jnp.sum(y * cotangent[..., : width.bound]), y

        return jax.value_and_grad(pulled, argnums=(0, 1), has_aux=True)(params, x)

    (_, narrow), narrow_grads = value_and_grad(params, x, Width(active))
    (_, wide), wide_grads = value_and_grad(params, x, Width(24, jnp.int32(active)))
    expected = by_hand(x[..., :active], params["scale"][:active], params["bias"][:active], groups=4)
    np.testing.assert_allclose(narrow, expected, atol=1e-5)
    np.testing.assert_allclose(wide[..., :active], expected, atol=1e-5)
    assert not wide[..., active:].any()
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)  # noqa: E731
    jax.tree.map(compare, narrow_grads, wide_grads)
    assert not any(g[..., active:].any() for g in jax.tree.leaves(wide_grads))


def test_the_variance_is_exact_for_values_far_from_zero():
    x = random(1, 6, 6, 8) + 3000
    params = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    expected = by_hand(x, params["scale"], params["bias"], groups=2)
    for width in (None, Width(8, jnp.int32(8))):
        found = GroupNorm(2).apply({"params": params}, x, width)
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(("channels", "nearest"), [(50, 64), (47, 32), (48, 64), (3, 32), (33, 32)])
def test_a_width_that_the_groups_do_not_divide_is_refused(channels, nearest):
    with pytest.raises(ValueError, match=rf"width of {channels} .* 32 groups .* is {nearest}\b"):
        GroupNorm(32).init(jax.random.key(0), jnp.ones((1, 2, 2, channels)))
    check_groups(nearest, 32)


def test_max_pool_takes_the_largest_of_each_window_also_of_negative_values():
    x = random(2, 6, 7, 3) - 5
    expected = windows(x, 3, 2, -np.inf).max((3, 4))
    np.testing.assert_array_equal(jax.jit(max_pool)(x), expected)
    assert max_pool(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_parameters_are_float32_whatever_the_arithmetic_is():
    for layer in (Conv(4, 3, dtype=jnp.bfloat16), GroupNorm(2, dtype=jnp.bfloat16)):
        out, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 6)))
        assert out.dtype == jnp.bfloat16
        assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
