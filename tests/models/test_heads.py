"""The multi-prototype head against the official one."""

import functools

import golden_params
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_params import under

from poa_jax.elastic.extract import cut
from poa_jax.elastic.width import Width
from poa_jax.models.heads import Head, MultiHead, WeightNormDense, l2_normalise

HEADS = MultiHead(width=64, prototypes=(32, 48), hidden=40, bottleneck=24)


@functools.partial(jax.jit, static_argnames="bound")
def logits(params, bound, active, x):
    return HEADS.apply({"params": cut(params, HEADS.cuts(Width(bound, active)))}, x)


@pytest.mark.parametrize("width", [32, 48, 64])
def test_logits_equal_the_official_ones_sliced_and_masked(golden, width):
    arrays = golden("mdino_head")
    params = golden_params.heads(under(arrays, "param/"))
    x = arrays[f"input/w{width}"]
    padded = np.pad(x, ((0, 0), (0, 64 - width)))
    sliced = logits(params, width, None, x)
    masked = logits(params, 64, jnp.int32(width), padded)
    for i, (a, b) in enumerate(zip(sliced, masked, strict=True)):
        expected = arrays[f"out/w{width}/head{i}"]
        np.testing.assert_allclose(a, expected, atol=1e-5)
        np.testing.assert_allclose(b, expected, atol=1e-5)


def test_prototypes_are_unit_vectors_times_their_gain(golden):
    arrays = golden("mdino_head")
    params = golden_params.heads(under(arrays, "param/"))
    for i, k in enumerate(HEADS.prototypes):
        last = {"params": params[f"head_{i}"]["last_layer"]}
        weight = WeightNormDense(k).apply(last, jnp.eye(24))
        expected = arrays[f"effective_weight/last_layer{i}"].T
        np.testing.assert_allclose(weight, expected, atol=1e-5)
        gain = np.linalg.norm(weight, axis=0)
        np.testing.assert_allclose(gain, np.abs(last["params"]["g"]), rtol=1e-5)


def test_only_the_first_map_is_cut(golden):
    params = golden_params.heads(under(golden("mdino_head"), "param/"))
    small = cut(params, HEADS.cuts(Width(48)))
    for name, head in params.items():
        expected = head["fc1"]["kernel"][:48] * np.float32(64 / 48)
        np.testing.assert_allclose(small[name]["fc1"]["kernel"], expected, rtol=1e-6)
        np.testing.assert_array_equal(small[name]["fc1"]["bias"], head["fc1"]["bias"])
        for layer in ("fc2", "fc3", "last_layer"):
            jax.tree.map(np.testing.assert_array_equal, small[name][layer], head[layer])


def test_a_new_head_has_unit_gains_zero_biases_and_small_weights():
    head = Head(prototypes=500, hidden=64, bottleneck=32)
    params = jax.jit(head.init)(jax.random.key(0), jnp.ones((1, 48)))["params"]
    np.testing.assert_array_equal(params["last_layer"]["g"], np.ones(500))
    for i in (1, 2, 3):
        assert not params[f"fc{i}"]["bias"].any()
        assert abs(float(params[f"fc{i}"]["kernel"].std()) - 0.02) < 2e-3
    assert params["last_layer"]["v"].shape == (32, 500)
    assert set(params) == {"fc1", "fc2", "fc3", "last_layer"}


def test_heads_are_independent_of_each_other():
    params = jax.jit(HEADS.init)(jax.random.key(0), jnp.ones((1, 64)))["params"]
    x = jax.random.normal(jax.random.key(1), (3, 64))

    def first(params):
        return jnp.square(HEADS.apply({"params": params}, x)[0]).sum()

    grads = jax.jit(jax.grad(first))(params)
    assert not any(g.any() for g in jax.tree.leaves(grads["head_1"]))
    assert all(g.any() for g in jax.tree.leaves(grads["head_0"]))


def test_rows_of_zeros_have_finite_gradients():
    # A new head maps a padding row, all zeros, to a zero vector before the normalisation.
    params = jax.jit(HEADS.init)(jax.random.key(0), jnp.ones((1, 64)))["params"]
    x = jnp.zeros((2, 64)).at[1].set(1.0)

    def loss(params, x):
        return sum(jnp.sum(jnp.cos(z + 1)) for z in HEADS.apply({"params": params}, x))

    for grad in jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)):
        assert np.isfinite(grad).all()


def test_normalised_rows_have_unit_length_or_stay_zero():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [1e-6, 0.0]], np.float32)
    np.testing.assert_allclose(l2_normalise(rows), [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)
    jacobian = jax.jacobian(lambda row: l2_normalise(row[None])[0])(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(jacobian, np.array([[16, -12], [-12, 9]]) / 125, atol=1e-7)


def test_logits_are_float32_in_bfloat16_arithmetic():
    heads = HEADS.clone(dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (3, 64))
    params = jax.jit(HEADS.init)(jax.random.key(0), x)
    pairs = zip(jax.jit(heads.apply)(params, x), jax.jit(HEADS.apply)(params, x), strict=True)
    for rough, exact in pairs:
        assert rough.dtype == jnp.float32
        assert 0 < float(jnp.abs(rough - exact).max()) < 0.02 * float(jnp.abs(exact).max())
