import numpy as np
import pytest
import tiny_run
from PIL import Image

from poa_jax.data.folder import UnreadableImage
from poa_jax.evaluation import datasets


def write_folder(root, *places):
    for i, place in enumerate(places):
        (root / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(root / place / f"{i}.png")
    return f"folder:{root}"


def test_the_training_split_is_the_bank_and_the_test_split_is_asked(tmp_path):
    spec = tiny_run.write_images(tmp_path / "set.npz", train=9, test=4)
    bank, queries, split = datasets.open_bank_and_queries(spec)
    assert (len(bank), len(queries), split) == (9, 4, "test")


def test_a_folder_may_call_its_test_split_val(tmp_path):
    spec = write_folder(tmp_path, "train/a", "train/b", "val/b")
    _, queries, _ = datasets.open_bank_and_queries(spec)
    assert queries[0][1] == 1
    _, queries, split = datasets.open_bank_and_queries(spec, "val")
    assert (len(queries), split) == (1, "val")


def test_a_folder_without_a_test_split_is_told_what_to_do(tmp_path):
    spec = write_folder(tmp_path, "cats", "dogs")
    with pytest.raises(FileNotFoundError, match="has no 'test' split") as error:
        datasets.open_bank_and_queries(spec)
    assert "move a share of each class there" in str(error.value)
    assert "--config.data.source=SOURCE" in str(error.value)


def test_images_without_labels_are_told(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="needs labels, and the train images have none"):
        datasets.open_bank_and_queries(f"arrays:{tmp_path / 'x.npz'}")
    with pytest.raises(ValueError, match="needs labels"):
        next(datasets.labelled_batches(tiny_run.images(4, labelled=False), 16, 16, 4))


def test_a_class_that_only_one_split_has_is_told(tmp_path):
    spec = write_folder(tmp_path / "more", "train/b", "test/a", "test/b")
    with pytest.raises(ValueError, match="only 'test' has 'a'; expected the same classes in both"):
        datasets.open_bank_and_queries(spec)


class Records:
    """As much of a TFDS source as is looked at; −1 means that there is no label."""

    num_classes, class_names = 2, ("cat", "dog")

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if self.labels[index] is None:
            raise UnreadableImage(f"record {index}", "broken")
        return np.zeros((8, 8, 3), np.uint8), self.labels[index]


def splits(monkeypatch, **found):
    def open_source(spec, split):
        if split not in found:
            raise ValueError(f"unknown split {split!r} of {spec}")
        return found[split]

    monkeypatch.setattr(datasets, "open_source", open_source)


@pytest.mark.parametrize(
    ("test", "chosen"),
    [([1, 0], "test"), ([-1, -1], "validation"), ([None, -1], "validation"), (None, "validation")],
)
def test_validation_stands_in_for_a_test_split_without_labels(monkeypatch, test, chosen):
    found = {"train": Records([0, 1]), "validation": Records([1, 0])}
    splits(monkeypatch, **found, **({} if test is None else {"test": Records(test)}))
    assert datasets.open_bank_and_queries("tfds:x")[2] == chosen


def test_no_split_to_classify_names_the_first_that_was_looked_for(monkeypatch):
    splits(monkeypatch, train=Records([0, 1]))
    with pytest.raises(ValueError, match="unknown split 'test'"):
        datasets.open_bank_and_queries("tfds:x")


def test_a_split_without_labels_that_is_asked_for_fails_when_it_is_read(monkeypatch):
    splits(monkeypatch, train=Records([0, 1]), test=Records([-1, -1]))
    _, queries, _ = datasets.open_bank_and_queries("tfds:x")
    with pytest.raises(ValueError, match="some of these images have none"):
        list(datasets.labelled_batches(queries, 8, 8, 2))
