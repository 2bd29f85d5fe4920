"""Checkpoints of a run (Orbax), and folders of static backbones: in and out.

A run's checkpoint is `checkpoints/<step>/` with two items: `state`, every array an update reads or
writes, and `meta`, a small JSON with the position in the data. A save appears whole or not at all
(Orbax writes under a temporary name and renames). A static backbone is `config.json` and
`weights.npz`; nothing is ever unpickled.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import logging

from poa_jax.elastic.space import Subnet
from poa_jax.models.vit import ViT
from poa_jax.pretraining.state import TrainState
from poa_jax.supernet import Backbone

FOLDER = "checkpoints"
BACKBONE_KIND = "poa_jax static backbone"
WEIGHTS = "weights.npz"
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
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._options = options
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Start saving; returns once the arrays are copied. Does nothing if `step` is saved."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_dict(state)), meta=ocp.args.JsonSave(dict(meta))
        )
        self._manager.save(step, args=items)

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Return the newest state that can be read, with its meta; None without checkpoints.

        An unreadable checkpoint is reported, set aside as `<step>.unreadable`, and the one before
        is taken. The arrays get the shapes, types and shardings of `like`, so the number of
        devices may differ from that of the run that saved them.

        Raises:
          ValueError: if there are checkpoints but none can be read, or the newest holds arrays of
            another architecture.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        failures = []
        for step in steps:
            try:
                restored = self._restore(step, like)
            except _OtherArchitecture as error:
                raise ValueError(str(error)) from None
            except Exception as error:  # Orbax, TensorStore and JSON each have their own
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                logging.warning("checkpoint %s cannot be read: %s", self.folder / str(step), reason)
                failures.append(step)
                continue
            if failures:
                self._set_aside(failures)
                logging.warning("going on from the checkpoint before, of step %d", step)
            return restored
        if steps:
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read "
                f"(steps {', '.join(map(str, sorted(steps)))}); delete the folder to start anew"
            )
        return None

    def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        target = jax.tree.map(_target, _as_dict(like))
        _check_same_shapes(self.folder / str(step) / "state", target)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        return _from_dict(restored["state"]), restored["meta"]

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            path = self.folder / str(step)
            aside = path.with_name(f"{step}.unreadable")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        self._manager.reload()

    @property
    def latest_step(self) -> int | None:
        """The newest step saved."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _OtherArchitecture(ValueError):
    pass


def newest_step(workdir: str | os.PathLike) -> int:
    """Return the newest complete checkpoint of a run.

    Raises:
      FileNotFoundError: if there is none.
    """
    folder = Path(workdir) / FOLDER
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    steps = [int(name) for name in names if name.isdigit()]
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {folder}; train first, or name another workdir")
    return max(steps)


def restore_teacher(step_folder: str | os.PathLike, like: Mapping[str, Any]) -> dict[str, Any]:
    """Read only the teacher's backbone from `checkpoints/<step>`; `like` gives the shapes.

    Raises:
      ValueError: if the checkpoint holds another architecture or cannot be read.
    """
    folder = Path(step_folder).absolute() / "state"
    item = {"teacher": {"backbone": jax.tree.map(_target, dict(like))}}
    _check_same_shapes(folder, item)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arguments = jax.tree.map(lambda t: ocp.ArrayRestoreArgs(dtype=t.dtype, sharding=one), item)
    try:
        with ocp.PyTreeCheckpointer() as reader:
            restored = reader.restore(
                folder,
                args=ocp.args.PyTreeRestore(item, restore_args=arguments, partial_restore=True),
            )
    except Exception as error:
        raise ValueError(f"the checkpoint {step_folder} cannot be read: {error}") from error
    return jax.tree.map(jnp.asarray, restored["teacher"]["backbone"])


def _check_same_shapes(folder: Path, target: Mapping[str, Any]) -> None:
    """Compare the stored tree with the one expected, before anything is read."""
    with ocp.StandardCheckpointer() as reader:
        stored = reader.metadata(folder).item_metadata.tree
    flat = flax.traverse_util.flatten_dict(_plain(stored), sep="/")
    wanted = flax.traverse_util.flatten_dict(_plain(target), sep="/")
    for name, array in wanted.items():
        if name not in flat:
            raise _OtherArchitecture(
                f"{folder.parent} is a checkpoint of another architecture: it has no '{name}'"
            )
        if tuple(flat[name].shape) != tuple(array.shape):
            raise _OtherArchitecture(
                f"{folder.parent} is a checkpoint of another architecture: '{name}' has shape "
                f"{tuple(flat[name].shape)}, this configuration expects {tuple(array.shape)}"
            )


def _plain(tree: Any) -> Any:
    """Lists become dicts of positions, so that paths compare."""
    if isinstance(tree, Mapping):
        return {str(k): _plain(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return {str(i): _plain(v) for i, v in enumerate(tree)}
    return tree


def _target(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _as_dict(state: TrainState) -> dict[str, Any]:
    out = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return out | {"opt": state.opt._asdict()}


def _from_dict(tree: Mapping[str, Any]) -> TrainState:
    return TrainState(**{**tree, "opt": optax.ScaleByAdamState(**tree["opt"])})


def save_backbone(backbone: Backbone, path: str | os.PathLike) -> Path:
    """Write a static backbone as a folder, under a temporary name until it is whole.

    Raises:
      FileExistsError: if `path` exists and is not an earlier static backbone.
    """
    path = Path(path)
    if path.exists() and not is_backbone(path):
        raise FileExistsError(f"{path} exists and is not a static backbone; name another folder")
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    flat = flax.traverse_util.flatten_dict(dict(backbone.params), sep="/")
    np.savez(unfinished / WEIGHTS, **{k: np.asarray(v) for k, v in flat.items()})
    (unfinished / CONFIG).write_text(json.dumps(_describe(backbone), indent=2) + "\n")
    if path.exists():
        shutil.rmtree(path)
    unfinished.rename(path)
    return path


def _describe(backbone: Backbone) -> dict[str, Any]:
    model = backbone.model
    skipped = ("parent", "name")
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    fields = {k: v for k, v in fields.items() if k not in skipped}
    return {
        "kind": BACKBONE_KIND,
        "family": "vit",
        "subnet": str(backbone.subnet),
        "model": fields | {"dtype": jnp.dtype(model.dtype).name},
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "params": backbone.num_params,
        "macs": backbone.macs(),
        "jax": jax.__version__,
    }


def is_backbone(path: str | os.PathLike) -> bool:
    """Whether a folder holds a static backbone."""
    config = Path(path) / CONFIG
    try:
        return json.loads(config.read_text()).get("kind") == BACKBONE_KIND
    except (OSError, ValueError, AttributeError):
        return False


def load_backbone(path: str | os.PathLike) -> Backbone:
    """Read a folder that `save_backbone` wrote.

    Raises:
      FileNotFoundError: for a missing file.
      ValueError: if weights and description do not fit each other.
    """
    path = Path(path)
    about = json.loads((path / CONFIG).read_text())
    model = ViT(**about["model"] | {"dtype": jnp.dtype(about["model"]["dtype"])})
    try:
        with np.load(path / WEIGHTS, allow_pickle=False) as stored:
            flat = {name: jnp.asarray(stored[name]) for name in stored.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} has no {WEIGHTS}") from None
    except Exception as error:
        raise ValueError(f"{path / WEIGHTS} cannot be read: {error}") from None
    image = jnp.zeros((1, model.image_size, model.image_size, 3))
    expected = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    wanted = flax.traverse_util.flatten_dict(expected, sep="/")
    for name in sorted(set(wanted) | set(flat)):
        if name not in flat or name not in wanted or flat[name].shape != wanted[name].shape:
            raise ValueError(f"{path / WEIGHTS} does not fit {path / CONFIG} at '{name}'")
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    subnet = Subnet.from_name(about["subnet"])
    return Backbone(model, params, subnet, tuple(about["mean"]), tuple(about["std"]))
