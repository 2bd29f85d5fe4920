import dataclasses

import jax
import numpy as np
import pytest

from poa_jax import config
from poa_jax.pretraining.schedules import Hyper, Schedules, cosine

PUBLISHED_SHAPE = Schedules(steps=1384, epoch_steps=4, lr=0.005, warmup_epochs=10, cut=0.78)
SMALL = Schedules(
    steps=120, epoch_steps=10, lr=0.005, warmup_epochs=2, teacher_temperature_warmup_epochs=4
)
CASES = {
    "vit_published_epoch_length4": PUBLISHED_SHAPE,
    "small_scale0.78": dataclasses.replace(SMALL, cut=0.78),
    "small_scale1.0": SMALL,
}
OFFICIAL = {
    "lr": "lr",
    "last_layer_lr": "last_layer_lr",
    "weight_decay": "weight_decay",
    "teacher_momentum": "momentum",
    "teacher_temperature": "teacher_temp",
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("case", CASES)
def test_schedule_equals_official_at_every_step_and_past_the_end(golden, case, name):
    expected = golden("schedules")[f"{case}/{OFFICIAL[name]}"]
    values = [getattr(CASES[case].at(step), name) for step in range(len(expected))]
    np.testing.assert_allclose(values, expected, atol=1e-12, rtol=1e-12)


def test_plain_cosine_equals_official(golden):
    expected = golden("schedules")["raw/plain"]
    values = [cosine(step, 1.0, 0.1, total=20) for step in range(len(expected))]
    np.testing.assert_allclose(values, expected, atol=1e-12)


# (steps, steps an epoch, warm-up epochs, cut, batch); lr, wd, EMA at the last step; tolerances.
PUBLISHED = {
    "vit": ((276_800, 800, 10, 0.78, 1600), (6.17e-4, 0.3587, 0.99899), (5e-7, 5e-5, 5e-6)),
    "swin": ((216_250, 625, 30, 0.9, 2048), (1.82e-4, 0.391, 0.99971), (5e-7, 5e-4, 5e-6)),
    "resnet": ((692_000, 1000, 30, 1.0, 1280), (2e-5, 0.4, 0.9999), (1e-10, 1e-10, 1e-10)),
}


@pytest.mark.parametrize("run", PUBLISHED)
def test_published_runs_end_where_the_paper_says(run):
    (steps, epoch_steps, warmup, cut, batch), expected, tolerances = PUBLISHED[run]
    c = config.default()
    c.train.steps, c.train.batch_size = steps, batch
    c.schedule.epoch_steps, c.schedule.cut = epoch_steps, cut
    c.schedule.warmup_epochs = float(warmup)
    last = Schedules.from_config(c).at(steps - 1)
    values = (last.lr, last.weight_decay, last.teacher_momentum)
    for value, wanted, tolerance in zip(values, expected, tolerances, strict=True):
        assert abs(value - wanted) <= tolerance


def test_published_vit_run_rises_then_falls():
    s = Schedules.from_config(config.default())
    assert s.lr == pytest.approx(0.005, rel=1e-12)
    assert s.at(0).lr == 0.0
    assert s.at(8000 - 1).lr == s.at(8000).lr == s.lr
    assert s.at(8001).lr < s.lr
    assert s.at(276_800).lr == 2e-5


def test_teacher_momentum_and_weight_decay_never_fall():
    hypers = [PUBLISHED_SHAPE.at(step) for step in range(1400)]
    assert (np.diff([h.teacher_momentum for h in hypers]) >= 0).all()
    assert (np.diff([h.weight_decay for h in hypers]) >= 0).all()


def test_last_layer_is_frozen_exactly_in_its_epochs():
    frozen = [SMALL.at(step).last_layer_lr == 0.0 for step in range(30)]
    assert frozen == [True] * 10 + [False] * 20


def test_patch_masking_starts_at_its_epoch():
    s = dataclasses.replace(SMALL, patch_masking_start_epoch=2.5)
    assert [s.at(step).patch_masking for step in (0, 24, 25, 26, 500)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_run_shorter_than_its_warm_up_only_rises():
    s = dataclasses.replace(SMALL, steps=15)
    values = [s.at(step).lr for step in range(15)]
    assert (np.diff(values) > 0).all()
    assert values[-1] < s.lr


def test_without_warm_up_or_ramp_the_run_starts_at_the_peak():
    s = dataclasses.replace(SMALL, warmup_epochs=0, teacher_temperature_warmup_epochs=0)
    assert s.at(0).lr == s.lr
    assert s.at(0).teacher_temperature == 0.07


def test_hyper_can_be_an_argument_of_a_jitted_function_without_recompiling():
    traces = []

    @jax.jit
    def step(hyper: Hyper):
        traces.append(hyper)
        return hyper.lr + hyper.weight_decay

    for i in (0, 1, 50, 200):
        hyper = SMALL.at(i)
        np.testing.assert_allclose(step(hyper), hyper.lr + hyper.weight_decay, rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"epoch_steps": -3}, "epoch_steps must be at least 1, got -3"),
        ({"cut": 1.2}, "schedule.cut must be above 0 and at most 1, got 1.2"),
        ({"cut": 0.0}, "schedule.cut must be above 0 and at most 1, got 0.0"),
        ({"warmup_epochs": -1.0}, "schedule.warmup_epochs must not be negative, got -1.0"),
    ],
)
def test_impossible_schedules_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        SMALL.at(-1)
