"""Layers whose parameters can be cut, each with its slicing rule and scale α beside its formula.

A layer computes like an ordinary one on whatever parameters it is given; what makes it elastic is
the static method `cuts`, which says how its parameters shrink (paper 3.2, table of appendix A):

    y = α·(W[:d_in, :d_out]ᵀ x) + b[:d_out],  α = max d_in / d_in

α belongs to every linear map whose *input* is elastic, and never to a bias.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.elastic.width import Width

Initializer = Callable[..., jax.Array]
trunc_normal = nn.initializers.truncated_normal(0.02, lower=-100.0, upper=100.0)


@dataclasses.dataclass(frozen=True)
class Cut:
    """How one parameter shrinks.

    Attributes:
      axes: pairs (axis counted from the end, width kept on it).
      alpha: None, or (width, its maximum) whose ratio scales the parameter.
    """

    axes: tuple[tuple[int, Width], ...] = ()
    alpha: tuple[Width, int] | None = None


class Dense(nn.Module):
    """A linear map from the last axis to `groups` × `features` outputs.

    Attributes:
      features: outputs of each group.
      groups: 0 for a plain map, whose kernel is (in, features); else the kernel is
        (in, groups, features), so that every group (q, k, v; gate and value) is cut alike.
      dtype: type of the arithmetic; parameters are float32.
      kernel_init: of the kernel, drawn as (in, everything else).
    """

    features: int
    groups: int = 0
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x_XD: jax.Array, out_scale: jax.Array | None = None) -> jax.Array:
        """Return (..., features), or (..., groups, features); times `out_scale` (features,).

        The scale is folded into kernel and bias: the same map, without a pass over the outputs
        forward and two backward.
        """
        out = (self.groups, self.features) if self.groups else (self.features,)
        d_in = x_XD.shape[-1]

        def init_kernel(key: jax.Array) -> jax.Array:
            flat = self.kernel_init(key, (d_in, math.prod(out)), jnp.float32)
            return flat.reshape(d_in, *out)

        kernel = self.param("kernel", init_kernel)
        bias = self.param("bias", nn.initializers.zeros, out)
        if out_scale is not None:
            kernel, bias = kernel * out_scale[None], bias * out_scale
        y = x_XD.astype(self.dtype) @ kernel.astype(self.dtype).reshape(d_in, -1)
        y = y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y.reshape(*x_XD.shape[:-1], *out)

    @staticmethod
    def cuts(in_: Width, max_in: int, out: Width | None, groups: bool = False) -> dict[str, Cut]:
        """Slice inputs to `in_` and outputs (of each group) to `out`; scale by max_in / in_."""
        rows = ((-3 if groups else -2, in_),)
        columns = () if out is None else ((-1, out),)
        return {"kernel": Cut(rows + columns, alpha=(in_, max_in)), "bias": Cut(columns)}


class PatchEmbed(nn.Module):
    """Non-overlapping patches mapped linearly to tokens; kernel (patch, patch, channels, D)."""

    features: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images_BHWC: jax.Array) -> jax.Array:
        """Return tokens (B, H/patch · W/patch, D)."""
        b, h, w, c = images_BHWC.shape
        p = self.patch_size
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", init, (p, p, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = images_BHWC.astype(self.dtype).reshape(b, h // p, p, w // p, p, c)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // p) * (w // p), p * p * c)
        y = x @ kernel.astype(self.dtype).reshape(p * p * c, self.features)
        return y + bias.astype(self.dtype)[None, None]

    @staticmethod
    def cuts(out: Width) -> dict[str, Cut]:
        """Slice the outputs; the input is the image, so there is no α."""
        return {"kernel": Cut(((-1, out),)), "bias": Cut(((-1, out),))}


class LayerNorm(nn.Module):
    """Layer normalisation over the channels in use, in float32.

    With a traced width the channels beyond it are zero on entry, take no part in the statistics,
    and are zero on exit because scale and bias are masked.

    Attributes:
      epsilon: added to the variance.
      groups: 0 to normalise the last axis; else the last two, (groups, D), together, where every
        group is cut alike.
      dtype: of the result.
    """

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    groups: int = 0

    @nn.compact
    def __call__(self, x_XD: jax.Array, width: Width | None = None) -> jax.Array:
        """Return the normalised array, in `dtype`."""
        d = x_XD.shape[-1]
        own = (self.groups, d) if self.groups else (d,)
        scale = self.param("scale", nn.initializers.ones, own)
        bias = self.param("bias", nn.initializers.zeros, own)
        x = x_XD.astype(jnp.float32)
        shape = (1,) * (x.ndim - len(own)) + own
        over = tuple(range(-len(own), 0))
        if width is None or width.active is None:
            centred = x - x.mean(over, keepdims=True)
            variance = jnp.square(centred).mean(over, keepdims=True)
        else:
            count = width.active.astype(jnp.float32) * max(self.groups, 1)
            mean = x.sum(over, keepdims=True) / count
            mask = width.mask().reshape((1,) * (x.ndim - 1) + (d,))
            centred = jnp.where(mask, x - mean, 0.0)
            variance = jnp.square(centred).sum(over, keepdims=True) / count
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale.reshape(shape) + bias.reshape(shape)).astype(self.dtype)

    @staticmethod
    def cuts(width: Width) -> dict[str, Cut]:
        """Slice scale and bias."""
        return {"scale": Cut(((-1, width),)), "bias": Cut(((-1, width),))}


class LayerScale(nn.Module):
    """A learnt factor per channel (CaiT) for what is about to be added to a residual stream."""

    initial: float

    @nn.compact
    def __call__(self, width: int) -> jax.Array:
        """Return γ (width,), for `Dense(...)(x, out_scale=γ)`."""
        return self.param("gamma", nn.initializers.constant(self.initial), (width,))

    @staticmethod
    def cuts(width: Width) -> dict[str, Cut]:
        """Slice γ."""
        return {"gamma": Cut(((-1, width),))}


_SQRT_HALF = float(np.sqrt(0.5))
_INV_SQRT_2PI = float(1 / np.sqrt(2 * np.pi))


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * _SQRT_HALF)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU x·Φ(x), with Φ from erf and the derivative Φ(x) + x·φ(x) written out.

    `jax.nn.gelu` goes through erfc, which XLA expands into a long polynomial on CPU, and keeps
    several arrays for the backward pass where the input alone is enough.
    """
    return x * _normal_cdf(x)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    density = _INV_SQRT_2PI * jnp.exp(-0.5 * x * x)
    return (g * (_normal_cdf(x) + x * density),)


gelu.defvjp(_gelu_forward, _gelu_backward)
