import io
import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from poa_jax.pretraining import metrics


def lines(folder):
    return (folder / metrics.FILE).read_text().splitlines()


def test_each_line_is_one_json_object_with_the_step_and_the_named_floats(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss/total": 2, "loss/koleo": 0.1})
        writer.write(2, {"loss/total": 1.5})
    assert [json.loads(line) for line in lines(tmp_path)] == [
        {"step": 1, "loss/total": 2.0, "loss/koleo": 0.1},
        {"step": 2, "loss/total": 1.5},
    ]
    assert isinstance(json.loads(lines(tmp_path)[0])["loss/total"], float)


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(1, {"loss/total": 2.0})
    assert len(lines(tmp_path)) == 1
    writer.close()


def test_a_value_that_is_not_finite_becomes_null(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    assert json.loads(lines(tmp_path)[0]) == {"step": 1, "a": None, "b": None, "c": 1.0}


def test_resuming_drops_the_lines_past_the_step_and_appends(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        for step in range(1, 7):
            writer.write(step, {"value": step})
    with metrics.MetricsWriter(tmp_path, resume_step=4) as writer:
        writer.write(5, {"value": 50.0})
    assert [(line["step"], line["value"]) for line in metrics.read(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, 50.0),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [metrics.FILE, "tensorboard"]


def test_a_run_from_the_start_drops_what_an_earlier_run_left(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"value": 1.0})
    metrics.MetricsWriter(tmp_path).close()
    assert metrics.read(tmp_path) == []


@pytest.mark.parametrize("end", ['{"step": 3, "va', '{"step": 3, "value": 1.0}', "\0\0\0\n", "7\n"])
def test_a_half_written_last_line_is_dropped(tmp_path, end):
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"value": 1.0})
        writer.write(2, {"value": 2.0})
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write(end)
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]
    with metrics.MetricsWriter(tmp_path, resume_step=9) as writer:
        writer.write(3, {"value": 3.0})
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_reading_a_folder_without_metrics_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the workdir of a run"):
        metrics.read(tmp_path)


def test_tensorboard_reads_the_scalars_of_a_resumed_run_once(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss/total": step})
    with metrics.MetricsWriter(tmp_path, resume_step=2) as writer:
        writer.write(3, {"loss/total": 30.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss/total")]
    assert found == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_without_tensorboard_only_the_json_lines_are_written(tmp_path, monkeypatch):
    for name in ("tensorboard.compat.proto", "tensorboardX"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert metrics.open_tensorboard(tmp_path / "tensorboard") is None
    with metrics.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"value": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == [metrics.FILE]


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def progress(terminal, **options):
    stream, clock = Stream(terminal), Clock()
    line = metrics.ProgressLine(100, 8, stream=stream, clock=clock, **options)
    return line, stream, clock


def test_progress_shows_step_speed_time_left_and_losses():
    line, stream, clock = progress(terminal=False)
    clock.now += 2.0
    line.update(4, {"loss/total": 7.25, "loss/cls_intact": 5.0})
    assert stream.getvalue() == (
        "step 4/100  16.0 images/s  0:48 left  total 7.250  cls_intact 5.000\n"
    )


def test_the_step_that_compiles_does_not_count_once_there_is_another():
    line, stream, clock = progress(terminal=False, every=0.0)
    clock.now += 60.0
    line.update(1, {})
    clock.now += 1.0
    line.update(3, {})
    clock.now += 1.0
    line.update(5, {})
    assert stream.getvalue().splitlines()[1:] == [
        "step 3/100  16.0 images/s  0:48 left",
        "step 5/100  16.0 images/s  0:48 left",
    ]


def test_a_resumed_run_counts_its_speed_from_the_step_it_starts_at():
    line, stream, clock = progress(terminal=False, step=90)
    clock.now += 5.0
    line.update(95, {})
    assert stream.getvalue() == "step 95/100  8.0 images/s  0:05 left\n"


def test_a_pipe_gets_a_line_every_few_seconds_and_the_last():
    line, stream, clock = progress(terminal=False, every=10.0)
    for step in range(1, 101):
        clock.now += 0.25
        line.update(step, {})
    line.close()
    shown = [int(text.split()[1].split("/")[0]) for text in stream.getvalue().splitlines()]
    assert shown == [1, 41, 81, 100]


def test_a_terminal_gets_one_line_that_is_written_over(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    line, stream, clock = progress(terminal=True)
    for step in (1, 2):
        clock.now += 1.0
        line.update(step, {"a_long_name": 123456.0})
    line.close()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert all(len(part) <= 29 for part in text.strip().split("\r"))


def test_hours_left_are_shown_as_hours():
    line, stream, clock = progress(terminal=False)
    clock.now += 60.0
    line.update(1, {})
    assert "1:39:00 left" in stream.getvalue()
