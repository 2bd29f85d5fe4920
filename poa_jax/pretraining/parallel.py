"""One mesh with the axis "data", and the update laid over it.

The update is a function of one device's batch with collectives over "data". Parameters are
replicated; `check_vma=False` keeps autodiff from inserting its own sums over devices, which would
land inside branches that differ between devices. The update averages gradients itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: int | None = None) -> Mesh:
    """Return a mesh of all devices (or the first few) along "data"."""
    available = jax.devices()
    count = len(available) if devices is None else devices
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=available[:count])


def replicated(mesh: Mesh, tree: Any) -> Any:
    """Put a copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def sharded(mesh: Mesh, tree: Any) -> Any:
    """Split the leading axis of this process's host arrays over its devices.

    With several processes each hands in its own rows; the result is the global array.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def parallel_update(
    update: Callable[[Any, Any, Any, Any, jax.Array], tuple[Any, Any]], mesh: Mesh
) -> Callable[[Any, Any, Any, Any, jax.Array], tuple[Any, Any]]:
    """Lay `update(state, batch, draw, hyper, key)` over the mesh, compiled once.

    `state`, `hyper` and `key` are the same on every device; `batch` and `draw` have a leading axis
    that is split, and each device sees its own draw without that axis and a key of its own. The
    state's buffers are given away to the new state.
    """

    def on_device(state: Any, batch: Any, draws: Any, hyper: Any, key: jax.Array):
        draw = jax.tree.map(lambda x: x[0], draws)
        own_key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        return update(state, batch, draw, hyper, own_key)

    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, split, split, whole, whole),
        out_specs=(whole, whole),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)
