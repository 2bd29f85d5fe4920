"""Colour jitter, grey, blur and solarise on 8-bit images, drawn first and applied after.

Every operation rounds to 8 bits as Pillow does, for these are the semantics of the official recipe:
exactly, but for contrast and saturation, which take a grey that is off by one in few pixels. Images
are uint8 (H, W, 3), or (H, W) when all three channels are equal (a grey picture stays grey under
all of them, at a third of the cost).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from poa_jax.data.hue import turn_hue

BLUR_KERNEL = 9  # pixels
BLUR_SIGMA = (0.1, 2.0)
SOLARIZE_THRESHOLD = 128
JITTER_OPS = ("brightness", "contrast", "saturation", "hue")
UNIFORMS = 13  # how many numbers in [0, 1) one draw takes

_CUT = -0.5 + 6e-5  # OpenCV rounds where Pillow cuts; the small part keeps whole numbers whole

_SOLARIZE_TABLE = np.arange(256, dtype=np.uint8)
_SOLARIZE_TABLE[SOLARIZE_THRESHOLD:] = 255 - _SOLARIZE_TABLE[SOLARIZE_THRESHOLD:]


@dataclass(frozen=True, slots=True)
class Photometric:
    """What happens to the colours of one crop.

    `jitter` lists (operation, factor) in the order they run; empty: none. `blur_sigma` in pixels,
    None: no blur.
    """

    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_sigma: float | None = None
    solarize: bool = False


def draw_photometric(
    uniforms: Sequence[float],
    jitter: float,
    strength: Sequence[float],
    grayscale: float,
    blur: float,
    solarize: float,
) -> Photometric:
    """Turn `UNIFORMS` numbers in [0, 1) into one `Photometric`.

    `jitter`, `grayscale`, `blur`, `solarize` are probabilities; `strength` (brightness, contrast,
    saturation, hue) as in `jitter_factor`.
    """
    u = uniforms
    operations = ()
    if u[0] < jitter:
        order = sorted(range(4), key=u[5:9].__getitem__)  # ranks of uniforms: a fair permutation
        operations = tuple(
            (JITTER_OPS[i], jitter_factor(JITTER_OPS[i], strength[i], u[1 + i])) for i in order
        )
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * u[11] if u[10] < blur else None
    return Photometric(operations, u[9] < grayscale, sigma, u[12] < solarize)


def jitter_factor(operation: str, strength: float, uniform: float) -> float:
    """Return the factor of a jitter operation: hue in ±strength, else 1 ± strength (at least 0)."""
    if operation == "hue":
        return strength * (2.0 * uniform - 1.0)
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * uniform


def apply_photometric(pixels: np.ndarray, what: Photometric) -> np.ndarray:
    """Apply a draw to uint8 (H, W, 3) or (H, W); returns uint8 (H, W, 3)."""
    for operation, factor in what.jitter:
        pixels = jitter(pixels, operation, factor)
    if what.grayscale:
        pixels = to_grey(pixels)
    if what.blur_sigma is not None:
        pixels = gaussian_blur(pixels, what.blur_sigma)
    if what.solarize:
        pixels = solarize(pixels)
    return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)


def jitter(pixels: np.ndarray, operation: str, factor: float) -> np.ndarray:
    """Run one of `JITTER_OPS`: out = base + factor · (pixels − base), or a turn of the hue.

    The base is black for brightness, the mean grey for contrast, the grey picture for saturation.
    """
    if operation == "brightness":
        return cv2.LUT(pixels, _blended(np.zeros(256, np.float32), factor))
    if operation == "contrast":
        grey = _nearly_grey(pixels)
        mean = int(cv2.sumElems(grey)[0] / grey.size + 0.5)
        return cv2.LUT(pixels, _blended(np.full(256, mean, np.float32), factor))
    if pixels.ndim == 2:  # a grey picture has no saturation and no hue
        return pixels
    if operation == "saturation":
        grey = cv2.cvtColor(_nearly_grey(pixels), cv2.COLOR_GRAY2RGB)
        return cv2.addWeighted(pixels, factor, grey, 1.0 - factor, _CUT)
    return turn_hue(pixels, factor)


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W): (19595 r + 38470 g + 7471 b + 2¹⁵) / 2¹⁶, as Pillow's mode "L"."""
    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))


def _nearly_grey(pixels: np.ndarray) -> np.ndarray:
    """Like `to_grey`, several times faster and one too high or low in a few of 10 000 pixels."""
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _blended(base: np.ndarray, factor: float) -> np.ndarray:
    """Return the table of base + factor · (value − base), in float32 and cut to whole numbers."""
    value = np.arange(256, dtype=np.float32)
    return (base + np.float32(factor) * (value - base)).clip(0, 255).astype(np.uint8)


def gaussian_blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Blur uint8 (H, W) or (H, W, 3) with a 9 × 9 Gaussian, reflecting at the borders."""
    x = np.arange(BLUR_KERNEL, dtype=np.float64) - (BLUR_KERNEL - 1) / 2
    weight = np.exp(-0.5 * (x / sigma) ** 2)
    weight = (weight / weight.sum()).astype(np.float32)
    # Float in between: OpenCV's 8-bit path would round the kernel to fixed point.
    blurred = cv2.sepFilter2D(pixels, cv2.CV_32F, weight, weight, borderType=cv2.BORDER_REFLECT_101)
    return cv2.convertScaleAbs(blurred)  # rounds halves to even


def solarize(pixels: np.ndarray) -> np.ndarray:
    """Invert every value from 128 up."""
    return cv2.LUT(pixels, _SOLARIZE_TABLE)
