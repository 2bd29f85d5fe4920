"""The folder of a run: one process at a time, one configuration for good."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_collections

from poa_jax import config as configs

LOCK = ".lock"
# Keys that may differ from those a workdir was started with: they change no number of the run.
FREE_KEYS = ("train.checkpoint_every", "train.keep_checkpoints", "train.log_every")
FREE_SECTIONS = (
    "eval.",
    "parallel.",
    "data.worker",  # data.workers and data.worker_kind
    "data.prefetch",
    "data.max_bad_fraction",
    "data.resident_limit",
    "data.fingerprint",  # the checkpoint's data position knows its images
)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def check_folder(workdir: Path) -> None:
    """Raise ValueError if `workdir`, or a folder above it, is a file."""
    for path in (workdir, *workdir.parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"workdir {workdir}: {path} is a file, expected a folder")
            return


def check_same_run(config: ml_collections.ConfigDict, saved_config: Path) -> None:
    """Raise ValueError if a run cannot go on under `config`; names the keys that changed."""
    old = dict(configs.leaves(configs.restore(saved_config).to_dict()))
    new = dict(configs.leaves(config.to_dict()))
    changed = [
        f"{key} (was {old[key]}, now {value})"
        for key, value in new.items()
        if value != old[key] and key not in FREE_KEYS and not key.startswith(FREE_SECTIONS)
    ]
    if changed:
        raise ValueError(
            f"{saved_config.parent} holds a run with another configuration: "
            f"{'; '.join(changed)}; go on with the same values, or choose another --workdir"
        )


@contextmanager
def only_process(workdir: Path) -> Iterator[None]:
    """Hold the workdir for this process; the system lets go of it however the process ends.

    Raises:
      ValueError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix system
        yield
        return
    with (workdir / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise ValueError(
                f"{workdir} is in use by another training process (id {owner}); wait for its end, "
                "or choose another --workdir"
            ) from None
        except OSError:  # some network file systems have no locks
            yield
            return
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


@contextmanager
def disk_errors(workdir: Path) -> Iterator[None]:
    """Say in one sentence that the disk refused what the run wrote."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        reason = os.strerror(error.errno).lower()
        raise OSError(
            f"cannot write in {workdir}: {reason}; the same command goes on from the last "
            "checkpoint once there is room"
        ) from error
