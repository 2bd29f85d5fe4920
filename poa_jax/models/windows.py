"""Attention within windows of a map of tokens, shifted or not (Swin Transformer).

A map that the window does not divide is padded with zeros at the bottom and the right, *then*
rolled; padding takes part in attention, as in the official code. The shift is never turned off,
also where one window covers the map: the mask then separates what the roll brought together.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from poa_jax.elastic.layers import Cut, Dense, Initializer, trunc_normal
from poa_jax.elastic.width import Width
from poa_jax.models.stochastic_depth import Groups, pack_groups, split_groups

# Added to the logit of two tokens that only the roll made neighbours; the official constant.
MASKED = -100.0


@functools.cache
def relative_positions(window: int) -> np.ndarray:
    """Return (n, n) rows of the bias table for each pair of the n = window² places, int32.

    Row (Δrow + window − 1) · (2·window − 1) + Δcolumn + window − 1, with Δ = query − key.
    """
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1)
    delta = places.reshape(-1, 1, 2) - places.reshape(1, -1, 2) + window - 1
    return (delta[..., 0] * (2 * window - 1) + delta[..., 1]).astype(np.int32)


def padded(size: int, window: int) -> int:
    """Return the next multiple of `window`."""
    return -(-size // window) * window


@functools.cache
def shift_mask(height: int, width: int, window: int) -> np.ndarray:
    """Return (windows, n, n) float32 to add to the logits of a padded, rolled map.

    Zero for tokens that were near each other before the roll, `MASKED` for others.
    """
    shift = window // 2

    def region(size: int) -> np.ndarray:
        at = np.arange(size)
        return (at >= size - window).astype(int) + (at >= size - shift)

    labels_HW = 3 * region(height)[:, None] + region(width)[None]
    split = labels_HW.reshape(height // window, window, width // window, window)
    labels = split.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return np.where(labels[:, :, None] == labels[:, None], 0.0, MASKED).astype(np.float32)


def to_windows(x_BHWC: jax.Array, window: int, shifted: jax.Array) -> jax.Array:
    """Pad, roll where `shifted` (a boolean, traced) is True, cut: (B · windows, window², C)."""
    b, h, w, c = x_BHWC.shape
    hp, wp = padded(h, window), padded(w, window)
    x = jnp.pad(x_BHWC, ((0, 0), (0, hp - h), (0, wp - w), (0, 0)))
    # Blocks of both kinds share one scanned program, so both are made and one is taken.
    x = jnp.where(shifted, jnp.roll(x, (-(window // 2),) * 2, (1, 2)), x)
    x = x.reshape(b, hp // window, window, wp // window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window * window, c)


def from_windows(
    x_BNC: jax.Array, size: tuple[int, int], window: int, shifted: jax.Array
) -> jax.Array:
    """Undo `to_windows` for maps of `size`: (B, H, W, C)."""
    h, w = size
    hp, wp = padded(h, window), padded(w, window)
    x = x_BNC.reshape(-1, hp // window, wp // window, window, window, x_BNC.shape[-1])
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, hp, wp, x_BNC.shape[-1])
    return jnp.where(shifted, jnp.roll(x, (window // 2,) * 2, (1, 2)), x)[:, :h, :w]


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learnt bias for each relative position and head.

    Attributes:
      head_dim: width of one head.
      window: side of a window in tokens.
      sizes: (height, width) of the map of each group of tokens, in order.
      dtype: type of the arithmetic; softmax and bias are float32.
      kernel_init: of both linear maps.
    """

    head_dim: int
    window: int
    sizes: tuple[tuple[int, int], ...]
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(
        self, x_XD: jax.Array, groups: Groups, out_scale: jax.Array | None, shifted: jax.Array
    ) -> jax.Array:
        """Map packed tokens, each group row by row of its maps; `shifted` says how to cut them."""
        d = x_XD.shape[-1]
        heads = d // self.head_dim
        table = self.param("bias_table", nn.initializers.zeros, ((2 * self.window - 1) ** 2, heads))
        bias_HNN = table[relative_positions(self.window)].transpose(2, 0, 1)
        maps = [
            part.reshape(-1, *size, d)
            for part, size in zip(split_groups(x_XD, groups), self.sizes, strict=True)
        ]
        x_XD, cut = pack_groups([to_windows(x, self.window, shifted) for x in maps])
        dense = functools.partial(Dense, d, dtype=self.dtype, kernel_init=self.kernel_init)
        qkv = checkpoint_name(dense(groups=3, name="qkv")(x_XD).reshape(-1, 3 * d), "qkv")
        outs = [
            self._attend(part, bias_HNN, size, shifted)
            for part, size in zip(split_groups(qkv, cut), self.sizes, strict=True)
        ]
        out = checkpoint_name(pack_groups(outs)[0], "attention")
        out = dense(name="proj")(out, out_scale)
        maps = [
            from_windows(part, size, self.window, shifted)
            for part, size in zip(split_groups(out, cut), self.sizes, strict=True)
        ]
        return pack_groups([x.reshape(x.shape[0], -1, d) for x in maps])[0]

    def _attend(self, qkv_BNE, bias_HNN, size, shifted) -> jax.Array:
        b, n, e = qkv_BNE.shape
        q, k, v = jnp.split(qkv_BNE.reshape(b, n, e // self.head_dim, self.head_dim), 3, 2)
        scale = jnp.asarray(self.head_dim**-0.5, q.dtype)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k, preferred_element_type=jnp.float32)
        mask = jnp.asarray(shift_mask(*(padded(s, self.window) for s in size), self.window))
        mask = jnp.where(shifted, mask, 0.0)
        extra = bias_HNN[None] + mask[:, None]
        logits = logits.reshape(-1, *extra.shape) + extra[None]
        weights = jax.nn.softmax(logits.reshape(b, *extra.shape[1:]), axis=-1).astype(v.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, e // 3)

    @staticmethod
    def cuts(width: Width, max_width: int, head_dim: int) -> dict[str, dict[str, Cut] | Cut]:
        """Keep the first heads of the bias table and of q, k and v each."""
        return {
            "bias_table": Cut(((-1, width.scaled(1, head_dim)),)),
            "qkv": Dense.cuts(width, max_width, width, groups=True),
            "proj": Dense.cuts(width, max_width, width),
        }
