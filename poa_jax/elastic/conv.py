"""Convolution and group normalisation whose parameters can be cut; see `elastic.layers`.

    y = α·(W[:, :, :c_in, :c_out] ∗ x),  α = max c_in / c_in where the input is elastic, else 1

Convolutions have no bias: a GroupNorm follows each. Maps are (B, H, W, C).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from poa_jax.elastic.layers import Cut, Initializer
from poa_jax.elastic.width import Width

# Uniform within ±1/√fan-in: where PyTorch, and so the official network, starts.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """A square convolution without bias, padded by (kernel_size − 1) / 2 on every side.

    Attributes:
      features: output channels.
      kernel_size: odd; 1 runs as a matrix product.
      stride: of both axes; the output has ⌈size / stride⌉ rows and columns.
      dtype: type of the arithmetic; the kernel (kernel_size, kernel_size, in, features) is float32.
      kernel_init: of the kernel.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = torch_uniform

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Return (B, ⌈H / stride⌉, ⌈W / stride⌉, features) in `dtype`."""
        size, stride, channels = self.kernel_size, self.stride, x_BHWC.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (size, size, channels, self.features))
        x, kernel = x_BHWC.astype(self.dtype), kernel.astype(self.dtype)
        if size == 1:
            return x[:, ::stride, ::stride] @ kernel.reshape(channels, self.features)
        # XLA's convolutions are slow on CPUs, above all backward and inside loops.
        return jax.lax.platform_dependent(
            x,
            kernel,
            cpu=functools.partial(_as_product, stride=stride),
            default=functools.partial(_convolve, stride=stride),
        )

    @staticmethod
    def cuts(in_: Width | None, max_in: int, out: Width | None) -> dict[str, Cut]:
        """Slice inputs to `in_` and outputs to `out`; None: that side is never cut."""
        axes = (() if in_ is None else ((-2, in_),)) + (() if out is None else ((-1, out),))
        return {"kernel": Cut(axes, alpha=None if in_ is None else (in_, max_in))}


def _convolve(x_BHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x_BHWC,
        kernel,
        window_strides=(stride, stride),
        padding=[((kernel.shape[0] - 1) // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _as_product(x_BHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same as one matrix product, with the neighbours of each place laid side by side."""
    size, _, channels, features = kernel.shape
    _, h, w, _ = x_BHWC.shape
    edge = (size - 1) // 2
    x = jnp.pad(x_BHWC, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    parts = [x[:, i : i + h : stride, j : j + w : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(parts, axis=-1) @ kernel.reshape(size**2 * channels, features)


class GroupNorm(nn.Module):
    """Normalisation over positions and the channels of a group, in float32.

    The groups divide the channels *in use*: of `active` channels, channel c is in group
    ⌊c · groups / active⌋. With a traced width the channels beyond it are zero on entry, are in no
    group, and are zero on exit because scale and bias are masked.

    Attributes:
      groups: every width in use must be a multiple of it.
      epsilon: added to the variance.
      dtype: of the result.
    """

    groups: int
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, width: Width | None = None) -> jax.Array:
        """Return the normalised map, in `dtype`.

        Raises:
          ValueError: where the number of channels (without a traced width) is no multiple of
            `groups`.
        """
        _, rows, columns, channels = x_BHWC.shape
        scale_C = self.param("scale", nn.initializers.ones, (channels,))
        bias_C = self.param("bias", nn.initializers.zeros, (channels,))
        if width is None or width.active is None:
            check_groups(channels, self.groups)
            member_CG, size = None, jnp.float32(channels)
        else:
            member_CG, size = self._members(width), width.active.astype(jnp.float32)
        count = size * (rows * columns / self.groups)
        x = x_BHWC.astype(jnp.float32)
        mean_BC = self._add_up(x.sum((1, 2)), member_CG) / count
        centred = x - mean_BC[:, None, None]
        variance_BC = self._add_up(jnp.square(centred).sum((1, 2)), member_CG) / count
        factor_BC = jax.lax.rsqrt(variance_BC + self.epsilon) * scale_C[None]
        return (centred * factor_BC[:, None, None] + bias_C[None, None, None]).astype(self.dtype)

    def _members(self, width: Width) -> jax.Array:
        # From `active` on the quotient is no group's number, so those columns are empty.
        group_C = jnp.arange(width.bound) * self.groups // width.active
        return (group_C[:, None] == jnp.arange(self.groups)[None]).astype(jnp.float32)

    def _add_up(self, x_BC: jax.Array, member_CG: jax.Array | None) -> jax.Array:
        """Give every channel the sum over the channels of its group."""
        if member_CG is None:
            parts = x_BC.reshape(x_BC.shape[0], self.groups, -1)
            return jnp.broadcast_to(parts.sum(-1, keepdims=True), parts.shape).reshape(x_BC.shape)
        exact = jax.lax.Precision.HIGHEST
        return jnp.dot(jnp.dot(x_BC, member_CG, precision=exact), member_CG.T, precision=exact)

    @staticmethod
    def cuts(width: Width) -> dict[str, Cut]:
        """Slice scale and bias."""
        return {"scale": Cut(((-1, width),)), "bias": Cut(((-1, width),))}


def check_groups(channels: int, groups: int) -> None:
    """Raise ValueError, naming the nearest valid width, where `groups` does not divide it."""
    if channels % groups:
        nearest = max(groups, (2 * channels + groups) // (2 * groups) * groups)
        raise ValueError(
            f"a width of {channels} channels is not a multiple of the {groups} groups of "
            f"GroupNorm, the nearest that is is {nearest}"
        )


def max_pool(x_BHWC: jax.Array) -> jax.Array:
    """Return the largest of every 3 × 3 window at stride 2, padded by one on every side."""
    # Padded by hand: ONNX export loses a max-pool's own padding.
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = jnp.pad(x_BHWC, edges, constant_values=-jnp.inf)
    return nn.max_pool(padded, window_shape=(3, 3), strides=(2, 2), padding="VALID")
