"""Data sets prepared by TensorFlow Datasets, read without TensorFlow."""

import hashlib
from typing import Any

import numpy as np

from poa_jax import errors
from poa_jax.data.folder import UnreadableImage


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
            image = _three_channels(np.asarray(record["image"]))
        except Exception as error:  # the decoder and the record reader have many error types
            raise UnreadableImage(self.name(index), str(error)) from error
        return image, int(record["label"]) if self.class_names else None

    def name(self, index: int) -> str:
        """Return "record 7 of NAME/VERSION SPLIT"."""
        return f"record {index} of {self._title}"


def _three_channels(image: np.ndarray) -> np.ndarray:
    """Grey to RGB, alpha dropped: the decoder gives the channels that the file has."""
    if image.ndim == 2:
        image = image[..., None]
    return np.broadcast_to(image[..., :3], (*image.shape[:2], 3))


def open_tfds(name: str, split: str = "train") -> TfdsSource:
    """Open `name` ("fashion_mnist", "imagenet2012:5.1.0", …); nothing is downloaded.

    Raises ValueError for an unknown data set or split or one without uint8 images, and
    FileNotFoundError for a data set that was not prepared on this machine.
    """
    import tensorflow_datasets as tfds  # here: slow to import, and only this source needs it

    known = tfds.list_builders(with_community_datasets=False)
    base = name.partition("/")[0].partition(":")[0]
    if base not in known:
        raise ValueError(errors.unknown("TFDS data set", base, known))
    try:
        records = tfds.data_source(name, split=split, download=False)
    except ImportError as error:
        reason = error.__cause__ or error  # TFDS wraps it in a text of its own
        raise ValueError(f"TFDS cannot read {name!r} without more packages: {reason}") from error
    except Exception as error:  # TFDS reports missing data with KeyError, AssertionError, …
        raise _explained(tfds, name, split, error) from error
    features = records.dataset_info.features
    by_name = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = by_name.get("image"), by_name.get("label")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(f"TFDS data set {name!r} has no feature 'image' of 8-bit pictures")
    labelled = isinstance(label, tfds.features.ClassLabel)
    title = f"{records.dataset_info.full_name} {split}"
    return TfdsSource(records, title, tuple(label.names) if labelled else None)


def _explained(tfds: Any, name: str, split: str, error: Exception) -> Exception:
    """Turn what TFDS raised into one sentence about the split or about missing data."""
    try:
        builder = tfds.builder(name)
        splits, folder = list(builder.info.splits), builder.data_dir
    except Exception:
        splits, folder = [], None
    if splits and split.partition("[")[0] not in splits:
        return ValueError(errors.unknown(f"split of TFDS data set {name!r}", split, splits))
    if splits:
        reason = " ".join(str(error).split())
        return ValueError(f"TFDS data set {name!r} in {folder} cannot be read: {reason}")
    where = f" in {folder}" if folder else ""
    return FileNotFoundError(
        f"TFDS data set {name!r} is not prepared on this machine: nothing found{where}; prepare it "
        f"with `tfds build {name} --file_format=array_record`"
    )
