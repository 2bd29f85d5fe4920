import errno
import logging
import os
import signal

import jax
import numpy as np
import pytest
import tiny_run

from poa_jax import config as configs
from poa_jax.checkpoints import CONFIG, Checkpoints
from poa_jax.data.pipeline import TrainPipeline
from poa_jax.models import build
from poa_jax.pretraining import loop, metrics, workdir
from poa_jax.pretraining.draws import DrawSequence
from poa_jax.pretraining.state import init_state


@pytest.fixture(scope="module")
def source():
    return tiny_run.images(40)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="poa_jax")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "poa_jax"]


def finished_run(folder, source):
    """A run with a checkpoint of its last step, as `train` leaves it."""
    config = tiny_run.config(train__steps=3)
    configs.save(config, folder / CONFIG)
    modules = build.backbone(config), build.heads(config)
    state = jax.jit(lambda: init_state(*modules, config.model.image_size, config.seed))()
    position = TrainPipeline.from_config(config, source).get_state() | {"next_step": 3}
    with Checkpoints(folder) as saved:
        saved.save(3, state, {"data": position, "step": 3})
    return config


def test_a_finished_run_has_nothing_to_do(tmp_path, source, said):
    config = finished_run(tmp_path, source)
    outcome = loop.train(config, tmp_path, source)
    assert outcome == loop.Outcome(3, False, {})
    assert said()[-1] == f"the run in {tmp_path} already did its 3 steps"
    with pytest.raises(ValueError, match="the data position was saved with source"):
        loop.train(config, tmp_path, tiny_run.images(40, seed=1))


def test_a_changed_configuration_is_told_key_by_key(tmp_path, source):
    configs.save(tiny_run.config(), tmp_path / CONFIG)
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("kept")
    config = tiny_run.config(optimizer__base_lr=0.5, seed=3, train__log_every=77)
    with pytest.raises(ValueError, match="another configuration") as told:
        loop.train(config, tmp_path, source)
    sentence = str(told.value)
    assert "optimizer.base_lr (was 0.004, now 0.5); seed (was 0, now 3);" in sentence
    assert "log_every" not in sentence
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"
    assert configs.restore(tmp_path / CONFIG).seed == 0


def test_what_changes_no_number_of_a_run_may_change(tmp_path):
    configs.save(tiny_run.config(), tmp_path / CONFIG)
    free = {
        "train.checkpoint_every": 3,
        "train.keep_checkpoints": 5,
        "train.log_every": 3,
        "eval.batch_size": 7,
        "data.workers": 0,
        "data.prefetch": 9,
        "data.max_bad_fraction": 0.5,
    }
    for key, value in free.items():
        changed = configs.override(tiny_run.config(), [f"{key}={value}"])
        workdir.check_same_run(changed, tmp_path / CONFIG)
    for key, value in {"data.flip": 0.1, "elastic.width_bounds": "max", "model.depth": 8}.items():
        changed = configs.override(tiny_run.config(), [f"{key}={value}"])
        with pytest.raises(ValueError, match=key):
            workdir.check_same_run(changed, tmp_path / CONFIG)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_workdir_that_is_a_file_is_told(tmp_path, source, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"file is a file, expected a folder"):
        loop.train(tiny_run.config(), tmp_path / place, source)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_batch_that_does_not_divide_names_the_nearest_that_does(tmp_path, source):
    # Four devices in groups of four images.
    with pytest.raises(ValueError, match=r"batch_size 24 cannot be divided .* is 32"):
        loop.train(tiny_run.config(train__batch_size=24), tmp_path / "run", source)
    assert not (tmp_path / "run").exists()


def test_a_workdir_in_use_is_refused_and_free_again_afterwards(tmp_path, source):
    with workdir.only_process(tmp_path):
        with pytest.raises(ValueError, match=f"in use by another .* \\(id {os.getpid()}\\)"):
            loop.train(tiny_run.config(), tmp_path, source)
        assert not (tmp_path / CONFIG).exists()
    with workdir.only_process(tmp_path):
        pass


def test_a_disk_that_refuses_is_one_sentence(tmp_path):
    with (
        pytest.raises(OSError, match=f"cannot write in {tmp_path}: no space left on device"),
        workdir.disk_errors(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "raised by write(2)")
    with pytest.raises(FileNotFoundError, match="as it was"), workdir.disk_errors(tmp_path):
        raise FileNotFoundError("as it was")


def losses(value=1.0, norm=1.0):
    return {"loss/total": np.float32(value), "grad_norm/heads": np.float32(norm)}


def test_metrics_are_logged_every_few_steps_and_at_the_last(tmp_path):
    config = tiny_run.config(train__steps=8, train__log_every=3)
    with loop.Report(config, tmp_path, 0) as report:
        for step in range(1, 9):
            report.put(step, losses(step))
            # Those of the update before: this one may still be running.
            assert report.last.get("loss/total", 0.0) == step - 1
        report.flush()
        report.flush()
        assert report.last["loss/total"] == 8
    lines = metrics.read(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert [line["loss/total"] for line in lines] == [3.0, 6.0, 8.0]


@pytest.mark.parametrize(
    ("bad", "name"), [((np.nan, np.nan), "loss/total"), ((1.0, np.inf), "grad_norm/heads")]
)
def test_a_number_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, bad, name):
    with loop.Report(tiny_run.config(train__log_every=10), tmp_path, 0) as report:
        report.put(1, losses())
        report.put(2, losses(*bad))
        with pytest.raises(ValueError, match=rf"{name} of step 2 is (nan|inf); the run stops"):
            report.flush()
    assert [line["step"] for line in metrics.read(tmp_path)] == [2]


def test_sigterm_is_noted_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with loop.stopping() as must_stop:
        assert not must_stop(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert must_stop(1)
    assert signal.getsignal(signal.SIGTERM) is before


def draws(mode, devices):
    config = tiny_run.config(elastic__draw=mode, train__batch_size=64)
    space = build.space(config)
    sequence = DrawSequence(config, space, loop.make_recipe(config, devices, space), devices)
    found = [sequence.at(step) for step in range(3 * len(space.pool))]
    networks = [
        [(int(w), int(k.sum())) for w, k in zip(d.width, d.keep[0], strict=True)] for d in found
    ]
    return networks, space


def test_shared_draws_are_the_same_on_every_device_and_any_number_of_them():
    four, space = draws("shared", 4)
    assert all(len(set(step)) == 1 for step in four)
    assert [step[:1] for step in four] == draws("shared", 1)[0]
    # Without replacement: every round over the pool is the pool.
    wanted = sorted((s.width, *s.depths) for s in space.pool)
    assert sorted(step[0] for step in four[: len(wanted)]) == wanted


def test_every_device_draws_from_a_stream_of_its_own():
    four, space = draws("per_device", 4)
    streams = list(zip(*four, strict=True))
    assert len(set(streams)) == 4
    wanted = sorted((s.width, *s.depths) for s in space.pool)
    for stream in streams:
        assert sorted(stream[: len(wanted)]) == wanted
    assert [step[0] for step in four] == [step[0] for step in draws("per_device", 1)[0]]
