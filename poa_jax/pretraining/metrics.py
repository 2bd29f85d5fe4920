"""What a run reports while it trains: metrics.jsonl, TensorBoard if installed, a progress line."""

import collections
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends named floats to `workdir/metrics.jsonl`, one JSON object a line, and to TensorBoard.

    Opened with `resume_step`, it first drops every line past that step: the resumed run writes them
    again. A value that is not finite is written as null, which JSON has and NaN it has not.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = 0) -> None:
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / FILE
        _keep_until(self.path, resume_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = open_tensorboard(workdir / "tensorboard", resume_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line: the step, a whole number, and its values, floats by name."""
        values = {name: float(value) for name, value in values.items()}
        line = {"step": int(step)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        # Handed to the system at once, so that a killed process loses no line it wrote.
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, int(step))

    def close(self) -> None:
        """Close the files; the writer takes no more values."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read(workdir: str | os.PathLike) -> list[dict]:
    """Return the lines of `workdir/metrics.jsonl` as dicts; a half-written last line is left out.

    Raises FileNotFoundError when the folder has no such file.
    """
    path = Path(workdir) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {FILE} in {workdir}, expected the workdir of a run")
    return [json.loads(line) for line in _whole_lines(path)]


def _keep_until(path: Path, step: int) -> None:
    """Drop the lines past `step` and a half-written one; the file changes whole or not at all."""
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(unfinished, path)


def _whole_lines(path: Path) -> list[str]:
    # A process killed while it writes leaves a last line without its end, or (when the machine
    # dies) one that is not JSON.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [line for line in lines if _is_record(line)]


def _is_record(line: str) -> bool:
    try:
        return "step" in json.loads(line)
    except (ValueError, TypeError):
        return False


def open_tensorboard(folder: Path, resume_step: int = 0):
    """Return a writer with `add_scalar(name, value, step)` and `close()`, or None.

    None when neither tensorboard nor tensorboardX is installed. Points past `resume_step` that an
    earlier run left in the folder are hidden.
    """
    try:
        return _EventFile(folder, resume_step)
    except ImportError:
        pass
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=resume_step + 1)


class _EventFile:
    """One TensorBoard event file, written with the tensorboard package alone: no TensorFlow."""

    _count = 0

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        _EventFile._count += 1
        stamp = f"{int(time.time()):010d}.{os.getpid()}.{_EventFile._count}"
        self._records = RecordWriter((folder / f"events.out.tfevents.{stamp}").open("wb"))
        self._add(file_version="brain.Event:2")
        # A start marker makes TensorBoard forget what older files of this folder say from here on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=resume_step + 1, session_log=start)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._add(
            step=step,
            summary=self._summary(value=[self._summary.Value(tag=name, simple_value=value)]),
        )

    def close(self) -> None:
        self._records.close()

    def _add(self, **fields) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        self._records.flush()


class ProgressLine:
    """Shows step, images/s, time left and losses: one line on a terminal, else a line now and then.

    `total_steps` counts from the start of training, `images_per_step` over all devices; `step` is
    the step that the run starts from. `every` is the time in seconds between the lines that go to a
    file or pipe. The speed is that of the last `window` updates; the first, in which the step is
    compiled, counts only until there is a second.
    """

    def __init__(
        self,
        total_steps: int,
        images_per_step: int,
        *,
        step: int = 0,
        stream: TextIO | None = None,
        every: float = 10.0,
        window: int = 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._images = total_steps, images_per_step
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._every, self._clock = every, clock
        self._seen = collections.deque([(clock(), step)], maxlen=window + 1)
        self._updates = 0
        self._next_line = clock()
        self._shown = 0  # characters on the terminal's line

    def update(self, step: int, losses: Mapping[str, float]) -> None:
        """Show that `step` steps are done, with the losses (name -> value) of the last of them."""
        now = self._clock()
        self._updates += 1
        if self._updates == 2:
            self._seen.popleft()
        self._seen.append((now, step))
        line = self._line(step, losses)
        if self._terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + line.ljust(self._shown))
            self._shown = len(line)
        elif now >= self._next_line or step >= self._total:
            self._stream.write(line + "\n")
            self._next_line = now + self._every
        self._stream.flush()

    def close(self) -> None:
        """End the line, so that what is printed next starts on its own."""
        if self._terminal and self._shown:
            self._stream.write("\n")
            self._stream.flush()
            self._shown = 0

    def _line(self, step: int, losses: Mapping[str, float]) -> str:
        (old_time, old_step), (now, _) = self._seen[0], self._seen[-1]
        done, seconds = step - old_step, now - old_time
        parts = [f"step {step}/{self._total}"]
        if done > 0 and seconds > 0:
            parts.append(f"{done * self._images / seconds:.1f} images/s")
            parts.append(f"{_duration((self._total - step) * seconds / done)} left")
        # "loss/cls_intact" is shown as "cls_intact": the line has to fit a terminal.
        parts += [f"{name.rpartition('/')[2]} {value:.3f}" for name, value in losses.items()]
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
