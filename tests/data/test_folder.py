"""A folder of images: which files, which labels, every colour mode, broken files."""

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from poa_jax.data.folder import UnreadableImage, open_folder, read_image

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def put(path, pixels=PICTURE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def as_bytes(kind):
    out = io.BytesIO()
    Image.fromarray(PICTURE).save(out, kind)
    return out.getvalue()


def test_labels_come_from_sub_folders_in_alphabetical_order(tmp_path):
    for name in ("dog/b.png", "dog/deep/a.png", "cat/z.bmp", "ant/q.JPG"):
        put(tmp_path / name)
    source = open_folder(tmp_path)
    assert source.class_names == ("ant", "cat", "dog")
    assert source.num_classes == 3
    names = [source.name(i).removeprefix(str(tmp_path)) for i in range(len(source))]
    assert names == ["/ant/q.JPG", "/cat/z.bmp", "/dog/b.png", "/dog/deep/a.png"]
    assert [source[i][1] for i in range(4)] == [0, 1, 2, 2]
    np.testing.assert_array_equal(source[2][0], PICTURE)


def test_a_flat_folder_needs_no_labels_and_other_files_are_ignored(tmp_path):
    for name in ("b.png", "a.jpeg", "c.webp", "sub/d.png", ".hidden.png", ".cache/e.png"):
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    source = open_folder(tmp_path)
    assert len(source) == 4
    assert source.class_names is None
    assert source.num_classes is None
    assert [source[i][1] for i in range(4)] == [None] * 4


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_split_sub_folders_are_used_and_labels_mean_the_same_in_both(tmp_path, test_name):
    for name in ("train/ant/1.png", "train/bee/2.png", "train/cow/3.png", f"{test_name}/cow/4.png"):
        put(tmp_path / name)
    train, test = open_folder(tmp_path), open_folder(tmp_path, "test")
    assert len(train) == 3
    assert len(test) == 1
    assert train.class_names == test.class_names == ("ant", "bee", "cow")
    assert test[0][1] == 2


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    put(tmp_path / "store" / "a.png")
    root = tmp_path / "root"
    put(root / "x" / "b.png")
    (root / "y").symlink_to(tmp_path / "store")
    (root / "x" / "loop").symlink_to(root)
    source = open_folder(root)
    assert len(source) == 2
    assert source.class_names == ("x", "y")


def test_fingerprint_follows_names_and_sizes(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    before = open_folder(tmp_path).fingerprint
    assert open_folder(tmp_path).fingerprint == before
    put(tmp_path / "b.png", PICTURE[:10])
    other_size = open_folder(tmp_path).fingerprint
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert len({before, other_size, open_folder(tmp_path).fingerprint}) == 3


def test_missing_and_empty_folders_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image folder .*nothing does not exist"):
        open_folder(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"image folder .*file is not a folder"):
        open_folder(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"holds no image; looked for \.jpg, \.jpeg, \.png"):
        open_folder(tmp_path)
    put(tmp_path / "train" / "a.png")
    with pytest.raises(FileNotFoundError, match="has no 'test' split; expected sub-folders"):
        open_folder(tmp_path, "test")
    with pytest.raises(ValueError, match=r"unknown split of folder .*'tset'.*did you mean 'test'"):
        open_folder(tmp_path, "tset")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = PICTURE
    # How a camera stores it: the inverse of what a viewer does for each orientation.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    put(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)


def test_every_colour_mode_becomes_rgb(tmp_path):
    rgb = Image.fromarray(PICTURE)
    grey = np.asarray(rgb.convert("L"))
    three = np.repeat(grey[..., None], 3, axis=2)
    expected = {}

    def save(name, image, pixels, **options):
        image.save(tmp_path / name, **options)
        expected[name] = pixels

    save("grey.png", Image.fromarray(grey), three)
    save("alpha.png", Image.merge("RGBA", (*rgb.split(), Image.fromarray(grey))), PICTURE)
    save("grey_alpha.png", Image.merge("LA", (Image.fromarray(grey), Image.fromarray(grey))), three)
    save("bilevel.png", Image.fromarray(grey > 127), np.where(three > 127, 255, 0))
    save("sixteen.png", Image.fromarray(grey.astype(np.uint16) * 257), three)
    palette = rgb.quantize(16)
    save("palette.png", palette, np.asarray(palette.convert("RGB")))
    save("see_through.png", palette, np.asarray(palette.convert("RGB")), transparency=b"\x00\x80")
    cmyk = rgb.convert("CMYK")
    cmyk.save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    for name, pixels in expected.items():
        got = read_image(tmp_path / name)
        assert got.shape == (20, 30, 3), name
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, pixels, err_msg=name)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - PICTURE).mean() < 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is a text file, not a picture",
        as_bytes("JPEG")[:200],
        as_bytes("JPEG")[:-300],
        as_bytes("PNG")[:-400],
        as_bytes("PNG")[:60],
        as_bytes("PNG")[:100] + b"\xff" * 200 + as_bytes("PNG")[300:],
        as_bytes("WEBP")[:-200],
        as_bytes("BMP")[:-300],
    ],
    ids=[
        "empty",
        "text",
        "jpeg head only",
        "jpeg cut off",
        "png cut off",
        "png head only",
        "png with wrong bytes",
        "webp cut off",
        "bmp cut off",
    ],
)
def test_broken_files_raise_unreadable_image_with_path_and_reason(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match="cannot read image") as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert caught.value.reason


def test_files_that_vanish_after_the_scan_are_unreadable(tmp_path):
    put(tmp_path / "a.png")
    source = open_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        source[0]
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere")
    assert len(open_folder(tmp_path)) == 1  # a dangling link is found and fails when it is read


def test_opening_looks_at_every_file_once_and_opens_none(tmp_path, monkeypatch):
    """One listing a folder and one stat a file: 10 000 files open in a fraction of a second."""
    for folder in ("ant", "bee", "cow"):
        (tmp_path / folder).mkdir()
        for i in range(40):
            (tmp_path / folder / f"{i}.jpg").write_bytes(b"x" * i)
    calls = {"scandir": 0, "stat": 0}

    def counted(name, real):
        def call(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file was opened"))
    source = open_folder(tmp_path)
    assert source.fingerprint
    monkeypatch.undo()
    assert len(source) == 120
    assert calls["scandir"] == 4
    assert calls["stat"] < 12  # of the folder itself; those of files go through the listing


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 30},
        {"quality": 95, "subsampling": 0},
        {"progressive": True, "quality": 80},
        {"quality": 75, "subsampling": 1, "optimize": True},
    ],
)
def test_jpegs_have_pillows_pixels(tmp_path, options):
    smooth = cv2.resize(PICTURE, (331, 217), interpolation=cv2.INTER_CUBIC)
    put(tmp_path / "a.jpg", smooth, **options)
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), expected)
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "padded.jpg").write_bytes(whole + b"\0" * 500)
    np.testing.assert_array_equal(read_image(tmp_path / "padded.jpg"), expected)
    for share in (0.3, 0.6, 0.95, 0.999):
        (tmp_path / "short.jpg").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UnreadableImage, match=r"short\.jpg: "):
            read_image(tmp_path / "short.jpg")
