"""Training of every family: part of the conformance list, see `elastic_conformance.py`.

One compiled update per family: 30 steps that lower the loss, a checkpoint in their middle from
which the rest comes out bit for bit the same, a sub-network cut out of the result, saved, loaded.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from elastic_conformance import Row

import poa_jax
from poa_jax.checkpoints import Checkpoints
from poa_jax.pretraining.losses import Weights
from poa_jax.pretraining.optimizer import make_groups
from poa_jax.pretraining.param_rules import rules_for
from poa_jax.pretraining.schedules import Hyper
from poa_jax.pretraining.state import init_state, make_draw
from poa_jax.pretraining.step import Recipe, update
from poa_jax.supernet import Supernet

STEPS, MIDDLE, IMAGES = 30, 15, 4
NUMBERS = Hyper(2e-3, 2e-3, 0.04, 0.99, 0.07, True)


def _batch(row: Row, step: int) -> dict[str, np.ndarray]:
    """Return crops of four pictures, noisy anew in every step, and masks."""
    pictures = np.random.default_rng(0).normal(size=(IMAGES, 1, 1, 1, 3))
    rng = np.random.default_rng(step + 1)
    size, places = row.backbone.image_size, int(np.prod(row.backbone.mask_grid))

    def crops(views: int, size: int) -> np.ndarray:
        noise = rng.normal(size=(IMAGES, views, size, size, 3))
        return (pictures + 0.5 * noise).astype(np.float32)

    masks = np.zeros((IMAGES, 2, places), bool)
    masks[:, :, : places // 2] = True
    return {
        "global_crops": crops(2, size),
        "local_crops": crops(2, row.local_size),
        "masks": masks,
    }


def check_training(row: Row, folder: Path) -> None:
    """Train, stop and go on, cut out, save and load."""
    widths = row.space.widths
    places = IMAGES * 2 * int(np.prod(row.backbone.mask_grid))
    recipe = Recipe(row.backbone, row.heads, widths[-1:], widths, places, Weights())
    make = jax.jit(lambda: init_state(row.backbone, row.heads, row.backbone.image_size, 0))
    first = make()
    groups = make_groups(first.params, rules_for(row.backbone, 1.0, 1.0))

    @jax.jit
    def step(state, batch, draw, key):
        return update(recipe, groups, state, batch, draw, NUMBERS, key, None)

    def run(state, start: int, stop: int):
        losses = []
        for i in range(start, stop):
            subnet = row.space.draw(0, 0, i)
            draw = make_draw(subnet, recipe.bounds, row.backbone.max_depths)
            key = jax.random.fold_in(jax.random.key(1), i)
            state, metrics = step(state, _batch(row, i), draw, key)
            losses.append(float(metrics["loss/total"]))
        return state, losses

    middle, early = run(first, 0, MIDDLE)
    last, late = run(middle, MIDDLE, STEPS)
    assert np.isfinite(early + late).all()
    assert np.mean(late[-5:]) < np.mean(early[:5]) - 0.1
    assert step._cache_size() == 1
    with Checkpoints(folder) as saved:
        saved.save(MIDDLE, middle, {"step": MIDDLE})
        saved.wait()
        restored, _ = saved.restore_newest(jax.tree.map(_shape, middle))
    again, losses = run(restored, MIDDLE, STEPS)
    assert losses == late
    jax.tree.map(np.testing.assert_array_equal, again, last)
    _check_saved_network(row, last.teacher["backbone"], folder / "small")


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _check_saved_network(row: Row, teacher: dict, folder: Path) -> None:
    net = Supernet(row.backbone, teacher, row.space, (0.5,) * 3, (0.2,) * 3)
    small = net.extract(row.space.smallest)
    poa_jax.save(small, folder)
    loaded = poa_jax.load(folder)
    assert (loaded.model, loaded.subnet) == (small.model, small.subnet)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, small.params)
    images = jnp.asarray(_batch(row, 0)["local_crops"][:, 0])
    elastic = net.apply(images, subnet=row.space.smallest)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, loaded(images), elastic)
