"""Named sources: the embedded set, idx files, arrays; and what a wrong name or file is told."""

import gzip
import hashlib
import importlib.resources
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest

from poa_jax.data import sources
from poa_jax.data.sources import ArraySource, open_source

REPO = Path(__file__).resolve().parents[2]
DEBIAN = Path(sources.FASHION_MNIST_FOLDER)
EMBEDDED_SHA256 = "891e2a73b2f6aae7241e2cc88e592e6e9d030167e2d1bb8ecbcb4da052acbaab"


def asset() -> bytes:
    packed = importlib.resources.files("poa_jax.data").joinpath("assets", sources.EMBEDDED_FILE)
    return packed.read_bytes()


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("t10k", 20)):
        arrays[split] = (
            rng.integers(0, 256, (count, 28, 28), np.uint8),
            (np.arange(count) // 2 % 10),
        )
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", arrays[split][0])
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", arrays[split][1].astype(np.uint8))
    return tmp_path, arrays


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import make_embedded_dataset

    yield make_embedded_dataset
    del sys.modules["make_embedded_dataset"]


@pytest.mark.parametrize(("split", "per_class"), [("train", 1200), ("test", 200)])
def test_embedded_set_is_balanced(split, per_class):
    source = open_source("embedded", split)
    assert len(source) == 10 * per_class
    labels = [source[i][1] for i in range(len(source))]
    np.testing.assert_array_equal(np.bincount(labels), [per_class] * 10)
    image, label = source[7]
    assert image.shape == (28, 28, 3)
    assert image.dtype == np.uint8
    assert isinstance(label, int)
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    assert source.num_classes == len(source.class_names) == 10
    assert source.name(7) == f"image 7 of embedded {split} set"


def test_embedded_file_is_the_one_that_was_checked_and_small():
    content = asset()
    assert hashlib.sha256(content).hexdigest() == EMBEDDED_SHA256
    assert len(content) < 6_000_000
    assert open_source("embedded").fingerprint == "333ee0ac7b7a0f33"


def test_embedded_file_names_its_licence_and_credit():
    text = importlib.resources.files("poa_jax.data").joinpath("assets", "README").read_text()
    assert "MIT License" in text
    assert "Copyright (c) 2017 Zalando SE" in text
    assert "dataset-fashion-mnist" in text


def test_script_is_deterministic_and_keeps_the_first_of_each_class(idx_folder, maker, monkeypatch):
    folder, arrays = idx_folder
    monkeypatch.setattr(maker, "PER_CLASS", {"train": 2, "test": 1})
    content = maker.embedded_bytes(folder)
    assert content == maker.embedded_bytes(folder)
    out = folder / "small.xz"
    maker.main([str(folder), str(out)])
    assert out.read_bytes() == content
    (folder / "small.npz").write_bytes(lzma.decompress(content))
    with np.load(folder / "small.npz") as stored:
        np.testing.assert_array_equal(stored["train_images"], arrays["train"][0][:20])
        np.testing.assert_array_equal(stored["test_images"], arrays["t10k"][0][::2])
        np.testing.assert_array_equal(stored["test_labels"], np.arange(10))


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_embedded_images_are_the_first_of_each_class_of_the_debian_package():
    for split, prefix, per_class in (("train", "train", 1200), ("test", "t10k", 200)):
        whole, part = open_source("fashion-mnist", split), open_source("embedded", split)
        labels = sources.read_idx(DEBIAN / f"{prefix}-labels-idx1-ubyte.gz")
        first = np.sort(
            np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)])
        )
        assert len(first) == len(part)
        for mine, theirs in enumerate(first):
            assert part[mine][1] == whole[theirs][1]
            np.testing.assert_array_equal(part[mine][0], whole[theirs][0])


def test_idx_folder_gives_images_and_labels_of_each_split(idx_folder):
    folder, arrays = idx_folder
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = open_source(f"fashion-mnist:{folder}", split)
        assert len(source) == len(arrays[prefix][0])
        np.testing.assert_array_equal(source[3][0][..., 1], arrays[prefix][0][3])
        assert source[3][1] == arrays[prefix][1][3]


def test_broken_idx_files_are_named(idx_folder):
    folder, _ = idx_folder
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"train-images.* is not a whole gzip file"):
        open_source(f"fashion-mnist:{folder}")
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(ValueError, match=r"train-images.* is not an idx file of bytes"):
        open_source(f"fashion-mnist:{folder}")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-images.* is missing"):
        open_source(f"fashion-mnist:{folder}")


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 3)])
def test_array_source_gives_three_channels(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    source = ArraySource(images, np.array([0, 4, 1, 1, 2]))
    assert len(source) == 5
    assert source.num_classes == 5
    image, label = source[1]
    assert image.shape == (6, 7, 3)
    assert label == 4
    np.testing.assert_array_equal(image, np.broadcast_to(images.reshape(5, 6, 7, -1)[1], (6, 7, 3)))
    assert ArraySource(images)[0][1] is None
    assert ArraySource(images).num_classes is None


def test_fingerprint_follows_pixels_labels_and_order():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
    labels = np.arange(6) % 3
    changed = images.copy()
    changed[3, 2, 1] ^= 1
    prints = {
        ArraySource(images, labels).fingerprint,
        ArraySource(images).fingerprint,
        ArraySource(changed, labels).fingerprint,
        ArraySource(images[::-1], labels[::-1]).fingerprint,
        ArraySource(images, labels[::-1]).fingerprint,
        ArraySource(images.reshape(6, 2, 8), labels).fingerprint,
    }
    assert len(prints) == 6
    assert ArraySource(images.copy(), labels.astype(np.int32)).fingerprint in prints


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((3, 4, 4), np.float32), None, "images are float32 of shape"),
        (np.zeros((3, 4, 4, 4), np.uint8), None, r"expected uint8 of shape \(n, H, W\)"),
        (np.zeros((0, 4, 4), np.uint8), None, "there are no images"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(2, int), "expected 3 integers"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros(3), "labels are float64"),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, -1, 1]), "labels must be 0 or more"),
    ],
)
def test_wrong_arrays_are_refused_in_a_sentence(images, labels, words):
    with pytest.raises(ValueError, match=words):
        ArraySource(images, labels)


def test_npz_file_gives_its_splits(tmp_path):
    path = tmp_path / "pictures.npz"
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    np.savez(path, images=images, labels=np.arange(6), test_images=images[:2, ..., 0])
    train = open_source(f"arrays:{path}")
    np.testing.assert_array_equal(train[5][0], images[5])
    assert train[5][1] == 5
    test = open_source(f"arrays:{path}", "test")
    assert (len(test), test[1][1]) == (2, None)
    np.savez(path, pictures=images)
    with pytest.raises(ValueError, match=r"no key 'images' for split 'train'; found: pictures"):
        open_source(f"arrays:{path}")
    np.savez(path, images=images)
    with pytest.raises(ValueError, match=r"no key 'test_images' for split 'test'"):
        open_source(f"arrays:{path}", "test")


@pytest.mark.parametrize("kind", ["text", "empty", "npy", "pickle"])
def test_files_that_are_no_npz_are_refused(tmp_path, kind):
    path = tmp_path / "pictures.npz"
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "pickle":
        np.savez(path, images=np.array([{}], dtype=object))
    else:
        path.write_bytes(b"hello" if kind == "text" else b"")
    with pytest.raises(ValueError, match=r"pictures\.npz is not an \.npz file of plain arrays"):
        open_source(f"arrays:{path}")


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("embeded", ValueError, "unknown data source 'embeded', .*did you mean 'embedded'"),
        ("Folder:x", ValueError, "did you mean 'folder'"),
        ("zzz", ValueError, r"expected embedded, fashion-mnist\[:FOLDER\], tfds:NAME, folder:PATH"),
        ("embedded:x", ValueError, "'embedded' takes nothing after it"),
        ("folder", ValueError, "not complete, expected 'folder:PATH'"),
        ("arrays:", ValueError, r"not complete, expected 'arrays:FILE\.npz'"),
        ("arrays:/nowhere/x.npz", FileNotFoundError, r"/nowhere/x\.npz does not exist"),
        ("folder:/nowhere", FileNotFoundError, "image folder /nowhere does not exist"),
        ("fashion-mnist:/nowhere", FileNotFoundError, "folder /nowhere does not exist; install"),
    ],
)
def test_a_wrong_source_is_told_what_was_expected(spec, error, words):
    with pytest.raises(error, match=words):
        open_source(spec)


def test_a_bare_path_is_told_how_to_write_it(tmp_path):
    with pytest.raises(ValueError, match=f"for this folder write 'folder:{tmp_path}'"):
        open_source(str(tmp_path))


def test_an_unknown_split_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"unknown split of embedded 'tset'.*did you mean 'test'"):
        open_source("embedded", "tset")
