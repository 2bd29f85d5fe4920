"""Stochastic depth: the official block on stored draws, what is computed, how it is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_params import under, vit_backbone

from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import depth_mask
from poa_jax.elastic.width import Width
from poa_jax.models import transformer
from poa_jax.models.stochastic_depth import (
    kept_samples,
    pack_groups,
    per_sample_residual,
    residual,
    split_groups,
    subset_residual,
)
from poa_jax.models.transformer import Attention, Block, Mlp
from poa_jax.models.vit import ViT

TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}
BLOCK = Block(Attention(head_dim=16), Mlp(hidden=192), layer_scale=1e-5)
GROUPS = ((5, 9),)


@functools.cache
def block_params(golden):
    """Block 2 of the stored network, cut to width 48."""
    vit = ViT(image_size=32, patch_size=8, width=64, depth=5, head_dim=16)
    params = cut(vit_backbone(under(golden("vit"), "param/")), vit.cuts(Width(48)))
    return jax.tree.map(lambda x: x[2], params["blocks"])


def run_block(golden, x_BND, cotangent):
    """Return the output of the block and the gradient for its input."""
    params = {"params": block_params(golden)}

    @jax.jit
    def run(x):
        y = BLOCK.apply(params, x.reshape(-1, 48), GROUPS)
        return y.reshape(x.shape)

    out, pull = jax.vjp(run, jnp.asarray(x_BND))
    return out, pull(jnp.asarray(cotangent))[0]


def replay(monkeypatch, variant, draws, rate):
    """Let the block's first and second residual branch use the stored draws."""
    draws = iter(draws)

    def stored(x, branch, groups, key, _):
        del key
        return variant(x, branch, groups, [jnp.asarray(next(draws))], rate)

    monkeypatch.setattr(transformer, "residual", stored)


@pytest.mark.parametrize("rate", [0.2, 0.3, 0.9])
def test_subset_variant_equals_the_official_block(golden, monkeypatch, rate):
    arrays = golden("droppath")
    assert kept_samples(5, rate) == arrays[f"subset/rate{rate}/kept"]
    orders = [arrays["permutation_attention"], arrays["permutation_mlp"]]
    replay(monkeypatch, subset_residual, orders, rate)
    out, grad = run_block(golden, arrays["input"], arrays["cotangent"])
    np.testing.assert_allclose(out, arrays[f"subset/rate{rate}/output"], **TOLERANCE)
    np.testing.assert_allclose(grad, arrays[f"subset/rate{rate}/grad_input"], **TOLERANCE)


def test_per_sample_variant_equals_the_official_block(golden, monkeypatch):
    arrays = golden("droppath")
    keeps = [arrays["per_sample/keep_attention"], arrays["per_sample/keep_mlp"]]
    replay(monkeypatch, per_sample_residual, keeps, 0.08)
    out, _ = run_block(golden, arrays["input"], arrays["cotangent"])
    np.testing.assert_allclose(out, arrays["per_sample/rate0.08/output"], **TOLERANCE)


def test_without_a_key_nothing_is_dropped(golden):
    arrays = golden("droppath")
    out, _ = run_block(golden, arrays["input"], arrays["cotangent"])
    np.testing.assert_allclose(out, arrays["none/output"], **TOLERANCE)


def test_kept_samples_are_rounded_down_but_at_least_one():
    assert [kept_samples(8, r) for r in (0.2, 0.3, 0.5, 0.9, 0.99)] == [6, 5, 4, 1, 1]
    assert [kept_samples(b, 0.2) for b in (1, 2, 5, 10)] == [1, 1, 4, 8]


def seen_by_branch(key, rate, groups=((4, 3), (6, 2))):
    """Return the groups that the branch is given, from tracing alone."""
    seen = []

    def branch(x, parts):
        seen.append(parts)
        return x

    tokens = sum(batch * n for batch, n in groups)
    x = jax.ShapeDtypeStruct((tokens, 5), jnp.float32)
    out = jax.eval_shape(lambda x, r: residual(x, branch, groups, key, rate or r), x, 0.5)
    assert out.shape == x.shape
    return seen


def test_the_rate_chooses_the_variant():
    key, everything = jax.random.key(0), [((4, 3), (6, 2))]
    assert seen_by_branch(key, 0.5) == [((2, 3), (3, 2))]
    assert seen_by_branch(key, 0.11) == [((3, 3), (5, 2))]
    assert seen_by_branch(key, 0.1) == everything
    assert seen_by_branch(key, None) == everything  # a traced rate
    assert seen_by_branch(None, 0.5) == everything


@functools.partial(jax.jit, static_argnames=("rate", "train"))
def block_step(params, x, key, rate, train):
    def total(params, x):
        y = BLOCK.apply({"params": params}, x, ((8, 17),), None, key if train else None, rate)
        return jnp.square(y).sum()

    return jax.grad(total, argnums=(0, 1))(params, x)


def flops(golden, rate, train=True):
    args = (block_params(golden), jnp.zeros((8 * 17, 48)), jax.random.key(0), rate, train)
    return block_step.lower(*args).cost_analysis()["flops"]


def test_dropped_samples_cost_nothing_forward_or_backward(golden):
    whole = flops(golden, 0.0, train=False)
    for rate in (0.25, 0.5, 0.75):
        assert flops(golden, rate) == pytest.approx((1 - rate) * whole, rel=0.03)
    assert flops(golden, 0.1) == pytest.approx(whole, rel=0.03)


def test_every_product_of_the_subset_variant_runs_on_kept_rows_only(golden):
    args = (block_params(golden), jnp.zeros((8 * 17, 48)), jax.random.key(0))
    text = str(jax.make_jaxpr(block_step, static_argnums=(3, 4))(*args, 0.5, True))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 12  # four maps and two products of attention, each also backwards
    assert not any("[136," in line.split("=")[0] for line in products)


@functools.partial(jax.jit, static_argnames="rate")
def drawn(keys, rate):
    """Return what 1 + branch adds to each sample of two groups, for many keys."""
    groups = ((4, 1), (6, 1))

    def one(key):
        x = jnp.zeros((10, 1))
        return residual(x, lambda y, _: jnp.ones_like(y), groups, key, rate)[:, 0]

    return jax.vmap(one)(keys)


def test_a_random_subset_is_kept_of_each_group_and_scaled_up():
    added = np.asarray(drawn(jax.random.split(jax.random.key(0), 2000), 0.5))
    assert set(np.unique(added)) == {0.0, 2.0}
    assert (added[:, :4] > 0).sum(1).tolist() == [2] * 2000
    assert (added[:, 4:] > 0).sum(1).tolist() == [3] * 2000
    # Four standard errors of a share of one half.
    assert np.abs((added > 0).mean(0) - 0.5).max() < 4 * 0.5 / 2000**0.5


def test_each_sample_tosses_its_own_coin_at_small_rates():
    added = np.asarray(drawn(jax.random.split(jax.random.key(0), 4000), 0.1))
    np.testing.assert_allclose(np.unique(added), [0, 1 / 0.9], rtol=1e-6)
    assert np.abs((added > 0).mean(0) - 0.9).max() < 4 * 0.3 / 4000**0.5
    correlation = np.corrcoef(added.T) - np.eye(10)
    assert np.abs(correlation).max() < 5 / 4000**0.5


def test_the_two_branches_and_the_blocks_draw_independently():
    vit = ViT(image_size=16, patch_size=8, width=16, depth=2, head_dim=8, layer_scale=1.0)
    vit = vit.clone(drop_path=0.5)
    images = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 16, 16, 3)), (8, 16, 16, 3))
    params = jax.jit(vit.init)(jax.random.key(0), images)

    @jax.jit
    def blocks(key):
        out = vit.apply(params, [images], [None], key=key, with_blocks=True, method="views")
        return out[0]["blocks"][:, :, 0]

    tokens = np.asarray(blocks(jax.random.key(2)))
    # Equal images take one of four ways through each block: with or without either branch.
    ways = len(np.unique(tokens[0].round(4), axis=0))
    assert 1 < ways <= 4
    after_two = len(np.unique(tokens[1].round(4), axis=0))
    assert after_two > ways
    assert not np.array_equal(tokens, blocks(jax.random.key(3)))
    np.testing.assert_array_equal(tokens, blocks(jax.random.key(2)))


@pytest.mark.parametrize("uniform", [True, False])
def test_a_linear_rate_starts_at_zero(uniform):
    vit = ViT(image_size=16, patch_size=8, width=16, depth=3, head_dim=8, layer_scale=1.0)
    vit = vit.clone(drop_path=0.5, drop_path_uniform=uniform)
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    params = jax.jit(vit.init)(jax.random.key(0), images)

    @jax.jit
    def cls(key, keep):
        out = vit.apply(params, [images], [None], key=key, keep=keep, method="views")
        return out[0]["cls"]

    first = depth_mask((1,), (3,))
    last = (jnp.array([False, False, True]),)
    key = jax.random.key(2)
    assert np.allclose(cls(key, first), cls(None, first), atol=1e-6) == (not uniform)
    assert not np.allclose(cls(key, last), cls(None, last), atol=1e-3)


def test_packing_and_splitting_are_inverse():
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 3), (4, 2, 3))]
    packed, groups = pack_groups(parts)
    assert packed.shape == (18, 3)
    assert groups == ((2, 5), (4, 2))
    jax.tree.map(np.testing.assert_array_equal, split_groups(packed, groups), parts)
