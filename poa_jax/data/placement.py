"""Where crops are made: on the host, on the device, or the geometry here and the colours there.

`TrainPipeline` does the host's part. On the devices, `cutter` gives what happens to a batch before
the update, and `device_part` what the update does to it first.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poa_jax.data import resident
from poa_jax.data.crops import CropRecipe, normalise
from poa_jax.data.device_photometric import finish_crops
from poa_jax.data.sources import Source

CROPS = ("global_crops", "local_crops")


def device_part(config: Any) -> Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """Return what the update does to a batch first: float32 crops, normalised, and its masks.

    A pure function of one device's rows, to be called inside jit.
    """
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    recipe, seed = CropRecipe.from_config(config), config.seed

    def prepare(batch):
        if config.data.placement == "host":
            crops = {name: normalise(batch[name], mean, std) for name in CROPS}
        else:
            crops = finish_crops(batch, recipe, seed, mean, std)
        return crops | {"masks": batch["masks"]}

    return prepare


def cutter(
    config: Any, source: Source, mesh: Mesh, axis: str
) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
    """Return what is done to a batch once it is on the devices: with "resident", crops are cut.

    Reads the whole source for "resident" and puts a copy of it on every device. Raises ValueError
    if it does not fit (`resident.load`).
    """
    if config.data.placement != "resident":
        return lambda batch: batch
    images = resident.load(source, config.data.resident_limit, config.data.max_bad_fraction)
    images = jax.device_put(images, NamedSharding(mesh, PartitionSpec()))
    cut = partial(resident.cut_crops, recipe=CropRecipe.from_config(config), seed=config.seed)
    split, whole = PartitionSpec(axis), PartitionSpec()
    mapped = jax.shard_map(
        cut, mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False
    )
    return partial(jax.jit(mapped), images)
