"""Whole runs with crops made in each place: same shapes, exact resuming, no second compilation."""

import jax
import numpy as np
import pytest
import tiny_run

from poa_jax import config as configs
from poa_jax.checkpoints import CONFIG
from poa_jax.data import placement
from poa_jax.data.pipeline import PLACEMENTS, TrainPipeline
from poa_jax.pretraining import loop, metrics, parallel

SOURCE = tiny_run.images(40)


def crops_of(kind, devices):
    """What the network sees at step 3, on a mesh of so many devices."""
    config = tiny_run.config(data__placement=kind)
    mesh = parallel.make_mesh(devices)
    batch = TrainPipeline.from_config(config, SOURCE).batch_at(3)[0]
    batch = placement.cutter(config, SOURCE, mesh, parallel.AXIS)(parallel.sharded(mesh, batch))
    split = jax.sharding.PartitionSpec(parallel.AXIS)
    prepare = jax.shard_map(
        placement.device_part(config), mesh=mesh, in_specs=split, out_specs=split, check_vma=False
    )
    return jax.device_get(jax.jit(prepare)(batch))


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_every_placement_gives_normalised_crops_that_no_division_changes(kind):
    one, four = crops_of(kind, 1), crops_of(kind, 4)
    assert {name: x.shape for name, x in one.items()} == {
        "global_crops": (16, 2, 16, 16, 3),
        "local_crops": (16, 2, 8, 8, 3),
        "masks": (16, 2, 4),
    }
    for name, x in one.items():
        np.testing.assert_allclose(four[name], x, atol=1e-5, err_msg=name)
        if name != "masks":
            assert x.dtype == np.float32
            assert -2.2 < x.min() < x.max() < 2.7


def test_a_run_records_its_images_and_how_long_the_devices_waited(tmp_path):
    config = tiny_run.config(
        data__placement="resident", train__log_every=1, model__depth=2, elastic__width_bounds="max"
    )
    run = loop.train(config, tmp_path, SOURCE)
    assert run.step == 2
    assert all(0 <= line["data_wait"] < 60 for line in metrics.read(tmp_path))
    assert configs.restore(tmp_path / CONFIG).data.fingerprint == SOURCE.fingerprint


def test_images_that_are_not_those_of_the_fingerprint_are_refused(tmp_path):
    config = tiny_run.config(data__fingerprint="0123456789abcdef")
    with pytest.raises(ValueError, match=r"data\.fingerprint is 0123456789abcdef, but .* have "):
        loop.train(config, tmp_path / "run", SOURCE)
    assert not (tmp_path / "run").exists()
