"""A folder of images written as ArrayRecord files, in the layout of TensorFlow Datasets.

Few large files with an index instead of many small ones: quick to list, to copy and to read at
random over a network. A file that every reader decodes alike is copied byte for byte; others
(turned by EXIF, CMYK, alpha, 16 bits, WebP, BMP) become PNG with the pixels that training sees.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from poa_jax.data.folder import ORIENTATION, FolderSource, UnreadableImage, decode_image
from poa_jax.data.health import BatchInfo, Health

VERSION = "1.0.0"
_AS_THEY_ARE = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}


def prepare(
    sources: dict[str, FolderSource], out: Path, name: str, max_bad_fraction: float = 0.01
) -> dict[str, int]:
    """Write splits {"train": source, …} to the folder `out`, whole or not at all.

    Returns how many images each split has; unreadable ones are left out, under the rule of
    `health.Health`. `open_source("array_record:OUT")` opens the result.

    Raises FileExistsError if `out` exists, ValueError for too many unreadable images.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; name a new folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.unfinished-", dir=out.parent))
    try:
        builder = _builder(sources, unfinished, name, max_bad_fraction)
        # TFDS prints its progress as for a download.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
        counts = {split: builder.info.splits[split].num_examples for split in sources}
        os.chmod(builder.data_dir, unfinished.parent.stat().st_mode & 0o777)
        os.rename(builder.data_dir, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return counts


def _builder(
    sources: dict[str, FolderSource], folder: Path, name: str, max_bad_fraction: float
) -> Any:
    import tensorflow_datasets as tfds  # here: slow to import

    tfds.disable_progress_bar()
    classes = next(iter(sources.values())).class_names
    features = {"image": tfds.features.Image(shape=(None, None, None))}
    if classes is not None:
        features["label"] = tfds.features.ClassLabel(names=classes)

    class Folder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The images of a folder, in the order of their paths."""

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(source) for split, source in sources.items()}

        def _generate_examples(self, source):
            return _examples(source, max_bad_fraction)

    Folder.name, Folder.VERSION = name, tfds.core.Version(VERSION)
    return Folder(data_dir=folder, file_format="array_record")


def _examples(source: FolderSource, max_bad_fraction: float) -> Iterator[tuple[int, dict]]:
    health = Health(source, max_bad_fraction)
    for index in range(len(source)):
        path = Path(source.name(index))
        try:
            content = encoded(path)
        except UnreadableImage as error:
            health.record(BatchInfo(1, ((index, error.reason),)))
            continue
        health.record(BatchInfo(1, ()))
        label = source.label(index)
        example = {"image": io.BytesIO(content)}
        yield index, example if label is None else example | {"label": label}


def encoded(path: Path) -> bytes:
    """Return an image file as bytes that any reader decodes alike; raises `UnreadableImage`."""
    pixels = decode_image(path, str(path))  # all of it: a file that is cut off must not get in
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        plain = (image.format, image.mode) in _AS_THEY_ARE and "transparency" not in image.info
        if plain and image.getexif().get(ORIENTATION, 1) == 1:
            return content
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return out.getvalue()
