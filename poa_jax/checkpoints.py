"""Checkpoints of a run (Orbax), in and out.

A checkpoint is `checkpoints/<step>/` with two items: `state`, every array an update reads or
writes, and `meta`, a small JSON with the position in the data. A save appears whole or not at all
(Orbax writes under a temporary name and renames), its checksums with it.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from poa_jax import checksums
from poa_jax.messages import LOGGER
from poa_jax.pretraining.state import TrainState

FOLDER = "checkpoints"
CONFIG = "config.json"


class Checkpoints:
    """The checkpoints of one workdir; saving goes on in the background.

    Args:
      workdir: the run's folder.
      keep: how many checkpoints stay; older ones are deleted.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2) -> None:
        self.folder = Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._saving = None
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Start saving; returns once the arrays are copied. Does nothing if `step` is saved.

        Raises:
          ValueError: if the state has values that are not finite; nothing is saved.
          OSError: if this checkpoint, or the one before, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        tree = _as_dict(state)
        if bad := _not_finite(tree):
            raise ValueError(
                f"after step {step} '{bad}' has values that are not finite; the run stops, and its "
                "last checkpoint is from before"
            )
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(dict(meta))
        )
        with self._write_errors():
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=items)

    def restore_newest(self, like: Any) -> tuple[TrainState, dict[str, Any]] | None:
        """Return the newest state that can be read, with its meta; None without checkpoints.

        An unreadable checkpoint is reported, set aside as `<step>.unreadable`, and the one before
        is taken. The arrays get the shapes, types and shardings of `like` (a `TrainState` of arrays
        or shapes), so the number of devices may differ from that of the run that saved them.

        Raises:
          ValueError: if there are checkpoints but none can be read, or they hold arrays of another
            architecture.
        """
        failures: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, like)
            except Exception as error:  # Orbax, TensorStore and JSON each have their own
                LOGGER.warning("checkpoint %s %s", self.folder / str(step), _why(error))
                failures[step] = error
                continue
            if failures:
                self._set_aside(failures)
                LOGGER.warning("going back to the checkpoint before, of step %d", step)
            return restored
        if not failures:
            return None
        for error in failures.values():
            if isinstance(error, _OtherArchitecture):
                raise ValueError(f"the checkpoint in {self.folder} {error}") from None
        raise ValueError(
            f"none of the checkpoints in {self.folder} can be read "
            f"(steps {', '.join(map(str, sorted(failures)))}); delete the folder to start anew"
        )

    def _restore(self, step: int, like: Any) -> tuple[TrainState, dict[str, Any]]:
        checksums.check(self.folder / str(step))
        target = jax.tree.map(_target, _as_dict(like))
        _check_same_shapes(self.folder / str(step) / "state", target)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        return _from_dict(restored["state"]), restored["meta"]

    def _seal(self) -> None:
        """Called on one process, in the background, when only the rename of a save is left."""
        for folder in self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            checksums.seal(folder)

    def _set_aside(self, steps: Iterable[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                path = self.folder / str(step)
                aside = path.with_name(f"{step}.unreadable")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("unreadable checkpoints set aside")
        self._manager.reload()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Saving goes on in the background, so its errors may come at any later call."""
        try:
            yield
        except Exception as error:
            raise OSError(f"cannot save a checkpoint in {self.folder}: {_reason(error)}") from error

    @property
    def latest_step(self) -> int | None:
        """The newest step saved."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Wait until everything is on disk; OSError if something cannot be written."""
        with self._write_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving; OSError if something cannot be written."""
        with self._write_errors():
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What ended the run is the news, not what became of the last save.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()


class _OtherArchitecture(ValueError):
    """Arrays of other names or shapes; the message goes on after "checkpoint …"."""


def _why(error: Exception) -> str:
    is_other = isinstance(error, _OtherArchitecture)
    return str(error) if is_other else f"cannot be read: {_reason(error)}"


def _reason(error: Exception) -> str:
    """The first line of an error; TensorStore's go on for pages."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". See full TensorStore")[0][:200]


def has_any(workdir: str | os.PathLike) -> bool:
    """Whether a run has saved something to go on from."""
    return bool(_steps(workdir))


def newest_step(workdir: str | os.PathLike) -> int:
    """Return the newest complete checkpoint of a run.

    Raises:
      FileNotFoundError: if there is none.
    """
    steps = _steps(workdir)
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {Path(workdir) / FOLDER}; train first, or name another workdir"
        )
    return max(steps)


def _steps(workdir: str | os.PathLike) -> list[int]:
    folder = Path(workdir) / FOLDER
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return [int(name) for name in names if name.isdigit()]


def restore_teacher(step_folder: str | os.PathLike, like: Mapping[str, Any]) -> dict[str, Any]:
    """Read only the teacher's backbone from `checkpoints/<step>`; `like` gives the shapes.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      ValueError: if the checkpoint holds another architecture or cannot be read.
    """
    folder = Path(step_folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint at {step_folder}")
    item = {"teacher": {"backbone": jax.tree.map(_target, dict(like))}}
    # As NumPy arrays: the devices that saved it need not exist here.
    arguments = jax.tree.map(lambda t: ocp.RestoreArgs(np.ndarray, dtype=t.dtype), item)
    try:
        checksums.check(folder)
        _check_same_shapes(folder / "state", item)
        with ocp.PyTreeCheckpointer() as reader:
            restored = reader.restore(
                folder / "state",
                args=ocp.args.PyTreeRestore(item, restore_args=arguments, partial_restore=True),
            )
    except Exception as error:
        raise ValueError(f"the checkpoint {step_folder} {_why(error)}") from error
    return jax.tree.map(jnp.asarray, restored["teacher"]["backbone"])


def _check_same_shapes(folder: Path, target: Mapping[str, Any]) -> None:
    """Compare the stored tree with the one expected, before anything is read."""
    with ocp.StandardCheckpointer() as reader:
        stored = leaves(reader.metadata(folder).item_metadata.tree)
    for name, array in leaves(target).items():
        if name not in stored:
            raise _OtherArchitecture(f"is one of another architecture: it has no '{name}'")
        if tuple(stored[name].shape) != tuple(array.shape):
            raise _OtherArchitecture(
                f"is one of another architecture: '{name}' has shape {tuple(stored[name].shape)}, "
                f"this configuration expects {tuple(array.shape)}"
            )


def leaves(tree: Any) -> dict[str, Any]:
    """Return {"a/b/0": leaf} of nested dicts and lists."""
    if isinstance(tree, list | tuple):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping):
        return {"": tree}
    flat = ((key, leaves(value)) for key, value in tree.items())
    return {f"{key}/{rest}".rstrip("/"): x for key, inner in flat for rest, x in inner.items()}


def _not_finite(tree: Any) -> str | None:
    """Return the name of an array that holds a value that is not finite."""
    for name, array in leaves(jax.device_get(tree)).items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            return name
    return None


def _target(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _as_dict(state: TrainState) -> dict[str, Any]:
    out = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return out | {"opt": state.opt._asdict()}


def _from_dict(tree: Mapping[str, Any]) -> TrainState:
    return TrainState(**{**tree, "opt": optax.ScaleByAdamState(**tree["opt"])})
