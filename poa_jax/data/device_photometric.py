"""Colour jitter, grey, blur, solarise and normalise on the device, in one pass over a batch.

The operations, their rounding to whole values and their draws are those of
`poa_jax.data.photometric`; only the random numbers come from `jax.random`, from a key that is
folded from (seed, step, row), so that a sample looks the same however a batch is divided. Every
shape is fixed: an operation that is not drawn is computed and left out.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from poa_jax.data import photometric
from poa_jax.data.crops import CropRecipe, normalise

GREY = (19595.0, 38470.0, 7471.0)  # / 65536, as in Pillow
_PURPOSE = {"geometry": 1, "colours": 2}


def sample_key(seed: int, purpose: str, sample: jax.Array) -> jax.Array:
    """Return the key of one sample: `sample` is (step, row), `purpose` "geometry" or "colours"."""
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSE[purpose])
    return jax.random.fold_in(jax.random.fold_in(key, sample[0]), sample[1])


def finish_crops(
    batch: Mapping[str, jax.Array],
    recipe: CropRecipe,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> dict[str, jax.Array]:
    """Colour and normalise a batch: uint8 crops to float32 of the same shapes.

    Needs the arrays of `TrainPipeline` with placement "split".
    """

    def one(sample, global_crops, local_crops):
        key = sample_key(seed, "colours", sample)
        u = jax.random.uniform(key, (2 + recipe.local_crops, photometric.UNIFORMS))
        first, second = (apply(u[i], global_crops[i], recipe, i) for i in range(2))
        others = jax.vmap(lambda x, y: apply(x, y, recipe, 2))(u[2:], local_crops)
        return jnp.stack([first, second]), others

    global_crops, local_crops = jax.vmap(one)(
        batch["sample"], batch["global_crops"], batch["local_crops"]
    )
    crops = {"global_crops": global_crops, "local_crops": local_crops}
    return {name: normalise(x, mean, std) for name, x in crops.items()}


def apply(u: jax.Array, pixels: jax.Array, recipe: CropRecipe, kind: int) -> jax.Array:
    """Colour one view by `photometric.UNIFORMS` uniforms.

    `pixels` are uint8 (H, W, 3); returns whole values 0 … 255 as float32. `kind` is 0 for global
    crop 1, 1 for global crop 2, 2 for local crops.
    """
    x = pixels.astype(jnp.float32)
    order = jnp.argsort(u[5:9])
    factors = [
        _factor(name, recipe.jitter_strength[i], u[1 + i])
        for i, name in enumerate(photometric.JITTER_OPS)
    ]
    jittered = x
    for place in range(4):
        results = jnp.stack([op(jittered, f) for op, f in zip(_OPERATIONS, factors, strict=True)])
        jittered = jnp.take(results, order[place], axis=0)
    x = jnp.where(u[0] < recipe.jitter, jittered, x)
    x = jnp.where(u[9] < recipe.grayscale, jnp.broadcast_to(to_grey(x), x.shape), x)
    if recipe.blur_probability(kind) > 0:
        low, high = photometric.BLUR_SIGMA
        blurred = blur(x, low + (high - low) * u[11])
        x = jnp.where(u[10] < recipe.blur_probability(kind), blurred, x)
    if kind == 1 and recipe.solarize > 0:
        inverted = jnp.where(x >= photometric.SOLARIZE_THRESHOLD, 255.0 - x, x)
        x = jnp.where(u[12] < recipe.solarize, inverted, x)
    return x


def _factor(name: str, strength: float, u: jax.Array) -> jax.Array:
    low = photometric.jitter_factor(name, strength, 0.0)
    return low + (photometric.jitter_factor(name, strength, 1.0) - low) * u


def to_grey(x: jax.Array) -> jax.Array:
    """Return whole values (H, W, 1) of (H, W, 3)."""
    # Every product and sum is a whole number below 2²⁴, so float32 is exact.
    total = sum(weight * x[..., i] for i, weight in enumerate(GREY)) + 32768.0
    return jnp.floor(total / 65536.0)[..., None]


def _blend(base: jax.Array | float, x: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.floor(jnp.clip(base + factor * (x - base), 0.0, 255.0))


def _brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(0.0, x, factor)


def _contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(jnp.floor(to_grey(x).mean() + 0.5), x, factor)


def _saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(jnp.broadcast_to(to_grey(x), x.shape), x, factor)


def _hue(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Turn the hue by way of 8-bit H, S, V; see `poa_jax.data.hue` for the formulas."""
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    value = x.max(axis=-1)
    d = value - x.min(axis=-1)
    safe = jnp.maximum(d, 1.0)
    sixths = jnp.where(
        red == value,
        (green - blue) / safe,
        jnp.where(green == value, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    hue = jnp.where(d > 0, jnp.floor(jnp.mod(sixths / 6.0 + 1.0, 1.0) * 255.0), 0.0)
    hue = jnp.mod(hue + jnp.trunc(factor * 255.0), 256.0)
    chroma = value * jnp.floor(d / jnp.maximum(value, 1.0) * 255.0)
    channels = [
        value - jnp.round(chroma * _weight(6.0 * hue + 255.0 * n) / 255.0**2) for n in (5, 3, 1)
    ]
    return jnp.stack(channels, axis=-1)


def _weight(k: jax.Array) -> jax.Array:
    return jnp.clip(510.0 - jnp.abs(jnp.mod(k, 1530.0) - 510.0), 0.0, 255.0)


_OPERATIONS = (_brightness, _contrast, _saturation, _hue)  # in the order of JITTER_OPS


def blur(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blur (H, W, 3) with a 9 × 9 Gaussian, reflecting at the borders, to whole values."""
    reach = photometric.BLUR_KERNEL // 2
    weight = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1.0) / sigma) ** 2)
    weight = weight / weight.sum()
    for axis in (0, 1):
        width = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
        padded, size = jnp.pad(x, width, mode="reflect"), x.shape[axis]
        x = sum(
            weight[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i in range(photometric.BLUR_KERNEL)
        )
    return jnp.round(x)
