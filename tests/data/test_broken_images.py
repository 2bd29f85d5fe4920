"""Everything that can be wrong with a file, in one run: named once, counted, replaced alike."""

import logging
import os
import stat
import struct
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from poa_jax.data import folder as folders
from poa_jax.data.crops import CropRecipe
from poa_jax.data.folder import UnreadableImage, open_folder, read_image
from poa_jax.data.masking import MaskRecipe
from poa_jax.data.pipeline import TrainPipeline

GOOD = 40


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)


def bomb(path, width=30_000, height=30_000):
    """A PNG of 900 million pixels in a few bytes: its header and nothing else."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data))


@contextmanager
def as_nobody():
    """Root may read everything, so be someone else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def broken(tmp_path):
    """A folder of good images and one of each kind of trouble; returns it and the bad names."""
    root = tmp_path / "images"
    root.mkdir()
    for i in range(GOOD):
        Image.fromarray(picture(i)).save(root / f"good{i:02}.jpg", quality=95)
    whole = (root / "good00.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "zero.jpg").write_bytes(b"")
    (root / "text.png").write_text("I am a letter")
    bomb(root / "bomb.png")
    Image.fromarray(picture(1)).save(root / "deleted.png")
    Image.fromarray(picture(2)).save(root / "wrong_extension.jpg", format="png")
    return root, {"truncated.jpg", "zero.jpg", "text.png", "bomb.png", "deleted.png"}


def pipeline(source, **options):
    options = {"batch_size": 8, "seed": 3, "max_bad_fraction": 0.5, "workers": 0} | options
    return TrainPipeline(source, CropRecipe(16, 8, 1), MaskRecipe((2, 2), group=2), **options)


def test_a_run_goes_on_names_each_file_once_and_counts_it(broken, caplog):
    root, bad_names = broken
    source = open_folder(root)
    assert len(source) == GOOD + 6
    (root / "deleted.png").unlink()  # after the run began
    with caplog.at_level(logging.WARNING, logger="absl"):
        steps = list(pipeline(source).iterate(0, 12))  # two epochs
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == len(bad_names)
    for name in bad_names:
        assert sum(f"skipped unreadable image {root / name}: " in line for line in named) == 1
    bad = [index for _, _, info in steps for index, _ in info.bad]
    assert {os.path.basename(source.name(i)) for i in bad} == bad_names
    assert len(bad) >= 2 * len(bad_names)
    assert sum(info.reads for _, _, info in steps) == 12 * 8 + len(bad)


def test_stand_ins_are_the_same_for_any_workers_and_processes(broken):
    root, _ = broken
    source = open_folder(root)
    (root / "deleted.png").unlink()
    whole = [batch for _, batch, _ in pipeline(source).iterate(0, 6)]
    for workers in (1, 2):
        halves = [
            [b for _, b, _ in pipeline(
                source, workers=workers, process_index=i, process_count=2
            ).iterate(0, 6)]
            for i in range(2)
        ]  # fmt: skip
        for step, batch in enumerate(whole):
            for name in batch:
                joined = np.concatenate([half[step][name] for half in halves])
                np.testing.assert_array_equal(joined, batch[name])


def test_more_than_the_allowed_share_stops_with_the_list(broken):
    root, bad_names = broken
    source = open_folder(root)
    (root / "deleted.png").unlink()
    with pytest.raises(
        ValueError, match=r"more than the share of 0.05 that data.max_bad"
    ) as caught:
        list(pipeline(source, max_bad_fraction=0.05).iterate(0, 100))
    assert sum(name in str(caught.value) for name in bad_names) == len(bad_names)


def test_an_image_behind_a_wrong_extension_is_read_all_the_same(broken):
    np.testing.assert_array_equal(read_image(broken[0] / "wrong_extension.jpg"), picture(2))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    bomb(tmp_path / "huge.png")
    with pytest.raises(UnreadableImage, match="pixels"):
        read_image(tmp_path / "huge.png")
    monkeypatch.setattr(folders, "MAX_PIXELS", 99)
    bomb(tmp_path / "small.png", 10, 10)
    with pytest.raises(UnreadableImage, match=r"10 × 10 pixels are more than the 99 that an image"):
        read_image(tmp_path / "small.png")


def test_permission_denied_is_a_reason_like_another(tmp_path):
    path = tmp_path / "secret.png"
    Image.fromarray(picture(0)).save(path)
    path.chmod(0)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(stat.S_IMODE(parent.stat().st_mode) | 0o055)
    with as_nobody(), pytest.raises(UnreadableImage, match=r"secret\.png: Permission denied"):
        read_image(path)
