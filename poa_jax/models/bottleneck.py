"""The block of a ResNet: three convolutions whose inner channels are elastic."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from poa_jax.elastic.conv import Conv, GroupNorm
from poa_jax.elastic.cost import Cost, vector
from poa_jax.elastic.layers import Cut
from poa_jax.elastic.width import Width


class Bottleneck(nn.Module):
    """relu(shortcut(x) + norm3 conv3 relu norm2 conv2 relu norm1 conv1 x), the stride on conv2.

    Attributes:
      inner: channels between the convolutions; the elastic ones.
      out: channels of the result.
      groups: of every GroupNorm.
      stride: of conv2 and of the projected shortcut.
      first: whether this is a stage's first block, whose shortcut is projected.
      dtype: type of the arithmetic.
    """

    inner: int
    out: int
    groups: int
    stride: int = 1
    first: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, width: Width | None = None) -> jax.Array:
        """Map (B, H, W, C); `width` is the traced inner width of a masked run."""

        def conv_norm(x, names, features, size, stride=1, width=None):
            conv, norm = names
            x = Conv(features, size, stride, self.dtype, name=conv)(x)
            x = checkpoint_name(x, conv)
            return GroupNorm(self.groups, dtype=self.dtype, name=norm)(x, width)

        y = nn.relu(conv_norm(x_BHWC, ("conv1", "norm1"), self.inner, 1, width=width))
        y = nn.relu(conv_norm(y, ("conv2", "norm2"), self.inner, 3, self.stride, width))
        y = conv_norm(y, ("conv3", "norm3"), self.out, 1)
        if self.first:
            names = ("downsample", "downsample_norm")
            x_BHWC = conv_norm(x_BHWC, names, self.out, 1, self.stride)
        return nn.relu(x_BHWC + y)

    @staticmethod
    def cuts(inner: Width, max_inner: int, first: bool) -> dict[str, Any]:
        """Slice what touches the inner channels; α belongs to conv2 and conv3."""
        norm = GroupNorm.cuts(inner)
        whole = {"scale": Cut(), "bias": Cut()}
        rules = {"conv1": Conv.cuts(None, 0, inner), "norm1": norm}
        rules |= {"conv2": Conv.cuts(inner, max_inner, inner), "norm2": norm}
        rules |= {"conv3": Conv.cuts(inner, max_inner, None), "norm3": whole}
        if first:
            rules |= {"downsample": Conv.cuts(None, 0, None), "downsample_norm": whole}
        return rules

    def cost(self, in_: int, side: int) -> Cost:
        """Count for a square map of `in_` channels and `side` pixels."""
        after = -(-side // self.stride)
        total = conv_cost(1, in_, self.inner, side) + conv_cost(3, self.inner, self.inner, after)
        total += conv_cost(1, self.inner, self.out, after)
        total += vector(self.inner, 4) + vector(self.out, 2)
        if self.first:
            total += conv_cost(1, in_, self.out, after) + vector(self.out, 2)
        return total


def conv_cost(size: int, in_: int, out: int, side: int) -> Cost:
    """Cost of a square convolution without bias that makes a map of `side` × `side`."""
    weights = size * size * in_ * out
    return Cost(weights, side * side * weights)
