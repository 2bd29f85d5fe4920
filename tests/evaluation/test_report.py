import json
import sys

import numpy as np
import pytest
from PIL import Image

from poa_jax.evaluation import report


def row(width, depth, knn, **more):
    return {
        "name": f"w{width}-d{depth}",
        "width": width,
        "depths": [depth],
        "params": 1000 * width * depth,
        "macs": 10**6 * width * depth,
        "knn": knn,
        "best_k": 10,
        **more,
    }


PLAIN = {"checkpoint": {"step": 7}, "results": [row(16, 2, 0.5), row(32, 6, 0.8125)]}
FULL = {
    "checkpoint": {"step": 7},
    "pixels": 0.625,
    "results": [row(16, 2, 0.5, untrained=0.25), row(32, 6, 0.8125, untrained=0.375)],
}


def test_a_table_has_a_row_for_each_network():
    assert report.table(PLAIN).splitlines() == [
        "| network | parameters | MACs | k-NN | k |",
        "|---|---:|---:|---:|---:|",
        "| w16-d2 | 32,000 | 32,000,000 | 50.0 % | 10 |",
        "| w32-d6 | 192,000 | 192,000,000 | 81.2 % | 10 |",
    ]


def test_baselines_stand_beside_the_networks():
    lines = report.table(FULL).splitlines()
    assert lines[0].endswith("| k-NN, untrained | k-NN, raw pixels |")
    assert lines[1].count("---:") == 6
    assert lines[2].endswith("| 50.0 % | 10 | 25.0 % | 62.5 % |")
    assert lines[3].endswith("| 81.2 % | 10 | 37.5 % | 62.5 % |")


def test_the_files_hold_the_report(tmp_path):
    paths = report.write(FULL, tmp_path / "eval")
    assert [path.name for path in paths] == ["knn.json", "knn.md", "knn.png"]
    assert sorted(paths) == sorted((tmp_path / "eval").iterdir())
    assert json.loads(paths[0].read_text()) == FULL
    assert paths[1].read_text() == report.table(FULL) + "\n"


def colours(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {tuple(int(v) for v in colour) for colour in np.unique(pixels, axis=0)}


@pytest.mark.parametrize("found", [PLAIN, FULL], ids=["plain", "baselines"])
def test_the_picture_shows_a_line_for_each_width(tmp_path, found):
    assert report.draw(found, tmp_path / "knn.png")
    with Image.open(tmp_path / "knn.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600
        assert np.asarray(picture).std() > 5
    # Matplotlib's first two colours: one for each of the two widths.
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)} <= colours(tmp_path / "knn.png")


def gray_in_a_row(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return int((pixels == 0x80).all(axis=2).sum(axis=1).max())


def test_baselines_are_drawn_too(tmp_path):
    report.draw(PLAIN, tmp_path / "plain.png")
    report.draw(FULL, tmp_path / "full.png")
    assert gray_in_a_row(tmp_path / "full.png") > 200  # the dashed line of the raw pixels
    assert gray_in_a_row(tmp_path / "plain.png") < 50


def test_without_matplotlib_no_older_picture_stays(tmp_path, monkeypatch):
    (tmp_path / "knn.png").write_bytes(b"of another evaluation")
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    paths = report.write(PLAIN, tmp_path)
    assert [path.name for path in paths] == ["knn.json", "knn.md"]
    assert sorted(paths) == sorted(tmp_path.iterdir())


def test_a_failure_leaves_the_older_files_and_nothing_half_written(tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in report.write(PLAIN, tmp_path)}
    real = report.os.replace

    def fails(source, target):
        if str(target).endswith(".json"):
            raise OSError("no space left")
        real(source, target)

    monkeypatch.setattr(report.os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        report.write(FULL, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_number_that_is_none_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write({**PLAIN, "pixels": float("nan")}, tmp_path)
    assert not list(tmp_path.iterdir())
