"""Colour jitter, grey, blur and solarise on 8-bit images, drawn first and applied after.

Every operation rounds to 8 bits exactly as Pillow does, for these are the semantics of the
official recipe. Images are Pillow images of mode "RGB", or "L" when all three channels are equal
(a grey picture stays grey under all of them, at a third of the cost).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

BLUR_KERNEL = 9  # pixels
BLUR_SIGMA = (0.1, 2.0)
SOLARIZE_THRESHOLD = 128
JITTER_OPS = ("brightness", "contrast", "saturation", "hue")
UNIFORMS = 13  # how many numbers in [0, 1) one draw takes

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


def apply_photometric(image: Image.Image, what: Photometric) -> np.ndarray:
    """Apply a draw to an image of mode "RGB" or "L"; returns uint8 (H, W, 3)."""
    for operation, factor in what.jitter:
        image = jitter(image, operation, factor)
    if what.grayscale:
        image = image.convert("L")
    pixels = np.asarray(image)
    if what.blur_sigma is not None:
        pixels = gaussian_blur(pixels, what.blur_sigma)
    if what.solarize:
        pixels = solarize(pixels)
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[..., None], (*pixels.shape, 3))


def jitter(image: Image.Image, operation: str, factor: float) -> Image.Image:
    """Run one of `JITTER_OPS`: out = base + factor · (image − base), or a turn of the hue.

    The base is black for brightness, the mean grey for contrast, the grey picture for saturation.
    """
    if operation == "brightness":
        return Image.blend(Image.new(image.mode, image.size), image, factor)
    if operation == "contrast":
        grey = np.asarray(image if image.mode == "L" else image.convert("L"))
        mean = int(cv2.sumElems(grey)[0] / grey.size + 0.5)
        base = Image.new(image.mode, image.size, (mean,) * len(image.mode))
        return Image.blend(base, image, factor)
    if image.mode == "L":  # a grey picture has no saturation and no hue
        return image
    if operation == "saturation":
        return Image.blend(image.convert("L").convert("RGB"), image, factor)
    return _turn_hue(image, factor)


def _turn_hue(image: Image.Image, factor: float) -> Image.Image:
    """Turn the hue by `factor` of the circle, in the 256 steps of Pillow's HSV mode."""
    shift = int(factor * 255)  # towards zero
    table = np.tile(np.arange(256), (3, 1))
    table[0] = (table[0] + shift) % 256
    return image.convert("HSV").point(table.ravel().tolist()).convert("RGB")


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
