"""`poa_jax.load` and `poa_jax.save`: folders in, networks out, and back."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp

from poa_jax import backbone_folder, checkpoints, config, config_check
from poa_jax.models import build
from poa_jax.supernet import Backbone, Supernet


def load(path: str | os.PathLike) -> Supernet | Backbone:
    """Load what a folder holds.

    Args:
      path: the workdir of a run (its newest checkpoint), one checkpoint of it
        (`workdir/checkpoints/<step>`), or a static backbone that `save` wrote.

    Returns:
      A `Supernet` with the teacher's parameters, or a `Backbone`.

    Raises:
      FileNotFoundError: for a missing folder, or one that holds neither.
      ValueError: for files that cannot be read or do not fit each other.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder at {path}, expected a workdir or a static backbone")
    # A damaged description must not make a static backbone look like a workdir.
    if backbone_folder.is_backbone(path) or (path / backbone_folder.WEIGHTS).is_file():
        return backbone_folder.load(path)
    if path.parent.name == checkpoints.FOLDER and path.name.isdigit():
        return load_supernet(path.parent.parent, int(path.name))
    return load_supernet(path)


def load_supernet(workdir: str | os.PathLike, step: int | None = None) -> Supernet:
    """Load a run's supernet from checkpoint `step`, or from the newest."""
    workdir = Path(workdir)
    if not (workdir / checkpoints.CONFIG).is_file():
        raise FileNotFoundError(
            f"{workdir} holds no {checkpoints.CONFIG}: it is neither the workdir of a run nor a "
            "static backbone"
        )
    c = config.restore(workdir / checkpoints.CONFIG)
    config_check.check(c)
    step = checkpoints.newest_step(workdir) if step is None else step
    supernet = untrained(c)
    params = checkpoints.restore_teacher(workdir / checkpoints.FOLDER / str(step), supernet.params)
    return Supernet(supernet.model, params, supernet.space, supernet.mean, supernet.std, step)


def untrained(c, seed: int | None = None) -> Supernet:
    """Return the supernet of a configuration before training.

    With `seed` None its parameters are shapes only (`jax.ShapeDtypeStruct`).
    """
    model = build.backbone(c)
    image = jnp.zeros((1, model.image_size, model.image_size, 3))
    if seed is None:
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    else:
        params = jax.jit(model.init)(jax.random.key(seed), image)["params"]
    return Supernet(model, params, build.space(c), tuple(c.data.mean), tuple(c.data.std))


def save(backbone: Backbone, path: str | os.PathLike) -> Path:
    """Write a static backbone as a folder: `config.json` and `weights.npz`.

    Raises:
      TypeError: for a supernet, whose folder is its workdir.
      FileExistsError: if the folder holds something else.
    """
    if not isinstance(backbone, Backbone):
        raise TypeError(f"expected a static Backbone (extract one), got {type(backbone).__name__}")
    return backbone_folder.save(backbone, path)
