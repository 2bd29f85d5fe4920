import logging
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from poa_jax import checkpoints
from poa_jax.checkpoints import Checkpoints
from poa_jax.pretraining.state import TrainState


def make_state(seed=0, width=32):
    """Arrays of a few kinds: large enough for data files of their own, tiny, whole numbers."""
    rng = np.random.default_rng(seed)

    def params():
        return {
            "backbone": {
                "blocks": {"kernel": jnp.asarray(rng.normal(size=(2, width, 3)), jnp.float32)},
                "cls_token": jnp.asarray([[0.0, -0.0, 1e-45]], jnp.float32),
            },
            "heads": {"head_0": {"g": jnp.asarray(rng.normal(size=40), jnp.float32)}},
        }

    opt = optax.ScaleByAdamState(jnp.int32(seed), params(), params())
    centres = {name: [jnp.full(3, 0.5), jnp.zeros(4)] for name in ("cls", "patch")}
    return TrainState(jnp.int32(seed), params(), params(), opt, centres)


def as_bytes(tree):
    return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(folder) as saved:
        for step in (10, 20):
            saved.save(step, make_state(step), {"data": {"next_step": step}})
    return folder


@pytest.fixture
def run(two_saves, tmp_path):
    """A workdir with the checkpoints 10 and 20, free to be damaged."""
    return shutil.copytree(two_saves, tmp_path / "run")


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="poa_jax")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "poa_jax"]


def damage_data(step_folder, change):
    """Change every data file: which of them are in use only TensorStore knows."""
    for path in step_folder.rglob("d/*"):
        path.write_bytes(change(bytearray(path.read_bytes())))


def test_the_newest_checkpoint_comes_back_bit_for_bit(run):
    with Checkpoints(run) as saved:
        state, meta = saved.restore_newest(make_state())
        assert saved.latest_step == checkpoints.newest_step(run) == 20
    assert as_bytes(state) == as_bytes(make_state(20))
    assert meta == {"data": {"next_step": 20}}
    assert type(state.opt) is optax.ScaleByAdamState


def test_shapes_are_enough_to_restore(run):
    like = jax.eval_shape(make_state)
    place = SingleDeviceSharding(jax.devices()[2])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like)
    with Checkpoints(run) as saved:
        state, _ = saved.restore_newest(like)
    assert as_bytes(state) == as_bytes(make_state(20))
    assert {x.sharding for x in jax.tree.leaves(state)} == {place}


def test_a_state_of_four_devices_goes_on_with_one_and_back(tmp_path, mesh):
    four = NamedSharding(mesh, PartitionSpec())
    one = SingleDeviceSharding(jax.devices()[0])
    now = make_state(3)
    for step, (before, after) in enumerate([(four, one), (one, four)], start=1):
        with Checkpoints(tmp_path) as saved:
            saved.save(step, jax.device_put(now, before), {})
            saved.wait()
            now, _ = saved.restore_newest(jax.device_put(now, after))
        assert as_bytes(now) == as_bytes(make_state(3))
        assert {x.sharding for x in jax.tree.leaves(now)} == {after}


def test_buffers_given_away_right_after_a_save_are_saved_as_they_were(tmp_path):
    move_on = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    large = {"backbone": {"w": jnp.zeros(2**20)}}
    state = TrainState(jnp.int32(0), large, {}, optax.ScaleByAdamState(jnp.int32(0), {}, {}), {})
    with Checkpoints(tmp_path, keep=5) as saved:
        for step in range(1, 4):
            state = move_on(state)
            saved.save(step, state, {})
    for step in (3, 2, 1):
        with Checkpoints(tmp_path) as saved:
            found, _ = saved.restore_newest(state)
        assert set(np.unique(found.params["backbone"]["w"])) == {step}
        shutil.rmtree(tmp_path / "checkpoints" / str(step))


def test_only_the_newest_are_kept_and_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        assert saved.restore_newest(make_state()) is None
        assert not checkpoints.has_any(tmp_path)
        for step in (1, 2, 3, 3):
            saved.save(step, make_state(step), {})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    assert checkpoints.has_any(tmp_path)


def remove(name):
    def damage(step_folder):
        path = step_folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path)

    return damage


def truncate(step_folder):
    damage_data(step_folder, lambda data: data[: len(data) // 2])


def empty_data(step_folder):
    damage_data(step_folder, lambda data: b"")


def scribble(step_folder):
    damage_data(step_folder, lambda data: random.Random(0).randbytes(len(data)))


def flip_in_the_middle(step_folder):
    damage_data(step_folder, lambda data: flipped(data, 4 * len(data)))


def flipped(data, bit):
    data[bit // 8] ^= 1 << bit % 8
    return data


def empty(step_folder):
    shutil.rmtree(step_folder)
    step_folder.mkdir()


def cut_meta(step_folder):
    path = step_folder / "meta" / "metadata"
    path.write_text(path.read_text()[:-5])


def change_meta(step_folder):
    path = step_folder / "meta" / "metadata"
    path.write_text(path.read_text().replace("20", "21"))


def change_checksums(step_folder):
    path = step_folder / "checksums.json"
    path.write_text(path.read_text().replace("1", "2"))


def rename_an_array(step_folder):
    path = step_folder / "state" / "_METADATA"
    path.write_text(path.read_text().replace("cls_token", "cls_tokem"))


DAMAGES = {
    "data truncated": truncate,
    "data files empty": empty_data,
    "data overwritten": scribble,
    "one bit flipped": flip_in_the_middle,
    "state missing": remove("state"),
    "manifest missing": remove("state/manifest.ocdbt"),
    "tree description missing": remove("state/_METADATA"),
    "tree description changed": rename_an_array,
    "meta missing": remove("meta"),
    "meta cut": cut_meta,
    "meta changed": change_meta,
    "checksums missing": remove("checksums.json"),
    "checksums changed": change_checksums,
    "folder empty": empty,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_an_unreadable_checkpoint_gives_way_to_the_one_before(run, said, damage):
    newest = run / "checkpoints" / "20"
    damage(newest)
    with Checkpoints(run) as saved:
        state, meta = saved.restore_newest(make_state())
        assert as_bytes(state) == as_bytes(make_state(10))
        assert meta == {"data": {"next_step": 10}}
        first, second = said()
        assert first.startswith(f"checkpoint {newest} ")
        assert len(first) < 400
        assert "\n" not in first
        assert second == "going back to the checkpoint before, of step 10"
        # The run comes by step 20 again.
        saved.save(20, make_state(21), {})
    assert newest.with_name("20.unreadable").is_dir()
    with Checkpoints(run) as saved:
        state, _ = saved.restore_newest(make_state())
    assert as_bytes(state) == as_bytes(make_state(21))


def test_no_flipped_bit_goes_unnoticed(run):
    rng = random.Random(1)
    newest = run / "checkpoints" / "20"
    whole = shutil.copytree(newest, run / "whole")
    went_back = 0
    for _ in range(15):
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(whole, newest)
        damage_data(newest, lambda data: flipped(data, rng.randrange(8 * len(data))))
        with Checkpoints(run) as saved:
            state, meta = saved.restore_newest(make_state())
        step = meta["data"]["next_step"]
        assert as_bytes(state) == as_bytes(make_state(step))
        went_back += step == 10
    assert went_back > 5


def test_no_readable_checkpoint_is_one_sentence_and_nothing_is_moved(run):
    for step in ("10", "20"):
        scribble(run / "checkpoints" / step)
    with (
        Checkpoints(run) as saved,
        pytest.raises(ValueError, match=r"none of the checkpoints in .* \(steps 10, 20\); delete"),
    ):
        saved.restore_newest(make_state())
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10", "20"]


def test_a_checkpoint_of_another_architecture_is_refused(run):
    with (
        Checkpoints(run) as saved,
        pytest.raises(ValueError, match=r"another architecture: '.*kernel' has shape \(2, 32, 3\)"),
    ):
        saved.restore_newest(make_state(width=16))
    other = make_state()
    other.params["backbone"]["register"] = jnp.zeros(3)
    with (
        Checkpoints(run) as saved,
        pytest.raises(ValueError, match="another architecture: it has no 'params/backbone/regis"),
    ):
        saved.restore_newest(other)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["10", "20"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_never_saved(run, value):
    bad = make_state(30)
    bad.teacher["heads"]["head_0"]["g"] = bad.teacher["heads"]["head_0"]["g"].at[7].set(value)
    with (
        Checkpoints(run) as saved,
        pytest.raises(ValueError, match=r"after step 30 'teacher/heads/head_0/g' has values that"),
    ):
        saved.save(30, bad, {})
    assert checkpoints.newest_step(run) == 20


FULL_DISK = """
import resource, sys
import jax.numpy as jnp
import optax
from poa_jax import errors, messages
from poa_jax.checkpoints import Checkpoints
from poa_jax.pretraining.state import TrainState

messages.show()
arrays = {str(i): jnp.ones(1000) for i in range(20)}
state = TrainState(jnp.int32(0), arrays, {}, optax.ScaleByAdamState(jnp.int32(0), {}, {}), {})
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # larger files fail as on a full disk
with errors.user_errors(), Checkpoints(sys.argv[1]) as saved:
    saved.save(30, state, {})
    saved.wait()
"""


def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(run):
    # In a process of its own: the parallel writes that fail after the first report to nobody.
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(run)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot save a checkpoint in {run}/checkpoints: ")
    assert done.stderr.count("\n") == 1
    with Checkpoints(run) as saved:
        state, _ = saved.restore_newest(make_state())
    assert as_bytes(state) == as_bytes(make_state(20))


def test_without_a_checkpoint_the_newest_step_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; train first"):
        checkpoints.newest_step(tmp_path)
    (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        checkpoints.newest_step(tmp_path)
