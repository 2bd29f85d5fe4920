"""Folders of static backbones, `config.json` and `weights.npz`: in and out, never unpickled."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.elastic.space import Subnet
from poa_jax.models import build
from poa_jax.supernet import Backbone

KIND = "poa_jax static backbone"
WEIGHTS = "weights.npz"
CONFIG = "config.json"


def save(backbone: Backbone, path: str | os.PathLike) -> Path:
    """Write a static backbone as a folder, under a temporary name until it is whole.

    Raises:
      FileExistsError: if `path` exists and is not an earlier static backbone.
    """
    path = Path(path)
    if path.exists() and not is_backbone(path):
        raise FileExistsError(f"{path} exists and is not a static backbone; name another folder")
    unfinished = path.with_name(f".{path.name}.unfinished")
    replaced = path.with_name(f".{path.name}.replaced")
    for left_over in (unfinished, replaced):
        shutil.rmtree(left_over, ignore_errors=True)
    unfinished.mkdir(parents=True)
    flat = flax.traverse_util.flatten_dict(dict(backbone.params), sep="/")
    np.savez(unfinished / WEIGHTS, **{k: np.asarray(v) for k, v in flat.items()})
    (unfinished / CONFIG).write_text(json.dumps(_describe(backbone), indent=2) + "\n")
    if path.exists():
        path.rename(replaced)
    unfinished.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)
    return path


def _describe(backbone: Backbone) -> dict[str, Any]:
    model = backbone.model
    skipped = ("parent", "name")
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    fields = {k: v for k, v in fields.items() if k not in skipped}
    return {
        "kind": KIND,
        "family": build.family(model),
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
    try:
        return json.loads((Path(path) / CONFIG).read_text()).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def load(path: str | os.PathLike) -> Backbone:
    """Read a folder that `save` wrote.

    Raises:
      FileNotFoundError: for a missing file.
      ValueError: for a file that cannot be read, or weights that do not fit the description.
    """
    path = Path(path)
    flat = _read_weights(path / WEIGHTS)
    try:
        about = json.loads((path / CONFIG).read_text())
        fields = {name: _hashable(value) for name, value in about["model"].items()}
        fields["dtype"] = jnp.dtype(fields["dtype"])
        model = build.FAMILIES[about["family"]](**fields)
        subnet = Subnet.from_name(about["subnet"])
        mean, std = tuple(about["mean"]), tuple(about["std"])
        image = jnp.zeros((1, model.image_size, model.image_size, 3))
        expected = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        if about["kind"] != KIND or subnet is None:
            raise ValueError("it is of another kind")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path / CONFIG} describes no static backbone ({reason})") from error
    _check_fit(path, flat, flax.traverse_util.flatten_dict(expected, sep="/"))
    params = flax.traverse_util.unflatten_dict(
        {name: jnp.asarray(array) for name, array in flat.items()}, sep="/"
    )
    return Backbone(model, params, subnet, mean, std)


def _hashable(value: Any) -> Any:
    """Return a JSON value with tuples for lists, as modules take them."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}, expected a static backbone")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise ValueError(f"{path} cannot be read: {error}") from error


def _check_fit(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted({*wanted, *found}):
        if name not in found:
            problem = f"has no '{name}'"
        elif name not in wanted:
            problem = f"has '{name}', which no such network has"
        elif found[name].shape != wanted[name].shape or found[name].dtype != wanted[name].dtype:
            problem = (
                f"has '{name}' as {found[name].dtype} {found[name].shape}, expected "
                f"{wanted[name].dtype} {wanted[name].shape}"
            )
        else:
            continue
        raise ValueError(f"{path / WEIGHTS} does not fit {path / CONFIG}: it {problem}")
