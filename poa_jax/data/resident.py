"""Images that stay in device memory, and crops cut out of them there.

Boxes are drawn as in `poa_jax.data.crops`, from keys folded from (seed, step, row); a cut is two
matrix products with the weights of Pillow's antialiased bicubic, each rounded to 8 bits.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.data.crops import CROP_TRIES, CROP_UNIFORMS, LOG_ASPECT, CropRecipe, is_grey
from poa_jax.data.device_photometric import sample_key
from poa_jax.data.folder import UnreadableImage
from poa_jax.data.health import BatchInfo, Health
from poa_jax.data.sources import Source

_AT_ONCE = 16  # images that are cut side by side; all of a batch would need gigabytes


def load(source: Source, limit_mib: float, max_bad_fraction: float) -> np.ndarray:
    """Read every image: uint8 (n, H, W, C), C = 1 if all of them are grey, else 3.

    An unreadable image is replaced by the next readable one, under the rule of `health.Health`.
    Raises ValueError for images of several sizes, and for more than `limit_mib` MiB.
    """
    health = Health(source, max_bad_fraction)
    images: np.ndarray | None = None
    waiting: list[int] = []  # places before the first readable image
    grey = True
    for index in range(len(source)):
        try:
            image = source[index][0]
        except UnreadableImage as error:
            health.record(BatchInfo(1, ((index, error.reason),)))
            waiting.append(index)
            continue
        health.record(BatchInfo(1, ()))
        if images is None:
            images = _room(source, image.shape, limit_mib)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"data.placement resident needs images of one size, but {source.name(index)} has "
                f"{image.shape[1]} × {image.shape[0]} pixels and others have {images.shape[2]} × "
                f"{images.shape[1]}; expected data.placement split or host"
            )
        grey = grey and is_grey(image)
        images[[*waiting, index]] = image
        waiting = []
    if images is None:
        raise ValueError(f"none of the {len(source)} images can be read")
    images[waiting] = images[next(i for i in range(len(source)) if i not in set(waiting))]
    return np.ascontiguousarray(images[..., :1]) if grey else images


def _room(source: Source, shape: tuple[int, ...], limit_mib: float) -> np.ndarray:
    mib = len(source) * np.prod(shape, dtype=np.int64) / 2**20
    if mib > limit_mib:
        raise ValueError(
            f"data.placement resident needs {mib:,.1f} MiB of device memory for {len(source):,} "
            f"images of {shape[1]} × {shape[0]} pixels, more than the {limit_mib:g} that "
            "data.resident_limit allows; expected data.placement split or host"
        )
    return np.empty((len(source), *shape), np.uint8)


def cut_crops(
    images: jax.Array, batch: Mapping[str, jax.Array], recipe: CropRecipe, seed: int
) -> dict[str, jax.Array]:
    """Turn a batch of placement "resident" into one of placement "split".

    `images` are uint8 (n, H, W, C); `batch` has `image` (b,) and `sample` (b, 2).
    """

    def one(item):
        index, sample = item
        pixels = images[index].astype(jnp.float32)
        u = jax.random.uniform(
            sample_key(seed, "geometry", sample), (2 + recipe.local_crops, CROP_UNIFORMS + 1)
        )
        global_crops = _cut_views(u[:2], pixels, recipe.global_size, recipe.global_scale, recipe)
        local_crops = _cut_views(u[2:], pixels, recipe.local_size, recipe.local_scale, recipe)
        return global_crops, local_crops

    global_crops, local_crops = jax.lax.map(
        one, (batch["image"], batch["sample"]), batch_size=_AT_ONCE
    )
    rest = {name: x for name, x in batch.items() if name != "image"}
    return rest | {"global_crops": global_crops, "local_crops": local_crops}


def _cut_views(u, pixels, size: int, scale: tuple[float, float], recipe: CropRecipe) -> jax.Array:
    height, width = pixels.shape[:2]

    def one(uniforms):
        top, left, h, w = crop_box(uniforms[:CROP_UNIFORMS], height, width, scale)
        return cut(pixels, top, left, h, w, size, uniforms[CROP_UNIFORMS] < recipe.flip)

    return jax.vmap(one)(u)


def crop_box(
    u: jax.Array, height: int, width: int, scale: tuple[float, float]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return (top, left, height, width), whole numbers as float32; see `crops.crop_box`."""
    low, high = scale
    pairs = u[: 2 * CROP_TRIES].reshape(CROP_TRIES, 2)
    area = height * width * (low + (high - low) * pairs[:, 0])
    aspect = jnp.exp(LOG_ASPECT * (2.0 * pairs[:, 1] - 1.0))
    w, h = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first, found = jnp.argmax(fits), fits.any()
    # The largest central box with an aspect in [3/4, 4/3] where nothing fits.
    whole_w = float(min(width, max(1, round(height * 4 / 3))))
    whole_h = float(min(height, max(1, round(width * 4 / 3))))
    w, h = jnp.where(found, w[first], whole_w), jnp.where(found, h[first], whole_h)
    top = jnp.where(found, jnp.floor(u[-2] * (height - h + 1)), jnp.floor((height - h) / 2))
    left = jnp.where(found, jnp.floor(u[-1] * (width - w + 1)), jnp.floor((width - w) / 2))
    return jnp.minimum(top, height - h), jnp.minimum(left, width - w), h, w


def cut(pixels, top, left, height, width, size: int, flip) -> jax.Array:
    """Cut a box out of (H, W, C), resize it to size × size, and flip it if `flip`; uint8, C = 3."""
    rows = _weights(top, height, size, pixels.shape[0])
    columns = _weights(left, width, size, pixels.shape[1])
    columns = jnp.where(flip, columns[::-1], columns)
    for weights, equation in ((columns, "hwc,sw->hsc"), (rows, "hwc,sh->swc")):
        x = jnp.einsum(equation, pixels, weights, precision="highest")
        pixels = jnp.floor(jnp.clip(x + 0.5, 0.0, 255.0))
    return jnp.broadcast_to(pixels, (size, size, 3)).astype(jnp.uint8)


def _weights(start: jax.Array, length: jax.Array, size: int, extent: int) -> jax.Array:
    """Return (size, extent): what each pixel of a line counts for in each output pixel.

    Cubic convolution with a = −1/2, widened by the scale of a reduction, cut at the box and scaled
    to sum to one.
    """
    scale = length / size
    centre = (start + (jnp.arange(size * 1.0) + 0.5) * scale)[:, None]
    pixel = jnp.arange(extent * 1.0)[None]
    x = jnp.abs(pixel + 0.5 - centre) / jnp.maximum(scale, 1.0)
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    kernel = jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))
    kernel = jnp.where((pixel >= start) & (pixel < start + length), kernel, 0.0)
    return kernel / kernel.sum(axis=1, keepdims=True)
