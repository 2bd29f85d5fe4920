"""From the parameters of a supernet to those of a sub-network: the one place that slices.

A layer states once, as a `Cut` for each of its parameters, which axes shrink and which width the
scale α belongs to. `cut` applies a tree of them: inside the elastic forward (sliced or masked,
differentiable), and outside it to write a static network. So the two agree by construction.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from poa_jax.elastic.layers import Cut

Params = Mapping[str, Any]


def _cut_array(x: jax.Array, cut: Cut) -> jax.Array:
    for axis, width in cut.axes:
        if width.bound > x.shape[axis]:
            raise ValueError(
                f"a width of {width.bound} cannot be cut from an axis of {x.shape[axis]}"
            )
        if width.bound < x.shape[axis]:
            x = jax.lax.slice_in_dim(x, 0, width.bound, axis=axis % x.ndim)
        if width.active is not None:
            shape = [1] * x.ndim
            shape[axis] = width.bound
            x = jnp.where(width.mask().reshape(shape), x, jnp.zeros((), x.dtype))
    if cut.alpha is None:
        return x
    width, max_width = cut.alpha
    if width.active is None and width.bound == max_width:
        return x
    return x * jnp.asarray(width.alpha(max_width), x.dtype)


def cut(params: Params, cuts: Params) -> dict[str, Any]:
    """Slice (or mask) and scale parameters as their layers say.

    Args:
      params: nested dict of arrays of the supernet.
      cuts: nested dict of the same structure with a `Cut` for each array.

    Returns:
      A nested dict of the same structure; with widths that have no `active` part these are the
      parameters of an ordinary network of that width.

    Raises:
      ValueError: where the two structures differ, or a width exceeds an axis.
    """
    extra = set(params) ^ set(cuts)
    if extra:
        raise ValueError(f"parameters and slicing rules differ at {sorted(extra)}")
    return {
        name: _cut_array(value, cuts[name])
        if isinstance(cuts[name], Cut)
        else cut(value, cuts[name])
        for name, value in params.items()
    }


def _add_array(total: jax.Array, part: jax.Array, cut: Cut) -> jax.Array:
    for axis, width in cut.axes:
        if width.active is not None:
            shape = [1] * part.ndim
            shape[axis] = width.bound
            part = jnp.where(width.mask().reshape(shape), part, jnp.zeros((), part.dtype))
    if cut.alpha is not None:
        width, max_width = cut.alpha
        if width.active is not None or width.bound != max_width:
            part = part * jnp.asarray(width.alpha(max_width), part.dtype)
    if part.shape == total.shape:
        return total + part
    inner = jax.lax.slice(total, (0,) * total.ndim, part.shape)
    return jax.lax.dynamic_update_slice(total, inner + part, (0,) * total.ndim)


def add_cut(total: Params, parts: Params, cuts: Params) -> dict[str, Any]:
    """Add gradients of cut parameters to gradients of whole ones: the transpose of `cut`.

    Only the slice is touched, where differentiating through `cut` would pad every gradient to its
    full size first.
    """
    return {
        name: _add_array(value, parts[name], cuts[name])
        if isinstance(cuts[name], Cut)
        else add_cut(value, parts[name], cuts[name])
        for name, value in total.items()
    }


def pick_blocks(stacked: Params, blocks: tuple[int, ...]) -> dict[str, Any]:
    """Keep the named blocks of a stack: every leaf loses the others on its leading axis L."""
    index = jnp.asarray(blocks, jnp.int32)
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0), dict(stacked))
