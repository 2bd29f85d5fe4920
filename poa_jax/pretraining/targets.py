"""What the students must predict: teacher logits made into probabilities over prototypes.

Two ways to keep the teacher from giving every image the same answer. Sinkhorn-Knopp (the paper's
choice) uses all prototypes equally within the global batch; centring subtracts a running mean.
Both in float32, both over the rows of every device on the named axis, neither with a gradient.
"""

import jax
import jax.numpy as jnp
from jax import lax

_HIGHEST = lax.Precision.HIGHEST
# A row that starts more than e^50 times lighter than the heaviest adds nothing to a float32 sum; a
# floor there keeps the first column sums away from zero, so nothing can overflow later.
_LIGHTEST_ROW = -50.0


def sinkhorn(
    logits_BK: jax.Array,
    temperature: float | jax.Array,
    *,
    valid_B: jax.Array | None = None,
    iterations: int = 3,
    axis_name: str | None = None,
) -> jax.Array:
    """Return probs_BK (float32): rows that sum to 1, columns of about equal mass.

    Alternately divides the columns, then the rows, of exp(logits / temperature) by their sums over
    the batch, over all devices of `axis_name` (arXiv 2408.01031, section 3.2; Cuturi 2013). Rows
    with `valid_B` (bool) False get probability 0 and do not influence the others; without any valid
    row the result is 0.
    """
    if iterations < 1:
        raise ValueError(f"Sinkhorn-Knopp needs at least 1 iteration, got {iterations}")
    z_BK = lax.stop_gradient(logits_BK).astype(jnp.float32) / temperature
    if valid_B is None:
        valid_B = jnp.ones(z_BK.shape[:1], bool)
    valid_B1 = valid_B[:, None]
    # The result is diag(r) E diag(c) for any E that equals exp(z) up to a factor per column (the
    # first division removes it) and a factor per row (put back through r). Choosing the factors
    # so that every row and every column of E has an entry 1 leaves nothing to overflow or vanish,
    # and only the vectors r and c change from one iteration to the next.
    top_B = jnp.max(z_BK, axis=1)
    z_BK = z_BK - top_B[:, None]
    peak_K = _pmax(jnp.max(jnp.where(valid_B1, z_BK, -jnp.inf), axis=0), axis_name)
    peak_K = jnp.where(jnp.isneginf(peak_K), 0.0, peak_K)  # no valid row anywhere
    e_BK = jnp.where(valid_B1, jnp.exp(z_BK - peak_K[None, :]), 0.0)

    top = _pmax(jnp.max(jnp.where(valid_B, top_B, -jnp.inf)), axis_name)
    weight_B = jnp.exp(jnp.maximum(top_B - top, _LIGHTEST_ROW))
    r_B = jnp.where(valid_B, weight_B, 0.0)
    for _ in range(iterations):
        c_K = _inverse(_psum(jnp.matmul(r_B, e_BK, precision=_HIGHEST), axis_name))
        r_B = _inverse(jnp.matmul(e_BK, c_K, precision=_HIGHEST))
    return e_BK * r_B[:, None] * c_K[None, :]


def centre_softmax(
    logits_BK: jax.Array, centre_K: jax.Array, temperature: float | jax.Array
) -> jax.Array:
    """Return softmax((logits − centre) / temperature) as float32 (B, K), without a gradient.

    `centre_K` is the value before this batch went into it; `update_centre` comes after.
    """
    z_BK = lax.stop_gradient(logits_BK).astype(jnp.float32) - centre_K[None, :]
    return jax.nn.softmax(z_BK / temperature, axis=-1)


def update_centre(
    centre_K: jax.Array,
    logits_BK: jax.Array,
    *,
    valid_B: jax.Array | None = None,
    momentum: float = 0.9,
    axis_name: str | None = None,
) -> jax.Array:
    """Return momentum · centre + (1 − momentum) · mean of the valid rows over all devices (K,).

    Without any valid row the centre stays as it is.
    """
    z_BK = lax.stop_gradient(logits_BK).astype(jnp.float32)
    if valid_B is None:
        valid_B = jnp.ones(z_BK.shape[:1], bool)
    sum_K = _psum(jnp.sum(jnp.where(valid_B[:, None], z_BK, 0.0), axis=0), axis_name)
    count = _psum(jnp.sum(valid_B.astype(jnp.float32)), axis_name)
    moved_K = momentum * centre_K + (1.0 - momentum) * (sum_K / jnp.maximum(count, 1.0))
    return jnp.where(count > 0, moved_K, centre_K)


def _inverse(x: jax.Array) -> jax.Array:
    """1 / x, and 0 for 0; NaN stays NaN, so that a broken teacher is noticed."""
    return jnp.where(x == 0.0, 0.0, 1.0 / x)


def _psum(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.psum(x, axis_name)


def _pmax(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else lax.pmax(x, axis_name)
