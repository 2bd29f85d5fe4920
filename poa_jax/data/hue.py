"""A turn of the hue on 8-bit images, in the steps of Pillow's HSV mode but table by table.

Pillow goes to 8-bit H, S, V and back, pixel by pixel. With d = max − min and V = max,

    S = int(255 d / V)                        depends on d and V alone,
    H = int(255 frac(x / 6 + 1))              depends on (r − g, g − b) alone,

where x = ((g − b), 2 d + (b − r) or 4 d + (r − g)) / d for a largest red, green or blue. And back,
for each channel c,  out_c = V − round(V S w_c(H) / 255²),  w_c = 255 clip(2 − |k_c − 2|, 0, 1) with
k = (6 H / 255 + (5, 3, 1)) mod 6: whole numbers, so that nothing but three products is left to do.
"""

from functools import cache, lru_cache

import cv2
import numpy as np

_REACH = 255  # of a difference of two channels
_SPAN = 2 * _REACH + 1


def turn_hue(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue of uint8 (H, W, 3) by `factor` of the circle, −1 … 1."""
    red, green, blue = cv2.split(pixels)
    value = cv2.max(cv2.max(red, green), blue)
    least = cv2.min(cv2.min(red, green), blue)
    place = np.multiply(red, _SPAN, dtype=np.int32)  # 511 (r − g) + (g − b), in few passes
    place -= np.multiply(green, _SPAN - 1, dtype=np.int32)
    place -= blue
    hue = _hues().take(place)  # negative places count from the end
    # Two bytes side by side are one 16-bit index: d + 256 V, whatever order the machine has.
    pair = cv2.merge((cv2.subtract(value, least), value)).view("<u2")[..., 0]
    chroma = _chroma().take(pair)
    channels = []
    for weight in _weights(int(factor * 255)):  # int() goes towards zero
        turned = cv2.LUT(hue, weight)
        less = cv2.multiply(chroma, turned, scale=1 / 255**2, dtype=cv2.CV_32F)
        channels.append(cv2.subtract(value, less, dtype=cv2.CV_8U))
    return cv2.merge(channels)


@cache
def _hues() -> np.ndarray:
    """Return H at 511 (r − g) + (g − b), negative places counted from the end; uint8 (511²,)."""
    steps = np.arange(-_REACH, _REACH + 1, dtype=np.float32)
    r_g, g_b = np.meshgrid(steps, steps, indexing="ij")
    colours = np.stack([r_g + g_b, g_b, np.zeros_like(g_b)])  # blue is 0; only differences count
    red, green, blue = colours - colours.min(axis=0)
    value = np.maximum(np.maximum(red, green), blue)
    d = np.where(value > 0, value, np.float32(1))
    # Pillow's types and order: the last bit decides int() of what should be a whole number.
    to_red, to_green, to_blue = (((value - c) / d).astype(np.float64) for c in (red, green, blue))
    x = np.where(
        red == value,
        to_blue - to_green,
        np.where(green == value, 2.0 + to_red - to_blue, 4.0 + to_green - to_red),
    )
    x = x.astype(np.float32).astype(np.float64)
    hue = ((x / 6 + 1) % 1.0).astype(np.float32)
    hue = (hue.astype(np.float64) * 255).astype(np.uint8)
    hue = np.where(value > 0, hue, 0).astype(np.uint8)
    return np.roll(hue.ravel(), -(_SPAN * _REACH + _REACH))


@cache
def _chroma() -> np.ndarray:
    """Return V · S at d + 256 V, uint16 (65536,)."""
    value, d = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    ratio = d.astype(np.float32) / np.maximum(value, 1).astype(np.float32)
    saturation = (ratio.astype(np.float64) * 255).astype(np.int64)
    return (value * np.minimum(saturation, 255)).astype(np.uint16).ravel()


@lru_cache(maxsize=512)
def _weights(shift: int) -> np.ndarray:
    """Return 255 w of red, green and blue for every H turned by `shift`; uint8 (3, 256)."""
    hue = (np.arange(256) + shift) % 256
    k = (6 * hue + 255 * np.array([[5], [3], [1]])) % (6 * 255)
    return np.clip(2 * 255 - np.abs(k - 2 * 255), 0, 255).astype(np.uint8)
