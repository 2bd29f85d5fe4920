"""Data sets prepared by TensorFlow Datasets as ArrayRecord files, read without TensorFlow."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from poa_jax import errors
from poa_jax.data.folder import UnreadableImage, decode_image

RANDOM_ACCESS = ("array_record", "parquet")


class TfdsSource:
    """A TFDS split with an `image` and, where there is one, a class `label`."""

    def __init__(self, records: Any, title: str, class_names: tuple[str, ...] | None):
        self._records, self._title = records, title
        self.class_names = class_names

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""
        return len(self.class_names) if self.class_names else None

    @property
    def fingerprint(self) -> str:
        """A hash of name, version, split and length."""
        text = f"{self._title} {len(self)}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | None]:
        try:
            record = self._records[index]
            image, label = record["image"], record.get("label")
        except Exception as error:  # the record reader has many error types
            raise UnreadableImage(self.name(index), str(error)) from error
        return decode_image(image, self.name(index)), int(label) if self.class_names else None

    def name(self, index: int) -> str:
        """Return "record 7 of NAME/VERSION SPLIT"."""
        return f"record {index} of {self._title}"


def open_tfds(name: str, split: str = "train") -> TfdsSource:
    """Open `name` ("fashion_mnist", "imagenet2012:5.1.0", …); nothing is downloaded.

    Raises ValueError for an unknown data set or split or one without uint8 images, and
    FileNotFoundError for a data set that was not prepared on this machine.
    """
    import tensorflow_datasets as tfds  # here: slow to import, and only these sources need it

    known = tfds.list_builders(with_community_datasets=False)
    base = name.partition("/")[0].partition(":")[0]
    if base not in known:
        raise ValueError(errors.unknown("TFDS data set", base, known))
    prepare = f"prepare it with `tfds build {name} --file_format=array_record`"
    if base == "imagenet2012":
        archives = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"
        prepare += f", after downloading {archives} by hand into TFDS's downloads/manual"
    return _open(tfds, lambda: tfds.builder(name), f"TFDS data set {name!r}", split, prepare)


def open_array_record(folder: Path, split: str = "train") -> TfdsSource:
    """Open a folder in the layout of TFDS, such as `poa-jax data prepare` writes.

    Raises FileNotFoundError if it is no such folder, else as `open_tfds`.
    """
    import tensorflow_datasets as tfds

    if not (folder / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no dataset_info.json, expected a folder that "
            "`poa-jax data prepare FOLDER --out DIR` or TFDS wrote"
        )
    prepare = "write it again with `poa-jax data prepare`"
    return _open(
        tfds, lambda: tfds.builder_from_directory(folder), f"data set {folder}", split, prepare
    )


def _open(tfds: Any, make_builder: Any, title: str, split: str, prepare: str) -> TfdsSource:
    """`prepare` says how to get the data where they are missing."""
    builder = None
    try:
        builder = make_builder()
        features = builder.info.features
        is_dict = isinstance(features, tfds.features.FeaturesDict)
        by_name = dict(features.items()) if is_dict else {}
        # The bytes of an image are decoded here: TFDS would pass half an image as a whole one.
        raw = {"image": tfds.decode.SkipDecoding()} if _has_images(tfds, by_name) else None
        records = builder.as_data_source(split, decoders=raw)
    except ImportError as error:
        reason = error.__cause__ or error  # TFDS wraps it in a text of its own
        raise ValueError(f"{title} needs more packages: {reason}") from error
    except Exception as error:  # TFDS reports missing data with KeyError, AssertionError, …
        raise _explained(builder, title, split, prepare, error) from error
    if raw is None:
        raise ValueError(f"{title} has no feature 'image' of 8-bit pictures")
    label = by_name.get("label")
    labelled = isinstance(label, tfds.features.ClassLabel)
    full_title = f"{records.dataset_info.full_name} {split}"
    return TfdsSource(records, full_title, tuple(label.names) if labelled else None)


def _has_images(tfds: Any, features: Mapping[str, Any]) -> bool:
    image = features.get("image")
    return isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8


def _explained(
    builder: Any, title: str, split: str, prepare: str, error: Exception
) -> ValueError | FileNotFoundError:
    """Turn what TFDS raised into one sentence about the split, the format or missing data."""
    splits = list(builder.info.splits) if builder is not None else []
    folder = builder.data_dir if builder is not None else None
    if splits and split.partition("[")[0] not in splits:
        return ValueError(errors.unknown(f"split of {title}", split, splits))
    if splits and builder.info.file_format.value not in RANDOM_ACCESS:
        return ValueError(
            f"{title} in {folder} is stored as {builder.info.file_format.value}, which has no "
            "random access; where TensorFlow is installed, write it as ArrayRecord with "
            f"`tfds convert_format --dataset_version_dir={folder} "
            "--out_file_format=array_record --out_dir=DIR` and set data.source to array_record:DIR"
        )
    if splits:
        return ValueError(f"{title} in {folder} cannot be read: {' '.join(str(error).split())}")
    where = f" in {folder}" if folder else ""
    return FileNotFoundError(
        f"{title} is not prepared on this machine: nothing found{where}; {prepare}"
    )
