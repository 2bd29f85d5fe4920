"""Patch merging: how a Swin Transformer goes from one stage to the next."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from poa_jax.elastic.layers import Cut, LayerNorm
from poa_jax.elastic.width import Width

EPSILON = 1e-5  # of every norm of a Swin
# Kernels start as PyTorch's linear layers do, uniform in ±1/√fan_in: the official code sets none.
INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class PatchMerge(nn.Module):
    """Four neighbours become one token of twice the width: norm over 4C, then a map without bias.

    The neighbours (row, column) = (0,0), (0,1), (1,0), (1,1) stay four groups of C channels, so
    that each group is cut alike. Kernel (4, C, 2C).
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, width: Width | None = None) -> jax.Array:
        """Return (B, ⌈H/2⌉, ⌈W/2⌉, 2C); odd sizes are padded with zeros."""
        b, h, w, c = x_BHWC.shape
        x = jnp.pad(x_BHWC, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        h, w = x.shape[1] // 2, x.shape[2] // 2
        x = x.reshape(b, h, 2, w, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, 4, c)
        x = LayerNorm(EPSILON, self.dtype, groups=4, name="norm")(x, width)

        def init(key: jax.Array) -> jax.Array:
            return INIT(key, (4 * c, 2 * c), jnp.float32).reshape(4, c, 2 * c)

        kernel = self.param("kernel", init).astype(self.dtype)
        return x.reshape(b, h, w, 4 * c) @ kernel.reshape(4 * c, 2 * c)

    @staticmethod
    def cuts(width: Width, max_width: int) -> dict[str, Any]:
        """Keep the first channels of each neighbour."""
        kernel = Cut(((-2, width), (-1, width.scaled(2))), alpha=(width, max_width))
        return {"norm": LayerNorm.cuts(width), "kernel": kernel}
