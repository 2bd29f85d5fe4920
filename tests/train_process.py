"""A very small training run in a process of its own, for tests that kill, stop and damage it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from poa_jax.checkpoints import leaves

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """from poa_jax.config import default


def get_config():
    c = default()
    c.model.image_size = 16
    c.model.patch_size = 8
    c.model.width = 32
    c.model.depth = 2
    c.model.head_dim = 8
    c.model.drop_path = 0.25
    c.elastic.min_width = 16
    c.elastic.width_step = 8
    c.elastic.min_depth = 1
    c.elastic.width_bounds = "max"
    c.heads.prototypes = (16,)
    c.heads.hidden = 16
    c.heads.bottleneck = 8
    c.data.local_size = 8
    c.data.local_crops = 2
    c.data.workers = 1
    c.masks.group = 4
    c.train.batch_size = 16
    c.train.steps = 30
    c.train.checkpoint_every = 7
    c.train.log_every = 2
    c.schedule.epoch_steps = 10
    c.schedule.warmup_epochs = 1.0
    c.schedule.patch_masking_start_epoch = 0.5
    c.schedule.teacher_temperature_warmup_epochs = 2.0
    c.eval.resize = 16
    return c
"""


class TrainProcess:
    """`train.py` on the configuration above, in `workdir`, as often as it is started.

    `folder` holds the config file and the compilation cache; runs of one folder share them.
    """

    def __init__(self, folder: Path, workdir: Path, *overrides: str) -> None:
        self.workdir, self.overrides = workdir, overrides
        self.checkpoints = workdir / "checkpoints"
        self.cache = folder / "compiled"
        self._config = folder / "tiny.py"
        self._config.write_text(CONFIG)

    def start(self, *overrides: str, devices: int = 1) -> subprocess.Popen:
        """Start the process; overrides are "key=value"."""
        flags = [f"--config.{text}" for text in (*self.overrides, *overrides)]
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(self._config)]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_cpu_use_fusion_emitters=false",  # compiles faster
            # Tests wait for the compiler, not for these few updates.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return subprocess.Popen(
            [*command, "--workdir", str(self.workdir), *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *overrides: str, devices: int = 1, status: int = 0) -> str:
        """Run to the end; returns what was printed, first to stdout, then to stderr."""
        return end(self.start(*overrides, devices=devices), status)

    def signal_when(self, reached: Callable[[], bool], number: signal.Signals) -> str:
        """Start, send a signal as soon as `reached()`, and return what was printed."""
        process = self.start()
        while not reached():
            assert process.poll() is None, end(process, None)
            time.sleep(0.001)
        process.send_signal(number)
        return end(process, -number if number == signal.SIGKILL else 0)

    def state(self) -> dict[str, np.ndarray]:
        """Return every array of the newest checkpoint, by path."""
        steps = [int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit()]
        with ocp.StandardCheckpointer() as reader:
            tree = reader.restore(self.checkpoints / str(max(steps)) / "state")
        return leaves(jax.tree.map(np.asarray, tree))


def end(process: subprocess.Popen, status: int | None) -> str:
    """Wait for a process, compare its exit status, and return what it printed."""
    out, err = process.communicate(timeout=300)
    assert status is None or process.returncode == status, f"{process.returncode}: {out}{err}"
    return out + err


def assert_same_state(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Compare bit for bit."""
    assert a.keys() == b.keys()
    assert not [name for name in a if a[name].tobytes() != b[name].tobytes()]
