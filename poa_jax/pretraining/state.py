"""What an update changes, and the sub-network it is asked to train."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from poa_jax.elastic.space import Subnet, depth_mask
from poa_jax.models.heads import MultiHead
from poa_jax.pretraining.optimizer import init_optimizer

Centres = dict[str, list[jax.Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything one update reads and writes; with the step number and the config, a whole run.

    Attributes:
      step: updates done, int32 ().
      params: the students' `{"backbone": …, "heads": …}`; intact and elastic share them.
      teacher: their moving average, same structure.
      opt: Adam moments.
      centres: running means of teacher logits, `{"cls": [(K,)…], "patch": [(K,)…]}`; moved only
        where centring makes the targets.
    """

    step: jax.Array
    params: Any
    teacher: Any
    opt: optax.ScaleByAdamState
    centres: Centres


def init_state(backbone: nn.Module, heads: MultiHead, image_size: int, seed: int) -> TrainState:
    """Return the state before the first update; teacher and students start equal."""
    params = init_params(backbone, heads, image_size, seed)
    centres = {
        name: [jnp.zeros((k,), jnp.float32) for k in heads.prototypes] for name in ("cls", "patch")
    }
    teacher = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, teacher, init_optimizer(params), centres)


def init_params(
    backbone: nn.Module, heads: MultiHead, image_size: int, seed: int
) -> dict[str, Any]:
    """Return the parameters a run of `seed` starts from."""
    backbone_key, heads_key = jax.random.split(jax.random.key(seed))
    image = jnp.zeros((1, image_size, image_size, 3))
    return {
        "backbone": backbone.init(backbone_key, image)["params"],
        "heads": heads.init(heads_key, jnp.zeros((1, heads.width)))["params"],
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """One sub-network as traced values, so that a compiled step serves all of them.

    Attributes:
      branch: which width bound runs, int32 ().
      width: the width in use, int32 (); it masks where the bound is wider.
      keep: for each stage (L,) booleans, True for blocks that run.
    """

    branch: jax.Array
    width: jax.Array
    keep: tuple[jax.Array, ...]


def make_draw(subnet: Subnet, bounds: tuple[int, ...], max_depths: tuple[int, ...]) -> Draw:
    """Return the traced form of `subnet`: it runs under the narrowest bound that holds it."""
    branch = int(np.searchsorted(bounds, subnet.width))
    if branch == len(bounds):
        raise ValueError(f"width {subnet.width} is above the largest bound {bounds[-1]}")
    keep = depth_mask(subnet.depths, max_depths)
    return Draw(np.int32(branch), np.int32(subnet.width), keep)


def stack_draws(draws: list[Draw]) -> Draw:
    """Stack the draws of several devices on a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *draws)
