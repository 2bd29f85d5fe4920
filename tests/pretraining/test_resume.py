"""Real processes of train.py, killed, stopped and damaged: what they end with must not differ."""

import shutil
import signal
from pathlib import Path

import pytest
from train_process import TrainProcess, assert_same_state

from poa_jax.pretraining import metrics

STEPS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(folder) -> TrainProcess:
    """A run that nothing happened to."""
    run = TrainProcess(folder, folder / "whole")
    run.printed = run.finish()
    return run


def numbers(workdir: Path) -> list[dict]:
    """Return the lines of metrics.jsonl without the only entry that is a time."""
    lines = metrics.read(workdir)
    return [{name: line[name] for name in line if name != "data_wait"} for line in lines]


def assert_same_run(run: TrainProcess, whole: TrainProcess) -> None:
    assert_same_state(run.state(), whole.state())
    lines = numbers(run.workdir)
    assert [line["step"] for line in lines] == list(range(2, STEPS + 1, 2))
    assert lines == numbers(whole.workdir)


def test_a_whole_run_prints_its_progress_and_nothing_else(whole):
    lines = whole.printed.splitlines()
    assert lines[0] == f"finished step {STEPS}; the run is in {whole.workdir}"
    assert all(line.startswith("step ") for line in lines[1:])
    assert lines[-1].startswith(f"step {STEPS}/{STEPS} ")
    assert len(whole.state()) > 100


def test_a_run_killed_again_and_again_ends_as_if_it_never_was(whole, folder):
    run = TrainProcess(folder, folder / "killed")

    def saving(step):
        return lambda: any(run.checkpoints.glob(f"{step}.orbax-checkpoint-tmp*"))

    # In the middle of the first save; then right after one, when the next is near.
    run.signal_when(saving(7), signal.SIGKILL)
    assert not (run.checkpoints / "7").exists()
    run.signal_when((run.checkpoints / "21").exists, signal.SIGKILL)
    run.finish()
    assert_same_run(run, whole)


def test_sigterm_saves_exits_with_0_and_the_same_command_goes_on(whole, folder):
    run = TrainProcess(folder, folder / "stopped")

    def begun():
        path = run.workdir / "metrics.jsonl"
        return path.exists() and path.stat().st_size > 0

    printed = run.signal_when(begun, signal.SIGTERM)
    step = max(int(path.name) for path in run.checkpoints.iterdir())
    assert 2 <= step < STEPS
    sentence = f"stopped by SIGTERM after step {step}; the same command goes on from there"
    assert printed.splitlines()[-1] == sentence
    assert f"going on from step {step}\n" in run.finish()
    assert_same_run(run, whole)


def test_a_corrupt_newest_checkpoint_costs_only_the_steps_since_the_one_before(whole, folder):
    run = TrainProcess(folder, folder / "corrupt")
    shutil.copytree(whole.workdir, run.workdir)
    for path in (run.checkpoints / "30").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-7])
    # What has no influence on the numbers may change.
    printed = run.finish("train.log_every=2", "train.keep_checkpoints=1", "data.workers=0")
    assert f"checkpoint {run.checkpoints / '30'} cannot be read: its file state/" in printed
    assert "going back to the checkpoint before, of step 28\n" in printed
    assert_same_run(run, whole)
    assert "Traceback" not in printed


def test_a_finished_run_says_so_and_compiles_nothing(whole, folder):
    run = TrainProcess(folder, whole.workdir)
    before = metrics.read(run.workdir)
    run.cache = folder / "nothing compiled"
    printed = run.finish()
    assert f"the run in {run.workdir} already did its {STEPS} steps\n" in printed
    assert not [path for path in run.cache.glob("*") if "on_device" in path.name]
    assert metrics.read(run.workdir) == before


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_last_checkpoint(folder):
    run = TrainProcess(folder, folder / "diverged", "optimizer.base_lr=1e30")
    printed = run.finish("train.checkpoint_every=1", status=2)
    sentence = printed.splitlines()[-1]
    assert sentence.startswith("error: ")
    assert " step " in sentence
    assert "Traceback" not in printed
    assert all(abs(x).max() < float("inf") for x in run.state().values())


def test_another_number_of_devices_goes_on_with_the_same_losses(folder):
    # What is left is a mean over images: KoLeo compares those of one device.
    settings = ("elastic.draw=shared", "model.drop_path=0.0", "loss.koleo=0.0")
    one = TrainProcess(folder, folder / "one", *settings)
    one.finish("train.keep_checkpoints=9")
    run = TrainProcess(folder, folder / "others", *settings)
    shutil.copytree(one.workdir, run.workdir)
    for step, devices in ((14, 4), (28, 1)):
        for path in run.checkpoints.iterdir():
            if int(path.name) > step:
                shutil.rmtree(path)
        assert f"going on from step {step}\n" in run.finish(devices=devices)
    expected, found = numbers(one.workdir), numbers(run.workdir)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    assert found != expected  # four devices add up in another order
