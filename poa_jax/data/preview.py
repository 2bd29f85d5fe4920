"""Pictures of what the model will see: the crops of one batch, and the masked patches."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from poa_jax.data.masking import MaskRecipe
from poa_jax.data.pipeline import TrainPipeline
from poa_jax.data.sources import Source

GAP = 4  # pixels between crops
ROWS = 8  # images on a sheet
_PAPER, _HIDDEN = 255, 96  # grey values of the background and of hidden patches


def sheets(config: Any, source: Source, step: int, images: int) -> list[np.ndarray]:
    """Return pages of crops, uint8 (H, W, 3), `ROWS` images on each.

    A line shows global crop 1, the same with its hidden patches grey, global crop 2 likewise, and
    the local crops: after every augmentation, as the update of `step` sees the first `images` rows
    of the batch. Raises ValueError for a batch with fewer.
    """
    if not 1 <= images <= config.train.batch_size:
        raise ValueError(
            f"expected 1 to {config.train.batch_size} images, the size of a batch "
            f"(train.batch_size), not {images}"
        )
    batch = _crops(config, source, step, images)
    grid = MaskRecipe.from_config(config).grid
    lines = [
        _line(batch["global_crops"][i], batch["local_crops"][i], batch["masks"][i], grid)
        for i in range(images)
    ]
    return [_page(lines[first : first + ROWS]) for first in range(0, images, ROWS)]


def _crops(config: Any, source: Source, step: int, images: int) -> dict[str, np.ndarray]:
    """Return uint8 crops and masks of the first rows."""
    pipeline = TrainPipeline.from_config(config, source)
    pipeline.rows = range(-(-images // config.masks.group) * config.masks.group)
    batch = pipeline.batch_at(step)[0]
    if pipeline.placement == "host":
        return batch
    import jax

    from poa_jax.data import placement

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = placement.cutter(config, source, mesh, "data")(batch)
    made = jax.device_get(jax.jit(placement.device_part(config))(batch))
    mean, std = (np.asarray(x, np.float32) for x in (config.data.mean, config.data.std))
    crops = {
        name: np.rint((made[name] * std + mean) * 255).clip(0, 255).astype(np.uint8)
        for name in placement.CROPS
    }
    return crops | {"masks": made["masks"]}


def hide(crop: np.ndarray, mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the crop (S, S, 3) with the patches grey that `mask` (rows · columns,) hides."""
    rows = np.arange(crop.shape[0]) * grid[0] // crop.shape[0]
    columns = np.arange(crop.shape[1]) * grid[1] // crop.shape[1]
    hidden = mask.reshape(grid)[np.ix_(rows, columns)]
    return np.where(hidden[..., None], np.uint8(_HIDDEN), crop)


def _line(global_crops, local_crops, masks, grid) -> np.ndarray:
    whole = [
        x
        for crop, mask in zip(global_crops, masks, strict=True)
        for x in (crop, hide(crop, mask, grid))
    ]
    return _beside([*whole, *local_crops])


def _beside(pictures: list[np.ndarray]) -> np.ndarray:
    height = max(x.shape[0] for x in pictures)
    width = sum(x.shape[1] + GAP for x in pictures) + GAP
    line = np.full((height + 2 * GAP, width, 3), _PAPER, np.uint8)
    left = GAP
    for x in pictures:
        line[GAP : GAP + x.shape[0], left : left + x.shape[1]] = x
        left += x.shape[1] + GAP
    return line


def _page(lines: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(lines)


def write(pages: list[np.ndarray], out: Path) -> list[Path]:
    """Write the pages as OUT/preview-00.png, …; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"preview-{i:02}.png" for i in range(len(pages))]
    for path, page in zip(paths, pages, strict=True):
        Image.fromarray(page).save(path)
    return paths
