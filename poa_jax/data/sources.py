"""Where images come from: `open_source("embedded")`, `"folder:PATH"`, `"tfds:NAME"`, ….

A source is a sized, indexable collection of RGB images with optional labels. Sources hold no
random state and read an image only when it is asked for, from any thread.
"""

import gzip
import hashlib
import importlib.resources
import io
import lzma
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from poa_jax import errors
from poa_jax.data.folder import open_folder
from poa_jax.data.tfds_source import open_array_record, open_tfds

KINDS = ("embedded", "fashion-mnist", "tfds", "folder", "arrays", "array_record")
FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"  # Debian package dataset-fashion-mnist
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
EMBEDDED_FILE = "fashion_mnist_14k.npz.xz"
_IDX_PREFIX = {"train": "train", "test": "t10k"}


class Source(Protocol):
    """What every source offers."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in label order, None where they are unknown."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None for a source without labels."""

    @property
    def fingerprint(self) -> str:
        """A short string that changes when the content or its order does."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | None]:
        """Return (image uint8 (H, W, 3), label); raises `UnreadableImage` for a broken file."""

    def name(self, index: int) -> str:
        """Return what a message should call image `index`."""


class ArraySource:
    """Images held in memory.

    `images` is uint8 (n, H, W), (n, H, W, 1) or (n, H, W, 3); `labels` are n integers from 0 or
    None. Raises ValueError for any other shape or type.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] | None = None,
        title: str = "array",
    ):
        images = np.asarray(images)
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(
                f"{title}: images are {images.dtype} of shape {images.shape}; expected uint8 of "
                "shape (n, H, W), (n, H, W, 1) or (n, H, W, 3)"
            )
        if 0 in images.shape:
            raise ValueError(f"{title}: there are no images in an array of shape {images.shape}")
        if labels is not None:
            labels = np.asarray(labels)
            if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(
                    f"{title}: labels are {labels.dtype} of shape {labels.shape}; expected "
                    f"{len(images)} integers, one for each image"
                )
            if labels.min() < 0:
                raise ValueError(f"{title}: labels must be 0 or more, found {labels.min()}")
        self._images, self._labels, self._title = images, labels, title
        self.class_names = class_names

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""
        if self._labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self._labels.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """A hash of shape, pixels and labels."""
        digest = hashlib.blake2b(repr(self._images.shape).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(self._images))
        if self._labels is not None:
            digest.update(self._labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | None]:
        image = self._images[index]
        image = np.broadcast_to(image, (*image.shape[:2], 3))
        return image, None if self._labels is None else int(self._labels[index])

    def name(self, index: int) -> str:
        """Return "image 7 of TITLE"."""
        return f"image {index} of {self._title}"


def open_source(spec: str, split: str = "train") -> Source:
    """Open a source of images by its name.

    | spec | what |
    |---|---|
    | `embedded` | 12 000 train / 2 000 test images of Fashion-MNIST, part of this package |
    | `fashion-mnist[:FOLDER]` | the four idx.gz files of Debian's `dataset-fashion-mnist` |
    | `folder:PATH` | every image file below PATH; see `poa_jax.data.folder` for splits and labels |
    | `tfds:NAME` | a TFDS data set that is already prepared in the array_record format |
    | `array_record:DIR` | what `poa-jax data prepare` wrote, or any prepared folder of TFDS |
    | `arrays:FILE.npz` | keys `images` and, if wanted, `labels`; for "test" `test_images`, … |

    Raises ValueError for an unknown spec or split, FileNotFoundError for missing or empty data.
    """
    kind, colon, rest = spec.partition(":")
    if kind not in KINDS:
        raise ValueError(_unknown_kind(spec, kind))
    if kind == "embedded":
        if colon:
            raise ValueError(f"data source {spec!r}: 'embedded' takes nothing after it")
        return _open_embedded(split)
    if kind == "fashion-mnist":
        return _open_fashion_mnist(Path(rest or FASHION_MNIST_FOLDER).expanduser(), split)
    if not rest:
        wanted = {
            "tfds": "tfds:NAME",
            "folder": "folder:PATH",
            "arrays": "arrays:FILE.npz",
            "array_record": "array_record:DIR",
        }[kind]
        raise ValueError(f"data source {spec!r} is not complete, expected {wanted!r}")
    if kind == "folder":
        return open_folder(Path(rest).expanduser(), split)
    if kind == "tfds":
        return open_tfds(rest, split)
    if kind == "array_record":
        return open_array_record(Path(rest).expanduser(), split)
    return _open_arrays(Path(rest).expanduser(), split)


def _unknown_kind(spec: str, kind: str) -> str:
    expected = (
        "embedded, fashion-mnist[:FOLDER], tfds:NAME, folder:PATH, array_record:DIR or "
        "arrays:FILE.npz"
    )
    message = f"unknown data source {spec!r}, expected {expected}"
    if Path(spec).expanduser().is_dir():
        return f"{message}; for this folder write 'folder:{spec}'"
    near = errors.nearest(kind, KINDS)
    return f"{message}; did you mean {near!r}?" if near else message


def check_split(spec: str, split: str) -> None:
    """Raise ValueError unless `split` is "train" or "test"."""
    if split not in _IDX_PREFIX:
        raise ValueError(errors.unknown(f"split of {spec}", split, _IDX_PREFIX))


def _open_embedded(split: str) -> ArraySource:
    check_split("embedded", split)
    packed = importlib.resources.files("poa_jax.data").joinpath("assets", EMBEDDED_FILE)
    with np.load(io.BytesIO(lzma.decompress(packed.read_bytes()))) as arrays:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    return ArraySource(images, labels, FASHION_MNIST_CLASSES, f"embedded {split} set")


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of bytes (the MNIST format) into a uint8 array.

    Raises FileNotFoundError if it is missing, ValueError if it is not such a file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected the idx.gz files of Debian's dataset-fashion-mnist"
        )
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    # 4-byte head: two zeros, type (8 = unsigned byte), number of axes; then each axis, big-endian.
    axes = data[3] if data[:3] == b"\0\0\x08" else 0
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    if axes == 0 or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise ValueError(f"{path} is not an idx file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _open_fashion_mnist(folder: Path, split: str) -> ArraySource:
    check_split("fashion-mnist", split)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder {folder} does not exist; install Debian's package dataset-fashion-mnist "
            "or name its folder: 'fashion-mnist:FOLDER'"
        )
    prefix = _IDX_PREFIX[split]
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    return ArraySource(images, labels, FASHION_MNIST_CLASSES, f"fashion-mnist {split} set")


def _open_arrays(path: Path, split: str) -> ArraySource:
    check_split(f"arrays:{path}", split)
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist; expected an .npz file of images")
    prefix = "" if split == "train" else "test_"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = {k: arrays[k] for k in (f"{prefix}images", f"{prefix}labels") if k in arrays}
            found = ", ".join(arrays.files)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not an .npz file of plain arrays") from error
    if f"{prefix}images" not in content:
        raise ValueError(f"{path} has no key '{prefix}images' for split {split!r}; found: {found}")
    return ArraySource(
        content[f"{prefix}images"], content.get(f"{prefix}labels"), title=f"{path} ({split})"
    )
