"""TFDS names against its own mock (which knows the schema of a data set, not its pixels)."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from poa_jax.data.folder import UnreadableImage
from poa_jax.data.sources import open_source
from poa_jax.data.tfds_source import TfdsSource


def test_fashion_mnist_gives_three_channels_and_labels_without_tensorflow():
    with tfds.testing.mock_data(num_examples=5):
        source = open_source("tfds:fashion_mnist", "test")
        image, label = source[4]
    assert len(source) == 5
    assert image.shape == (28, 28, 3)
    assert image.dtype == np.uint8
    assert 0 <= label < 10
    assert source.num_classes == len(source.class_names) == 10
    assert source.name(4) == "record 4 of fashion_mnist/3.0.1 test"
    assert "tensorflow" not in sys.modules


def test_colour_images_of_any_size_and_data_sets_without_labels_open():
    with tfds.testing.mock_data(num_examples=3):
        labelled, plain = open_source("tfds:imagenet2012"), open_source("tfds:voc")
        assert labelled[0][0].shape[2] == plain[0][0].shape[2] == 3
        assert labelled.num_classes == 1000
        assert plain[0][1] is None
    assert labelled.fingerprint != plain.fingerprint


def test_a_data_set_that_is_not_prepared_is_told_how(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'fashion_mnist' is not prepared") as caught:
        open_source("tfds:fashion_mnist")
    assert "`tfds build fashion_mnist --file_format=array_record`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_is_told_the_nearest():
    with pytest.raises(ValueError, match="unknown TFDS data set 'fashion_mnits'; did you mean"):
        open_source("tfds:fashion_mnits")


def test_a_data_set_without_pictures_is_refused():
    with (
        tfds.testing.mock_data(num_examples=3),
        pytest.raises(
            ValueError, match="'ag_news_subset' has no feature 'image' of 8-bit pictures"
        ),
    ):
        open_source("tfds:ag_news_subset")


def test_records_that_cannot_be_decoded_are_unreadable_images():
    class Records:
        def __getitem__(self, index):
            if index == 0:
                raise OSError("corrupt record")
            return {
                "image": [np.full((4, 5), 7, np.uint8), np.full((4, 5, 4), 8, np.uint8)][index - 1]
            }

        def __len__(self):
            return 3

    source = TfdsSource(Records(), "pictures/1.0.0 train", None)
    with pytest.raises(UnreadableImage, match=r"record 0 of pictures.*corrupt record"):
        source[0]
    assert source[1][0].shape == source[2][0].shape == (4, 5, 3)
    assert source[1][1] is None
