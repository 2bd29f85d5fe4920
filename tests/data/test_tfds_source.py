"""TFDS: sets prepared here as ArrayRecord, and its own mock (a set's schema, random pixels)."""

import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.features import image_feature

from poa_jax.data.crops import CropRecipe
from poa_jax.data.folder import UnreadableImage
from poa_jax.data.masking import MaskRecipe
from poa_jax.data.pipeline import TrainPipeline
from poa_jax.data.sources import open_source
from poa_jax.data.tfds_source import TfdsSource


@pytest.fixture(autouse=True)
def mock_without_tensorflow(monkeypatch):
    """The mock would ask TensorFlow to encode its random pixels."""

    def encode(self, pixels):
        out = io.BytesIO()
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image.save(out, "png" if self.encoding_format == "png" else "jpeg")
        return out.getvalue()

    monkeypatch.setattr(image_feature._ImageEncoder, "_encode_image", encode)


def picture(i):
    return np.random.default_rng(i).integers(0, 256, (20, 30 + i, 3), np.uint8)


def as_png(i):
    out = io.BytesIO()
    Image.fromarray(picture(i)).save(out, "png")
    return out.getvalue()


class Birds(tfds.core.GeneratorBasedBuilder):
    """Five train and two test pictures of two classes; train 3 is cut off."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["crow", "wren"])
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            content = as_png(i)[:-200] if i == 3 else as_png(i)
            yield i, {"image": io.BytesIO(content), "label": i % 2}


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """The folder of the prepared set."""
    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("tfds")
    builder = Birds(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_a_prepared_array_record_set_gives_its_pixels_and_labels_at_random(birds):
    source = open_source(f"array_record:{birds}")
    assert len(source) == 5
    assert source.class_names == ("crow", "wren")
    for i in (4, 0, 2, 1):
        image, label = source[i]
        np.testing.assert_array_equal(image, picture(i))
        assert label == i % 2
    assert source.name(4) == "record 4 of birds/1.2.0 train"
    assert len(open_source(f"array_record:{birds}", "test")) == 2
    assert source.fingerprint != open_source(f"array_record:{birds}", "test").fingerprint


def test_a_record_that_is_cut_off_is_unreadable_not_half_an_image(birds):
    with pytest.raises(UnreadableImage, match=r"cannot read image record 3 of birds/1\.2\.0 train"):
        open_source(f"array_record:{birds}")[3]


def test_a_prepared_set_trains_and_can_be_sent_to_other_processes(birds):
    source = open_source(f"array_record:{birds}")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2][0], source[2][0])
    crops, masks = CropRecipe(16, 8, 1), MaskRecipe((2, 2), group=2)
    p = TrainPipeline(source, crops, masks, batch_size=4, seed=0, workers=2, max_bad_fraction=0.5)
    infos = [info for _, _, info in p.iterate(0, 5)]
    assert sum(info.num_bad for info in infos) >= 3


def test_a_name_of_tfds_finds_what_was_prepared(birds, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(birds.parents[1]))
    monkeypatch.setattr(tfds, "list_builders", lambda **_: ["birds"])
    np.testing.assert_array_equal(open_source("tfds:birds")[4][0], picture(4))
    with pytest.raises(ValueError, match=r"unknown split .* 'tset', expected one of train, test"):
        open_source("tfds:birds", "tset")


def test_a_set_stored_as_tfrecord_is_told_the_command_that_converts_it(birds, tmp_path):
    folder = tmp_path / "birds" / "1.2.0"
    shutil.copytree(birds, folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="is stored as tfrecord, which has no random") as caught:
        open_source(f"array_record:{folder}")
    command = f"`tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    assert command in str(caught.value)


def test_a_folder_that_nobody_prepared_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no dataset_info.json, expected a folder"):
        open_source(f"array_record:{tmp_path}")


def test_reading_never_imports_tensorflow_or_jax_backends(birds):
    code = (
        "import sys; from poa_jax.data.sources import open_source; "
        f"source = open_source('array_record:{birds}'); source[4]; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_imagenet_that_is_not_there_is_one_sentence_that_says_how_to_prepare_it(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'imagenet2012' is not prepared on this") as caught:
        open_source("tfds:imagenet2012")
    assert "`tfds build imagenet2012 --file_format=array_record`" in str(caught.value)
    assert "ILSVRC2012_img_train.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_imagenet_opens_by_name():
    with tfds.testing.mock_data(num_examples=3):
        source = open_source("tfds:imagenet2012")
        image, label = source[0]
        held_out = open_source("tfds:imagenet2012", "validation")
    assert image.shape[2] == 3
    assert 0 <= label < source.num_classes == 1000
    assert source.fingerprint != held_out.fingerprint


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


def test_records_that_cannot_be_read_are_unreadable_images():
    class Records:
        def __getitem__(self, index):
            if index == 0:
                raise OSError("corrupt record")
            return {"image": b"no picture" if index == 1 else as_png(index)}

        def __len__(self):
            return 3

    source = TfdsSource(Records(), "pictures/1.0.0 train", None)
    for index, words in ((0, "corrupt record"), (1, "cannot identify image")):
        with pytest.raises(UnreadableImage, match=rf"record {index} of pictures.*{words}"):
            source[index]
    assert source[2][0].shape == (20, 32, 3)
    assert source[2][1] is None
