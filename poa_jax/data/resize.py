"""Boxes cut out of an image and resized: exactly as Pillow does, or several times faster.

Pillow widens its bicubic kernel (a = −1/2) by the scale s of a reduction, so that nothing aliases.
OpenCV's bilinear kernel Λ always has 2 taps, but runs on vector units. The fast way filters first,
with the short symmetric filter p for which Λ after it comes nearest to Pillow's kernel t:

    Σ_n p(n) Λ(x − n)  ≈  t(x / s) / s,      Λ(x) = max(0, 1 − |x|)

`python -m benchmarks.input_pipeline` prints how far the two ways are apart and what each takes.
"""

from functools import cache

import cv2
import numpy as np
from PIL import Image

WAYS = ("fast", "exact")  # values of data.resize
LARGEST_FAST_SCALE = 8.0  # beyond, Pillow's own loop costs no more than so long a filter
_STEPS = 64  # filters are made for scales of whole 1/64
_PHASES = 16  # places of an output pixel between two input pixels that the fit looks at
_NEIGHBOURS, _NOISE = 0.95, 0.02  # natural images: correlation of neighbours, share of white noise


def cut(
    pixels: np.ndarray, top: int, left: int, height: int, width: int, size: int, way: str = "exact"
) -> np.ndarray:
    """Cut a box out of uint8 (H, W) or (H, W, 3) and resize it to size × size, antialiased.

    `way` is one of `WAYS`; "fast" is exact too where the box is enlarged or very large. Pixels
    outside the box take no part.
    """
    box = pixels[top : top + height, left : left + width]
    if (
        way == "fast"
        and size <= min(height, width) <= max(height, width) <= LARGEST_FAST_SCALE * size
    ):
        return _resize_fast(box, size)
    return np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.BICUBIC))


def _resize_fast(box: np.ndarray, size: int) -> np.ndarray:
    down, across = (_filter(round(_STEPS * n / size)) for n in box.shape[:2])
    border = cv2.BORDER_REPLICATE | cv2.BORDER_ISOLATED
    smooth = cv2.sepFilter2D(box, cv2.CV_8U, across, down, borderType=border)
    # Not INTER_LINEAR: its rounding makes 8-bit images darker by a tenth of a level.
    return cv2.resize(smooth, (size, size), interpolation=cv2.INTER_LINEAR_EXACT)


@cache
def _filter(scale_in_steps: int) -> np.ndarray:
    """Return p for a scale: the least mean square error on images like natural ones, Σ p = 1."""
    scale = scale_in_steps / _STEPS
    reach = max(1, int(np.ceil(2 * scale - 1)))
    place = (np.arange(_PHASES)[:, None] + 0.5) / _PHASES
    at = np.arange(-reach - 3, reach + 4)
    wanted = _cubic((at - place) / scale)
    wanted /= wanted.sum(axis=1, keepdims=True)
    kernels = [_linear(at - place)]
    kernels += [_linear(at - n - place) + _linear(at + n - place) for n in range(1, reach + 1)]
    # Errors count by what they do to an image whose pixels are correlated so.
    correlation = _NEIGHBOURS ** np.abs(at[:, None] - at) + _NOISE * np.eye(len(at))
    root = np.linalg.cholesky(correlation)
    kernels, wanted = [(k @ root).ravel() for k in kernels], (wanted @ root).ravel()
    columns = np.stack([k - 2 * kernels[0] for k in kernels[1:]], axis=1)
    sides = np.linalg.lstsq(columns, wanted - kernels[0], rcond=None)[0]
    return np.concatenate([sides[::-1], [1 - 2 * sides.sum()], sides]).astype(np.float32)


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Return the cubic convolution kernel with a = −1/2 (Keys 1981)."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
