"""`poa-jax data …` as a user runs it: what it writes and prints, one sentence for a mistake."""

import hashlib

import cv2
import numpy as np
import pytest
from PIL import Image

from poa_jax import cli
from poa_jax.data import preview
from poa_jax.data.prepare import encoded
from poa_jax.data.sources import open_source

CONFIG = """from poa_jax.config import default


def get_config():
    c = default()
    c.data.source = "folder:{folder}"
    c.model.image_size = 32
    c.model.patch_size = 8
    c.data.local_size = 16
    c.data.local_crops = 3
    c.train.batch_size = 16
    c.masks.group = 4
    return c
"""


def picture(seed):
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (40 + seed, 30), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def folder(tmp_path):
    """12 images of two classes in every form that there is, and a broken one."""
    root = tmp_path / "Pets 2"
    for i in range(12):
        path = root / ("cat" if i % 3 else "dog") / f"{i:02}.{('jpg', 'png', 'webp', 'bmp')[i % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture(i))
        if i == 5:
            image = image.convert("RGBA")
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 4 else 1
        image.save(path, **({"exif": exif} if path.suffix == ".jpg" else {}))
    Image.fromarray(picture(8)).convert("CMYK").save(root / "cat" / "08.jpg")
    whole = (root / "cat" / "01.png").read_bytes()
    (root / "cat" / "13.png").write_bytes(whole[: len(whole) // 2])
    return root


def run(*arguments):
    assert cli.main(["data", *map(str, arguments)]) == 0


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", *map(str, arguments)])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    *skipped, sentence = err.splitlines()
    assert all(line.startswith("skipped unreadable image ") for line in skipped), err
    return sentence


def test_check_reports_bad_files_sizes_and_classes(folder, capsys):
    run("check", folder)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "13 images, 12 readable, 1 not"
    assert lines[1].startswith("sizes (width×height): 30×30 to 51×44, median ")
    assert "12 different" in lines[1]
    assert lines[2:5] == ["classes: 2, with 4 to 8 readable images each", "  cat  8", "  dog  4"]
    assert lines[5] == "unreadable: 1 (7.69%)"
    assert lines[6].startswith(f"  {folder / 'cat' / '13.png'}: ")
    assert len(lines) == 7


def test_check_shortens_long_lists_unless_asked(tmp_path, capsys):
    for i in range(25):
        (tmp_path / f"{i}.png").write_bytes(b"")
    run("check", tmp_path)
    out = capsys.readouterr().out
    assert "25 images, 0 readable, 25 not" in out
    assert "classes: none" in out
    assert out.splitlines()[-1] == "  and 5 more"
    run("check", tmp_path, "--all", "--workers", "0")
    assert len(capsys.readouterr().out.splitlines()) == 3 + 25


def test_prepare_keeps_every_pixel_and_label_in_order(folder, tmp_path, capsys):
    out = tmp_path / "made" / "pets"
    run("prepare", folder, "--out", out, "--max-bad-fraction", "0.2")
    printed = capsys.readouterr().out
    assert printed == (
        f"{out}: 12 train images; use it with --config.data.source=array_record:{out}\n"
    )
    before, after = open_source(f"folder:{folder}"), open_source(f"array_record:{out}")
    assert len(after) == 12
    assert after.class_names == before.class_names
    good = [i for i in range(13) if not before.name(i).endswith("13.png")]
    for i, index in enumerate(good):
        np.testing.assert_array_equal(after[i][0], before[index][0])
        assert after[i][1] == before[index][1]
    assert after.name(0) == "record 0 of pets_2/1.0.0 train"
    assert [p.name for p in out.parent.iterdir()] == ["pets"]  # no half-written folder


def test_prepare_copies_plain_files_and_rewrites_the_others(folder):
    plain = folder / "dog" / "00.jpg"
    assert encoded(plain) == plain.read_bytes()
    for name in ("dog/09.png", "cat/01.png"):
        assert encoded(folder / name) == (folder / name).read_bytes()
    for name in ("cat/04.jpg", "cat/05.png", "cat/08.jpg", "cat/10.webp", "cat/07.bmp"):
        assert encoded(folder / name)[:4] == b"\x89PNG", name


def test_prepare_writes_both_splits_and_images_without_labels(tmp_path, capsys):
    for name in ("train/a.png", "train/b.png", "val/c.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(ord(path.stem))[..., 0]).save(path)
    run("prepare", tmp_path / "in", "--out", tmp_path / "out", "--name", "birds")
    assert "2 train, 1 test images" in capsys.readouterr().out
    test = open_source(f"array_record:{tmp_path / 'out'}", "test")
    assert test.num_classes is None
    np.testing.assert_array_equal(test[0][0][..., 1], picture(ord("c"))[..., 0])


def test_prepare_leaves_nothing_behind_when_too_much_is_broken(folder, tmp_path, capsys):
    out = tmp_path / "made" / "pets"
    sentence = refused(capsys, "prepare", folder, "--out", out)
    assert "1 of 13 images read so far could not be decoded" in sentence
    assert "13.png" in sentence
    assert list((tmp_path / "made").iterdir()) == []


def test_wrong_arguments_are_one_sentence(folder, tmp_path, capsys):
    nothing = tmp_path / "nothing"
    assert f"image folder {nothing} does not exist" in refused(capsys, "check", nothing)
    assert "unknown split of folder" in refused(capsys, "check", folder, "--split", "tset")
    assert "exists already" in refused(capsys, "prepare", folder, "--out", folder)
    assert "--out" in refused(capsys, "prepare", folder)
    bad_name = refused(capsys, "prepare", folder, "--out", nothing, "--name", "My Pets")
    assert "'My Pets' must be lower-case letters" in bad_name
    share = refused(capsys, "prepare", folder, "--out", nothing, "--max-bad-fraction", "2")
    assert "from 0 to 1, not 2.0" in share
    assert "--workers must be 0 or more" in refused(capsys, "check", folder, "--workers", "-1")
    assert "unexpected argument '--config.data.flip=1'" in refused(
        capsys, "check", folder, "--config.data.flip=1"
    )
    assert not nothing.exists()


@pytest.fixture
def config(folder, tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(folder=folder))
    return path


@pytest.mark.parametrize("placement", ["host", "split"])
def test_preview_draws_the_crops_and_hides_the_masked_patches(config, tmp_path, capsys, placement):
    out = tmp_path / "sheets"
    run(
        "preview", "--config", config, "--out", out, "--images", "10", "--step", "3",
        "--config.data.max_bad_fraction=1", f"--config.data.placement={placement}",
    )  # fmt: skip
    paths = [out / "preview-00.png", out / "preview-01.png"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in paths]
    first, second = (np.asarray(Image.open(path)) for path in paths)
    gap = preview.GAP
    line, width = 32 + 2 * gap, 4 * (32 + gap) + 3 * (16 + gap) + gap
    assert first.shape == (8 * line, width, 3)
    assert second.shape == (2 * line, width, 3)
    hidden = 0
    for sheet in (first, second):
        for top in range(gap, len(sheet), line):
            crop, masked = (sheet[top : top + 32, left : left + 32] for left in (gap, 2 * gap + 32))
            same = (crop == masked).all(axis=2).reshape(4, 8, 4, 8).all(axis=(1, 3))
            grey = (masked == 96).all(axis=2).reshape(4, 8, 4, 8).all(axis=(1, 3))
            assert (same | grey).all()
            hidden += (grey & ~same).sum()
    assert hidden > 0


def test_preview_shows_what_the_pipeline_makes(config, tmp_path):
    from poa_jax import config as configs
    from poa_jax.data.pipeline import TrainPipeline

    c = configs.override(configs.load(config), ["data.max_bad_fraction=1"])
    source = open_source(c.data.source)
    page = preview.sheets(c, source, 2, 3)[0]
    batch = TrainPipeline.from_config(c, source).batch_at(2)[0]
    gap = preview.GAP
    np.testing.assert_array_equal(page[gap : gap + 32, gap : gap + 32], batch["global_crops"][0, 0])
    left = 4 * (32 + gap) + gap
    local = page[gap : gap + 16, left : left + 16]
    np.testing.assert_array_equal(local, batch["local_crops"][0, 0])


def test_preview_mistakes_are_one_sentence(config, tmp_path, capsys):
    missing = refused(capsys, "preview", "--config", tmp_path / "none.py")
    assert "no config file at" in missing
    many = refused(capsys, "preview", "--config", config, "--images", "17")
    assert "expected 1 to 16 images" in many
    assert "--step must be 0 or more" in refused(capsys, "preview", "--config", config, "--step=-1")
    wrong = refused(capsys, "preview", "--config", config, "--config.data.placment=host")
    assert "did you mean" in wrong
    assert not (tmp_path / "preview").exists()


def test_prepared_files_do_not_change_between_two_runs(folder, tmp_path):
    digests = []
    for name in ("one", "two"):
        run("prepare", folder, "--out", tmp_path / name, "--max-bad-fraction", "1")
        files = sorted((tmp_path / name).glob("*array_record*"))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert digests[0] == digests[1]
