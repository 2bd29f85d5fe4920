"""Stochastic depth: residual branches that are skipped for some samples.

Two variants, as in the official code: above a rate of 0.1 a random *subset* of the batch runs
through the branch (what is dropped is never computed); up to 0.1 a coin for each sample scales
the result, which costs the whole branch but drops each sample independently.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# A batch of crops of different sizes, packed: (images, tokens an image) of each part, in order.
Groups = tuple[tuple[int, int], ...]
Branch = Callable[[jax.Array, Groups], jax.Array]

SUBSET_ABOVE = 0.1


def kept_samples(batch: int, rate: float) -> int:
    """Return how many of `batch` samples run through a branch: max(floor(batch·(1 − rate)), 1)."""
    return max(int(batch * (1 - rate)), 1)


def split_groups(x_XD: jax.Array, groups: Groups) -> list[jax.Array]:
    """Cut packed tokens (Σ B·N, D) into (B, N, D) for each group."""
    # One split, whose transpose is one concatenation; slices would each pad their gradient.
    parts = jax.lax.split(x_XD, [batch * tokens for batch, tokens in groups], axis=0)
    shapes = [(*group, x_XD.shape[-1]) for group in groups]
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def pack_groups(parts: Sequence[jax.Array]) -> tuple[jax.Array, Groups]:
    """Lay (B, N, D) arrays of one D behind each other as (Σ B·N, D)."""
    groups = tuple((p.shape[0], p.shape[1]) for p in parts)
    return jnp.concatenate([p.reshape(-1, p.shape[-1]) for p in parts]), groups


def subset_residual(
    x_XD: jax.Array, branch: Branch, groups: Groups, orders: Sequence[jax.Array], rate: float
) -> jax.Array:
    """Add the branch to a subset of each group's samples, scaled by batch / kept.

    Args:
      x_XD: packed tokens.
      branch: maps packed tokens and their groups to as many packed tokens.
      groups: (samples, tokens) of each group.
      orders: a permutation of each group's samples; its first `kept_samples` entries run.
      rate: share of samples dropped.
    """
    parts = split_groups(x_XD, groups)
    kept = [order[: kept_samples(len(order), rate)] for order in orders]
    chosen, kept_groups = pack_groups([p[rows] for p, rows in zip(parts, kept, strict=True)])
    deltas = split_groups(branch(chosen, kept_groups), kept_groups)
    out = []
    for part, rows, delta in zip(parts, kept, deltas, strict=True):
        scale = jnp.asarray(part.shape[0] / rows.shape[0], delta.dtype)
        out.append(part.at[rows].add(delta * scale, unique_indices=True))
    return pack_groups(out)[0]


def per_sample_residual(
    x_XD: jax.Array, branch: Branch, groups: Groups, keeps: Sequence[jax.Array], rate: jax.Array
) -> jax.Array:
    """Add the branch to all samples, times keep / (1 − rate); keep (B,) is 0 or 1."""
    delta = branch(x_XD, groups)
    factors = [
        jnp.broadcast_to(keep[:, None], (batch, tokens)).reshape(-1)
        for keep, (batch, tokens) in zip(keeps, groups, strict=True)
    ]
    factor = jnp.concatenate(factors) / (1 - rate)
    return x_XD + delta * factor[:, None].astype(delta.dtype)


def residual(
    x_XD: jax.Array,
    branch: Branch,
    groups: Groups,
    key: jax.Array | None,
    rate: float | jax.Array,
) -> jax.Array:
    """Add a residual branch with stochastic depth.

    Args:
      x_XD: packed tokens.
      branch: the branch.
      groups: (samples, tokens) of each group.
      key: random key; None for evaluation, where nothing is dropped.
      rate: share of samples dropped. A Python float above 0.1 chooses the subset variant; a
        traced rate (it differs from block to block) means a coin for each sample.
    """
    if key is None or (isinstance(rate, float) and rate == 0):
        return x_XD + branch(x_XD, groups)
    keys = jax.random.split(key, len(groups))
    if isinstance(rate, float) and rate > SUBSET_ABOVE:
        orders = [jax.random.permutation(k, b) for k, (b, _) in zip(keys, groups, strict=True)]
        return subset_residual(x_XD, branch, groups, orders, rate)
    keeps = [
        jax.random.bernoulli(k, 1 - rate, (b,)).astype(jnp.float32)
        for k, (b, _) in zip(keys, groups, strict=True)
    ]
    return per_sample_residual(x_XD, branch, groups, keeps, rate)
