"""Batches depend on (seed, step) alone: not on workers, processes, resuming or broken files."""

import logging as python_logging
import threading

import numpy as np
import pytest
from PIL import Image

from poa_jax import config
from poa_jax.data import crops, masking, pipeline
from poa_jax.data.crops import CropRecipe
from poa_jax.data.folder import UnreadableImage, open_folder
from poa_jax.data.masking import MaskRecipe
from poa_jax.data.pipeline import TrainPipeline, eval_batches
from poa_jax.data.sources import ArraySource

RNG = np.random.default_rng(0)
SOURCE = ArraySource(RNG.integers(0, 256, (37, 20, 24, 3), np.uint8), np.arange(37) % 5)
CROPS, MASKS = CropRecipe(16, 8, 3), MaskRecipe((4, 4), group=4)


def make(source=SOURCE, **options):
    options = {"batch_size": 8, "seed": 7, "workers": 0} | options
    return TrainPipeline(source, CROPS, MASKS, **options)


def batches(start=0, stop=6, **options):
    return [batch for _, batch, _ in make(**options).iterate(start, stop)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def joined(parts):
    return [
        {key: np.concatenate([batch[key] for batch in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


class Breakable:
    """SOURCE with some images broken; records what is read."""

    def __init__(self, broken, length=37):
        self.broken, self.length = frozenset(broken), length
        self.class_names, self.num_classes, self.fingerprint = None, None, "x"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableImage(self.name(index), "cut off")
        return SOURCE[index % 37]

    def name(self, index):
        return f"file{index}.jpg"


def test_a_batch_has_the_shapes_of_the_contract():
    batch = batches()[0]
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "global_crops": ((8, 2, 16, 16, 3), np.uint8),
        "local_crops": ((8, 3, 8, 8, 3), np.uint8),
        "masks": ((8, 2, 16), np.bool_),
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_threads_change_nothing(workers):
    assert_same(batches(), batches(workers=workers, prefetch=3))


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_share_the_batch_of_one(workers):
    parts = [batches(process_index=i, process_count=2, workers=workers) for i in range(2)]
    assert [len(part[0]["masks"]) for part in parts] == [4, 4]
    assert_same(batches(), joined(parts))


def drawn(p, start, stop):
    """(index, crop parameters) of every sample of `p`, as `make_crops` draws them."""
    found = {}
    for step in range(start, stop):
        for row in p.rows:
            index = p._index(step * p.batch_size + row)
            image = p.source[index][0]
            rng = pipeline.generator(p.seed, 1, step, row)
            found[step, row] = (index, crops.draw_views(rng, p.crops, *image.shape[:2]))
    return found


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_two_processes_go_on_in_the_middle_of_an_epoch_where_one_stopped(workers):
    """37 images, batches of 8: step 7 is in the middle of epoch 2. (index, crops) and pixels."""
    whole = batches(0, 12)
    first = make(workers=workers)
    steps = first.iterate(0, 12)
    before = [next(steps)[1] for _ in range(7)]
    steps.close()
    state = first.get_state(7)
    parts, found = [], drawn(make(), 0, 7)
    for i in range(2):
        half = make(process_index=i, process_count=2, workers=workers)
        start = half.set_state(state)
        parts.append([batch for _, batch, _ in half.iterate(start, 12)])
        found |= drawn(half, start, 12)
    assert_same(before + joined(parts), whole)
    assert found == drawn(make(), 0, 12)


def test_split_gives_the_same_geometry_and_leaves_the_colours_to_the_device():
    batch = batches(2, 3, placement="split")[0]
    plain = CropRecipe(16, 8, 3, jitter=0.0, grayscale=0.0, blur=(0.0, 0.0, 0.0), solarize=0.0)
    p = TrainPipeline(SOURCE, plain, MASKS, batch_size=8, seed=7, workers=0)
    expected = p.batch_at(2)[0]
    assert_same([{k: v for k, v in batch.items() if k != "sample"}], [expected])
    np.testing.assert_array_equal(batch["sample"], [(2, row) for row in range(8)])
    half = batches(2, 3, placement="split", process_index=1, process_count=2)[0]
    np.testing.assert_array_equal(half["sample"], batch["sample"][4:])


def test_resident_names_images_in_the_order_of_the_epoch_and_reads_none():
    p = make(Breakable(range(37)), placement="resident")
    (step, batch, info) = next(p.iterate(4, 5))
    np.testing.assert_array_equal(batch["image"], [p._index(step * 8 + row) for row in range(8)])
    assert batch.keys() == {"image", "sample", "masks"}
    assert info.num_bad == 0
    assert all(x.dtype == np.int32 for name, x in batch.items() if name != "masks")
    np.testing.assert_array_equal(batch["masks"], make().batch_at(4)[0]["masks"])


def test_a_run_that_starts_in_the_middle_goes_on_as_if_it_had_not_stopped():
    whole = batches(0, 8)
    first = make(workers=2)
    steps = first.iterate(0, 8)
    seen = [next(steps)[0] for _ in range(3)]
    steps.close()
    assert seen == [0, 1, 2]
    state = first.get_state()
    second = make(workers=1)
    start = second.set_state(state)
    assert start == 3  # not 7, however many batches were ready
    assert second.get_state() == state
    assert_same(whole[3:], [batch for _, batch, _ in second.iterate(start, 8)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 8}, "saved with seed 7, but this run has 8"),
        ({"batch_size": 16}, "saved with batch_size 8, but this run has 16"),
        ({"source": Breakable(())}, "saved with source .*, but this run has x"),
    ],
)
def test_a_state_of_other_data_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options).set_state(make().get_state())


def test_every_draw_follows_from_seed_step_and_place():
    batch = make().batch_at(5)[0]
    for row in (0, 6):
        position = 5 * 8 + row
        order = pipeline.epoch_order(7, position // 37, 37)
        image = SOURCE[order[position % 37]][0]
        expected = crops.make_crops(pipeline.generator(7, 1, 5, row), image, CROPS)
        np.testing.assert_array_equal(batch["global_crops"][row], expected[0])
        np.testing.assert_array_equal(batch["local_crops"][row], expected[1])
    masks = masking.group_masks(pipeline.generator(7, 2, 5, 1), 8, (4, 4), 0.5, (0.1, 0.5))
    np.testing.assert_array_equal(batch["masks"][4:].reshape(8, 16), masks)


def test_other_seeds_and_steps_give_other_batches():
    base, other_step, other_seed = make().batch_at(3), make().batch_at(4), make(seed=8).batch_at(3)
    for other in (other_step, other_seed):
        for key in base[0]:
            assert (base[0][key] != other[0][key]).any()


def test_streams_never_overlap():
    draws = np.stack(
        [
            pipeline.generator(seed, purpose, a, b).integers(0, 2**63, 4)
            for seed in (0, 1)
            for purpose in range(3)
            for a in range(4)
            for b in range(4)
        ]
    )
    assert len(np.unique(draws)) == draws.size


def test_every_epoch_shows_every_image_once_in_another_order():
    p = make()
    order = [p._index(i) for i in range(3 * 37)]
    epochs = [order[37 * e : 37 * (e + 1)] for e in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_source_smaller_than_a_batch_is_repeated():
    tiny = ArraySource(SOURCE._images[:3])
    batch, info = make(tiny, batch_size=8).batch_at(0)
    assert info.reads == 8
    assert len(np.unique(batch["global_crops"].reshape(8, -1), axis=0)) == 8  # other crops each


def test_masks_stay_below_the_bound_in_every_group():
    for batch in batches(0, 10):
        for group in batch["masks"].reshape(2, -1):
            assert 0 < group.sum() <= MASKS.max_masked


def test_broken_images_are_replaced_by_the_next_readable_one(caplog):
    broken = Breakable({5, 6, 20})
    p = make(broken, max_bad_fraction=1.0)
    order = pipeline.epoch_order(7, 0, 37)
    where = int(np.flatnonzero(order == 5)[0])
    step, row = divmod(where, 8)
    batch, info = p.batch_at(step)
    expected = crops.make_crops(pipeline.generator(7, 1, step, row), SOURCE[7][0], CROPS)
    np.testing.assert_array_equal(batch["global_crops"][row], expected[0])
    assert {5, 6} <= {index for index, _ in info.bad}
    assert info.reads == 8 + info.num_bad
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        infos = [info for _, _, info in p.iterate(0, 20)]
    # Image 6 fails twice an epoch: in its own turn and as the stand-in of 5.
    per_epoch = 4
    assert sum(i.num_bad for i in infos) >= 3 * per_epoch
    lines = [record.getMessage() for record in caplog.records]
    assert sorted(lines) == [
        f"skipped unreadable image file{i}.jpg: cut off" for i in sorted((5, 6, 20), key=str)
    ]
    assert_same(
        batches(source=broken, max_bad_fraction=1.0, stop=12),
        joined(
            [
                batches(source=broken, max_bad_fraction=1.0, stop=12, workers=2, **process)
                for process in (
                    {"process_index": 0, "process_count": 2},
                    {"process_index": 1, "process_count": 2},
                )
            ]
        ),
    )


def test_too_many_broken_images_end_the_run_with_their_names():
    p = make(Breakable(range(0, 37, 5)), max_bad_fraction=0.1)
    with pytest.raises(ValueError, match=r"more than the share of 0\.1 that data") as caught:
        list(p.iterate(0, 50))
    assert "file10.jpg" in str(caught.value)
    assert 3 <= p.get_state()["next_step"] <= 5  # judged once 37 images were read


def test_twenty_broken_files_are_enough_to_judge_a_large_source():
    p = make(Breakable(range(0, 10_000, 2), length=10_000), max_bad_fraction=0.1)
    with pytest.raises(ValueError, match="could not be decoded") as caught:
        list(p.iterate(0, 1000))
    assert p.get_state()["next_step"] < 10
    assert " and " in str(caught.value)  # the list is cut


def test_a_small_share_of_broken_images_is_survived():
    p = make(Breakable({3}), max_bad_fraction=0.04)
    assert len(list(p.iterate(0, 60))) == 60
    with pytest.raises(ValueError, match="1 of "):
        list(make(Breakable({3}), max_bad_fraction=0.0).iterate(0, 60))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_without_any_readable_image_ends_at_once(workers):
    with pytest.raises(ValueError, match=r"images in a row cannot be read: file\d+\.jpg") as caught:
        list(make(Breakable(range(37)), workers=workers).iterate(0, 5))
    assert "\n" not in str(caught.value)


def test_a_folder_with_broken_files_trains_on_the_others(tmp_path):
    for i in range(12):
        Image.fromarray(SOURCE[i][0]).save(tmp_path / f"{i:02}.png")
    (tmp_path / "03.png").write_bytes(b"")
    (tmp_path / "07.jpg").write_bytes(b"not a picture at all")
    whole = (tmp_path / "09.png").read_bytes()
    (tmp_path / "09.png").write_bytes(whole[: len(whole) // 2])
    source = open_folder(tmp_path)
    assert len(source) == 13
    p = make(source, max_bad_fraction=0.5)
    bad = {source.name(index) for _, _, info in p.iterate(0, 4) for index, _ in info.bad}
    assert bad == {str(tmp_path / name) for name in ("03.png", "07.jpg", "09.png")}
    with pytest.raises(ValueError, match=r"07\.jpg"):
        list(make(source, max_bad_fraction=0.1).iterate(0, 10))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 10}, r"batch_size 10 cannot be divided over 1 processes .* is 8$"),
        ({"batch_size": 12, "process_count": 2}, r"12 cannot be divided over 2 .* is 16$"),
        ({"batch_size": 0}, r"batch_size 0 cannot be divided .* is 4$"),
        ({"process_index": 2, "process_count": 2}, "process_index 2 is not below process_count 2"),
        ({"seed": -1}, "seed must be from 0"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction must be from 0 to 1"),
        (
            {"placement": "devise"},
            "unknown value of data.placement: 'devise', expected one of host",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_a_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_the_configuration_gives_the_pipeline():
    c = config.default()
    c.model.image_size, c.model.patch_size, c.data.local_size = 32, 8, 16
    c.train.batch_size, c.data.local_crops, c.seed, c.data.workers = 16, 2, 3, 0
    p = TrainPipeline.from_config(c, SOURCE, process_index=1, process_count=2)
    step, batch, _ = next(p.iterate(4, 5))
    assert step == 4
    assert batch["global_crops"].shape == (8, 2, 32, 32, 3)
    assert batch["local_crops"].shape == (8, 2, 16, 16, 3)
    assert batch["masks"].shape == (8, 2, 16)
    whole = TrainPipeline.from_config(c, SOURCE).batch_at(4)[0]
    assert_same([{k: v[8:] for k, v in whole.items()}], [batch])


def test_closing_the_iterator_stops_the_threads():
    before = set(threading.enumerate())
    steps = make(workers=2).iterate(0, 10_000)
    next(steps)
    assert set(threading.enumerate()) - before
    steps.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_cover_the_source_in_order_and_pad_the_last(workers):
    got = list(eval_batches(SOURCE, 18, 16, 10, workers=workers))
    assert [valid for _, _, valid in got] == [10, 10, 10, 7]
    assert all(images.shape == (10, 16, 16, 3) for images, _, _ in got)
    assert all(images.dtype == np.uint8 and labels.dtype == np.int32 for images, labels, _ in got)
    labels = np.concatenate([labels[:valid] for _, labels, valid in got])
    np.testing.assert_array_equal(labels, np.arange(37) % 5)
    expected = crops.resize_centre_crop(SOURCE[23][0], 18, 16)
    np.testing.assert_array_equal(got[2][0][3], expected)
    assert not got[3][0][7:].any()
    np.testing.assert_array_equal(got[3][1][7:], -1)


def test_evaluation_leaves_out_unreadable_images_and_counts_them():
    got = list(eval_batches(Breakable({4, 11}), 18, 16, 10, max_bad_fraction=0.1))
    assert [valid for _, _, valid in got] == [9, 9, 10, 7]
    np.testing.assert_array_equal(got[0][0][4], crops.resize_centre_crop(SOURCE[5][0], 18, 16))
    with pytest.raises(ValueError, match="2 of 37 images read so far could not be decoded"):
        list(eval_batches(Breakable({4, 11}), 18, 16, 10, max_bad_fraction=0.01))


def test_evaluation_without_labels_gives_minus_one():
    _, labels, valid = next(eval_batches(ArraySource(SOURCE._images), 18, 16, 10))
    assert valid == 10
    np.testing.assert_array_equal(labels, -1)


def test_impossible_evaluation_crops_are_refused():
    with pytest.raises(ValueError, match="got crop 20, resize 18"):
        next(eval_batches(SOURCE, 18, 20, 10))
