"""The official augmentation, written with public torchvision transforms and a torch DataLoader.

`python -m benchmarks.torchvision_reference FOLDER` prints the images/s of its own process; the
DataLoader forks, which a process where JAX has threads would not survive.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def import_torchvision() -> Any:
    """Return (torch, torchvision); raises ImportError where the extra `bench` is not installed."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        # A torchvision built for CUDA beside a torch built without it: its own operators are
        # missing. None of them is used here, but their names are looked up on import.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import_torchvision.library = torch.library.Library("torchvision", "DEF")
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for name in ("nms", "qnms"):
            import_torchvision.library.define(name + boxes)
        import torchvision
    return torch, torchvision


def views(recipe: Any) -> list[Any]:
    """Return one transform for every view of a `poa_jax.data.crops.CropRecipe`."""
    _, torchvision = import_torchvision()
    t = torchvision.transforms
    bicubic = t.InterpolationMode.BICUBIC
    colours = [
        t.RandomApply([t.ColorJitter(*recipe.jitter_strength)], recipe.jitter),
        t.RandomGrayscale(recipe.grayscale),
    ]
    normalise = [t.ToTensor(), t.Normalize(MEAN, STD)]

    def view(kind: int) -> Any:
        size = recipe.local_size if kind == 2 else recipe.global_size
        scale = recipe.local_scale if kind == 2 else recipe.global_scale
        crop = t.RandomResizedCrop(size, scale, interpolation=bicubic)
        blur = t.RandomApply([t.GaussianBlur(9, (0.1, 2.0))], recipe.blur_probability(kind))
        last = [t.RandomSolarize(128, recipe.solarize)] if kind == 1 else []
        flip = t.RandomHorizontalFlip(recipe.flip)
        return t.Compose([crop, flip, *colours, blur, *last, *normalise])

    return [view(min(i, 2)) for i in range(2 + recipe.local_crops)]


class Crops:
    """A torch data set of files: every item is the list of views of one image."""

    def __init__(self, paths: list[Path], recipe: Any):
        self._paths, self._recipe = paths, recipe
        self._views: list[Any] | None = None  # made in the process that uses them

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> list[Any]:
        from PIL import Image

        if self._views is None:
            self._views = views(self._recipe)
        with Image.open(self._paths[index]) as image:
            image = image.convert("RGB")
        return [view(image) for view in self._views]


def batches(
    paths: list[Path], recipe: Any, batch_size: int, workers: int, count: int
) -> Iterator[Any]:
    """Yield `count` batches of a shuffling DataLoader."""
    torch, _ = import_torchvision()
    epochs = -(-count * batch_size // len(paths))
    loader = torch.utils.data.DataLoader(
        Crops(paths * epochs, recipe),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
    )
    for _, batch in zip(range(count), loader, strict=False):
        yield batch


def main(argv: list[str]) -> None:
    """Print images/s over `--batches`, after `--skip` others."""
    from benchmarks import input_pipeline
    from poa_jax.data.crops import CropRecipe

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torchvision_reference", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--skip", type=int, default=8)
    options = parser.parse_args(argv)
    paths = sorted(options.folder.glob("*.jpg"))
    recipe = CropRecipe.from_config(input_pipeline.settings())
    count = options.batches + options.skip
    made = batches(paths, recipe, input_pipeline.BATCH, options.workers, count)
    print(input_pipeline.rate(made, options.skip))


if __name__ == "__main__":
    main(sys.argv[1:])
