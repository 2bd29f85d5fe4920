"""A folder of image files as a source; class sub-folders are optional.

Splits: if PATH holds a sub-folder `train`, the training images are below it and the test images
below `test`, `val` or `validation`; otherwise all of PATH is the training split. Labels: if every
image lies in a sub-folder, the first-level sub-folders are the classes, in alphabetical order.
"""

import hashlib
import io
import os
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from poa_jax import errors

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TEST_FOLDERS = ("test", "val", "validation")
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_TAIL = 64  # bytes at the end of a JPEG that may hold its end marker
MAX_PIXELS = 89_478_485  # a decompression bomb beyond, as Pillow has it: 256 MiB in three channels


class UnreadableImage(Exception):
    """An image file that cannot be decoded: `.path` and `.reason`."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"cannot read image {path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):  # so that it can come out of a worker process
        return type(self), (self.path, self.reason)


class FolderSource:
    """The image files below `root`, sorted by relative path.

    `files` are (relative path with forward slashes, size in bytes) pairs; `classes` the label
    names in order, or None for images without labels.
    """

    def __init__(self, root: Path, files: list[tuple[str, int]], classes: tuple[str, ...] | None):
        self._root, self._files = root, files
        self.class_names = classes
        self._label = {name: i for i, name in enumerate(classes or ())}

    @property
    def num_classes(self) -> int | None:
        """Number of class sub-folders, None without them."""
        return len(self.class_names) if self.class_names else None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the sorted relative paths and file sizes (not of the pixels)."""
        digest = hashlib.blake2b(digest_size=8)
        for path, size in self._files:
            digest.update(f"{path}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | None]:
        return read_image(self._root / self._files[index][0]), self.label(index)

    def label(self, index: int) -> int | None:
        """Return the label of file `index` without reading it."""
        return self._label.get(self._files[index][0].split("/", 1)[0])

    def name(self, index: int) -> str:
        """Return the path of file `index`."""
        return str(self._root / self._files[index][0])


def open_folder(path: Path, split: str = "train") -> FolderSource:
    """Find the images of one split ("train", or "test"/"val") of a folder.

    Raises FileNotFoundError if the folder or the split is missing or holds no image,
    ValueError for another split name.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise FileNotFoundError(f"image folder {path} {what}")
    if split not in ("train", *TEST_FOLDERS):
        raise ValueError(errors.unknown(f"split of folder {path}", split, ("train", *TEST_FOLDERS)))
    root = _split_root(path, split)
    files = _image_files(root)
    if not files:
        raise FileNotFoundError(f"folder {root} holds no image; looked for {', '.join(SUFFIXES)}")
    if not all("/" in name for name, _ in files):
        return FolderSource(root, files, None)
    # Labels must mean the same in both splits, so the classes of "train" count for "test" too.
    names = {name.split("/", 1)[0] for name, _ in files}
    if root != path and split != "train":
        names |= {name.split("/", 1)[0] for name, _ in _image_files(path / "train") if "/" in name}
    return FolderSource(root, files, tuple(sorted(names)))


def _split_root(path: Path, split: str) -> Path:
    has_train = (path / "train").is_dir()
    if split == "train":
        return path / "train" if has_train else path
    first = dict.fromkeys((split, *TEST_FOLDERS))  # the very name asked for goes before the others
    for name in first:
        if has_train and (path / name).is_dir():
            return path / name
    raise FileNotFoundError(
        f"folder {path} has no {split!r} split; expected sub-folders 'train' and 'test' or 'val'"
    )


def _image_files(root: Path) -> list[tuple[str, int]]:
    """Return sorted (relative path, size) of all image files below `root`, hidden ones left out.

    One directory listing a folder and one `stat` a file, so that large folders open in seconds.
    """
    found = []
    seen = set()  # of folders: a link that leads back up must not loop for ever
    folders = [("", os.fspath(root))]
    while folders:
        inside, folder = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append((f"{inside}{entry.name}/", entry.path))
                elif entry.name.lower().endswith(SUFFIXES):
                    found.append((inside + entry.name, _size(entry)))
    return sorted(found)


def _size(entry: os.DirEntry) -> int:
    """Return bytes; a dangling link counts as empty: it fails, visibly, when it is read."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def read_image(path: Path) -> np.ndarray:
    """Decode one file to uint8 (H, W, 3); see `decode_image`. Raises `UnreadableImage`."""
    return decode_image(path, str(path))


def decode_image(file: Path | bytes, name: str) -> np.ndarray:
    """Decode a file or its bytes to uint8 (H, W, 3), upright (EXIF orientation applied).

    The content decides the format, not the suffix. Grey, palette and CMYK images are converted,
    alpha is dropped, 16-bit grey is cut to 8 bits. Raises `UnreadableImage`, for more than
    `MAX_PIXELS` too; `name` is what it calls the image.
    """
    try:
        content = file if isinstance(file, bytes) else file.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} × {image.height} pixels are more than the {MAX_PIXELS:,} "
                    "that an image may have"
                )
            if _is_plain_jpeg(image, content):
                return cv2.imdecode(np.frombuffer(content, np.uint8), _AS_STORED)
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, …
        raise UnreadableImage(name, _reason(error)) from error


def _is_plain_jpeg(image: Image.Image, content: bytes) -> bool:
    """Whether OpenCV gives the same pixels in less time.

    It passes a JPEG that is cut off as a whole one, so the end marker must be there.
    """
    return (
        image.format == "JPEG"
        and image.mode == "RGB"
        and image.getexif().get(ORIENTATION, 1) == 1
        and content.rfind(b"\xff\xd9", len(content) - _TAIL) >= 0
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert() would clip 16-bit values at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert("RGB")
