"""Between the fine map that a hierarchical backbone starts with and the coarse one it ends with.

Masks and patch features live on a grid `mask_scale` times as fine as the last map (14 × 14 for
images of 224 pixels): features are repeated up to it, masks are repeated up to the first map.
"""

import jax
import jax.numpy as jnp


def nearest_upsample(x_BHWC: jax.Array, scale: int) -> jax.Array:
    """Repeat every entry `scale` times along height and width."""
    b, h, w, c = x_BHWC.shape
    x = jnp.broadcast_to(x_BHWC[:, :, None, :, None], (b, h, scale, w, scale, c))
    return x.reshape(b, h * scale, w * scale, c)


def hide(
    x_BHWC: jax.Array, masks_BN: jax.Array | None, token_C: jax.Array, stride: int, pixels: int
) -> jax.Array:
    """Put the mask token where `masks_BN` is True.

    Args:
      x_BHWC: the first map.
      masks_BN: None, or booleans over the mask grid, (H / stride) · (W / stride) of them.
      token_C: what hidden places become.
      stride: places of the map under one entry of a mask, along a side.
      pixels: of the image under one place of the map, along a side; for the message.

    Raises:
      ValueError: for a map that the stride does not divide, or a mask of another length.
    """
    if masks_BN is None:
        return x_BHWC
    b, h, w, _ = x_BHWC.shape
    unit = stride * pixels
    if h % stride or w % stride:
        raise ValueError(
            f"an image of {h * pixels}×{w * pixels} pixels cannot be masked: its sides are not "
            f"multiples of {unit}"
        )
    grid = (h // stride, w // stride)
    if masks_BN.shape != (b, grid[0] * grid[1]):
        raise ValueError(
            f"masks of shape {tuple(masks_BN.shape)} do not fit {b} images with a mask grid of "
            f"{grid[0]}×{grid[1]}; expected {(b, grid[0] * grid[1])}"
        )
    mask = nearest_upsample(masks_BN.reshape(b, *grid, 1), stride)
    return jnp.where(mask, token_C.astype(x_BHWC.dtype)[None, None, None], x_BHWC)
