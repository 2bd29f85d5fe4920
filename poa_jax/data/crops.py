"""Multi-crop views of one image: 2 global and n local crops as uint8 pixels.

Each view is drawn first (`View`: where to cut and what to do with the colours), then rendered, so
the statistics of the draws and the exactness of the pixels can be tested apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from poa_jax import errors
from poa_jax.data import photometric, resize
from poa_jax.data.photometric import Photometric

CROP_TRIES = 10
LOG_ASPECT = math.log(4 / 3)  # width / height is log-uniform between 3/4 and 4/3
CROP_UNIFORMS = 2 * CROP_TRIES + 2  # (area, aspect) of every try, then top, left
_VIEW_UNIFORMS = CROP_UNIFORMS + 1 + photometric.UNIFORMS  # and the flip


@dataclass(frozen=True)
class CropRecipe:
    """How views are made: sizes in pixels, scales as shares of the image's area, probabilities.

    `blur` holds the probabilities of global crop 1, global crop 2 and local crops; with
    `blur_inverted` each p means 1 − p, as in the official code. `solarize` is for global crop 2.
    `resize` is one of `poa_jax.data.resize.WAYS`.
    """

    global_size: int
    local_size: int
    local_crops: int
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    flip: float = 0.5
    jitter: float = 0.8
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grayscale: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_inverted: bool = False
    solarize: float = 0.2
    resize: str = "fast"

    def __post_init__(self):
        if self.global_size < 1 or self.local_size < 1 or self.local_crops < 0:
            raise ValueError(
                f"crop sizes must be 1 or more and local_crops 0 or more; got global "
                f"{self.global_size}, local {self.local_size}, local_crops {self.local_crops}"
            )
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be 0 < low <= high <= 1; got ({low}, {high})")
        for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
            values = np.atleast_1d(getattr(self, name))
            if ((values < 0) | (values > 1)).any():
                raise ValueError(
                    f"{name} must be a probability from 0 to 1; got {getattr(self, name)}"
                )
        if len(self.blur) != 3 or len(self.jitter_strength) != 4:
            raise ValueError(
                "blur takes 3 probabilities and jitter_strength 4 numbers; "
                f"got {self.blur} and {self.jitter_strength}"
            )
        if min(self.jitter_strength) < 0 or self.jitter_strength[3] > 0.5:
            raise ValueError(
                "jitter_strength must be 0 or more, and at most 0.5 for hue; "
                f"got {self.jitter_strength}"
            )
        if self.resize not in resize.WAYS:
            raise ValueError(errors.unknown("value of data.resize:", self.resize, resize.WAYS))

    @classmethod
    def from_config(cls, config: Any) -> "CropRecipe":
        """Read the recipe from `model.image_size` and the `data` keys of a run's configuration."""
        d = config.data
        return cls(
            global_size=config.model.image_size,
            local_size=d.local_size,
            local_crops=d.local_crops,
            global_scale=tuple(d.global_scale),
            local_scale=tuple(d.local_scale),
            flip=d.flip,
            jitter=d.jitter,
            jitter_strength=tuple(d.jitter_strength),
            grayscale=d.grayscale,
            blur=tuple(d.blur),
            blur_inverted=d.blur_inverted,
            solarize=d.solarize,
            resize=d.resize,
        )

    def blur_probability(self, kind: int) -> float:
        """Return how often kind 0 (global 1), 1 (global 2) or 2 (local) is blurred."""
        return 1.0 - self.blur[kind] if self.blur_inverted else self.blur[kind]


@dataclass(frozen=True, slots=True)
class View:
    """One crop to be made: a box in pixels, the size it is resized to, a flip, the colours."""

    top: int
    left: int
    height: int
    width: int
    size: int
    flip: bool
    colours: Photometric


def make_crops(
    rng: np.random.Generator, image: np.ndarray, recipe: CropRecipe, colours: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Cut all views of one image.

    `image` is uint8 (H, W, 3). Returns uint8 (2, S, S, 3) and (n, s, s, 3) for the recipe's sizes
    S and s; the draws take a fixed amount of `rng` whatever they turn out to be. Without `colours`
    the same boxes are cut, resized and flipped, and nothing else.
    """
    views = draw_views(rng, recipe, *image.shape[:2])
    pixels = np.ascontiguousarray(image[..., 0] if is_grey(image) else image)
    big, small = recipe.global_size, recipe.local_size
    global_crops = np.empty((2, big, big, 3), np.uint8)
    local_crops = np.empty((recipe.local_crops, small, small, 3), np.uint8)
    for slot, view in zip((*global_crops, *local_crops), views, strict=True):
        crop = cut_view(pixels, view, recipe.resize)
        if colours:
            slot[...] = photometric.apply_photometric(crop, view.colours)
        else:
            slot[...] = crop if crop.ndim == 3 else crop[..., None]
    return global_crops, local_crops


def is_grey(image: np.ndarray) -> bool:
    """Return whether the three channels of uint8 (H, W, 3) are equal."""
    red = image[..., 0]
    if not np.array_equal(red[0], image[0, :, 1]):  # settles it for nearly all colour pictures
        return False
    return np.array_equal(red, image[..., 1]) and np.array_equal(red, image[..., 2])


def draw_views(rng: np.random.Generator, recipe: CropRecipe, height: int, width: int) -> list[View]:
    """Draw global crop 1, global crop 2 and the local crops for an image of height × width."""
    numbers = rng.random((2 + recipe.local_crops, _VIEW_UNIFORMS)).tolist()
    views = []
    for i, u in enumerate(numbers):
        kind = min(i, 2)
        size, scale = recipe.global_size, recipe.global_scale
        if kind == 2:
            size, scale = recipe.local_size, recipe.local_scale
        colours = photometric.draw_photometric(
            u[CROP_UNIFORMS + 1 :],
            recipe.jitter,
            recipe.jitter_strength,
            recipe.grayscale,
            recipe.blur_probability(kind),
            recipe.solarize if kind == 1 else 0.0,
        )
        box = crop_box(u[:CROP_UNIFORMS], height, width, scale)
        views.append(View(*box, size, u[CROP_UNIFORMS] < recipe.flip, colours))
    return views


def crop_box(
    uniforms: Sequence[float], height: int, width: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random resized crop.

    area = U(scale) · H · W, aspect = exp U(±log 4/3), w = √(area · aspect), h = √(area / aspect).
    After 10 pairs that do not fit: the largest central box with an aspect in [3/4, 4/3].
    """
    low, high = scale
    for i in range(CROP_TRIES):
        area = height * width * (low + (high - low) * uniforms[2 * i])
        aspect = math.exp(LOG_ASPECT * (2.0 * uniforms[2 * i + 1] - 1.0))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniforms[-2] * (height - h + 1))
            left = int(uniforms[-1] * (width - w + 1))
            return top, left, h, w
    w = min(width, max(1, round(height * 4 / 3)))
    h = min(height, max(1, round(width * 4 / 3)))
    return (height - h) // 2, (width - w) // 2, h, w


def cut_view(pixels: np.ndarray, view: View, way: str) -> np.ndarray:
    """Cut, resize and flip one view of uint8 (H, W) or (H, W, 3), its colours untouched."""
    crop = resize.cut(pixels, view.top, view.left, view.height, view.width, view.size, way)
    return cv2.flip(crop, 1) if view.flip else crop


def resize_centre_crop(image: np.ndarray, shorter: int, crop: int) -> np.ndarray:
    """Resize the shorter side to `shorter` pixels (bicubic), then cut the central crop × crop.

    `image` is uint8 (H, W, 3); returns uint8 (crop, crop, 3). Raises ValueError if crop > shorter.
    """
    if not 0 < crop <= shorter:
        raise ValueError(f"the centre crop of {crop} pixels must fit in the resize of {shorter}")
    height, width = image.shape[:2]
    short = min(height, width)
    new_h, new_w = shorter * height // short, shorter * width // short
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture = picture.resize((new_w, new_h), Image.Resampling.BICUBIC)
    top, left = round((new_h - crop) / 2), round((new_w - crop) / 2)
    return np.asarray(picture.crop((left, top, left + crop, top + crop)))


def normalise(crops: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """Return (x / 255 − mean) / std as float32 for uint8 (..., 3), a numpy or a JAX array."""
    shape = (1,) * (crops.ndim - 1) + (3,)
    mean = np.asarray(mean, np.float32).reshape(shape)
    std = np.asarray(std, np.float32).reshape(shape)
    return (crops.astype(np.float32) / 255 - mean) / std
