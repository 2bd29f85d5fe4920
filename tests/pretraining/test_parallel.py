"""The update over four devices against what single devices compute."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from poa_jax.data.crops import normalise
from poa_jax.data.pipeline import TrainPipeline
from poa_jax.elastic.space import Subnet
from poa_jax.models import build
from poa_jax.pretraining import loop, parallel
from poa_jax.pretraining.schedules import Hyper
from poa_jax.pretraining.state import init_state, make_draw, stack_draws
from poa_jax.pretraining.step import losses_and_grads

# Images of one device are spread apart by KoLeo, and drop path draws per device: without them a
# global batch has one loss, however it is laid out.
SETTINGS = {
    "model__depth": 2,
    "model__drop_path": 0.0,
    "elastic__min_depth": 1,
    "elastic__width_bounds": "max",
    "heads__prototypes": 8,
    "loss__koleo": 0.0,
}
HYPER = loop.as_arrays(Hyper(1e-3, 1e-3, 0.04, 0.9, 0.05, True))


def prepared(**changed):
    config = tiny_run.config(**SETTINGS | changed)
    make = functools.partial(init_state, build.backbone(config), build.heads(config), 16, 0)
    batch, _ = TrainPipeline.from_config(config, tiny_run.images(40)).batch_at(0)
    state = jax.jit(make)()
    # A teacher as after some steps: apart from the students.
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(0, 0.02, x.shape), x.dtype), state.teacher
    )
    return config, batch, jax.tree.map(np.asarray, dataclasses.replace(state, teacher=noisy))


def draws(config, fixed, names):
    subnets = [Subnet.from_name(name) for name in names]
    return stack_draws([make_draw(s, fixed.bounds, fixed.backbone.max_depths) for s in subnets])


def test_one_update_of_four_devices_is_that_of_one_on_the_same_batch():
    config, batch, start = prepared()
    found = {}
    for devices in (1, 4):
        mesh = parallel.make_mesh(devices)
        assert mesh.size == devices
        fixed = loop.make_recipe(config, devices, build.space(config))
        state = parallel.replicated(mesh, jax.tree.map(jnp.asarray, start))
        step = loop.compile_update(config, fixed, state.params, mesh)
        drawn = draws(config, fixed, ["w16-d1"] * devices)
        inputs = parallel.sharded(mesh, (batch, drawn))
        found[devices] = jax.device_get(step(state, *inputs, HYPER, jax.random.key(1)))
    (one, metrics_one), (four, metrics_four) = found[1], found[4]
    assert metrics_one["loss/patch"] > 0
    assert metrics_one.keys() == metrics_four.keys()
    for name, value in metrics_one.items():
        np.testing.assert_allclose(metrics_four[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    # Adam's first step is ±lr wherever the gradient is not zero: what is compared is its moments,
    # and parameters where rounding cannot turn the sign.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, four.opt.mu, one.opt.mu)
    jax.tree.map(close, four.opt.nu, one.opt.nu)
    clear = jax.tree.map(lambda m: abs(m) > 1e-5, one.opt.mu)
    jax.tree.map(lambda a, b, c: close(a[c], b[c]), four.params, one.params, clear)
    assert four.step == one.step == 1


def test_devices_with_networks_of_their_own_average_their_gradients():
    # Centring looks at nothing but the device's own images, so each gradient can be had alone.
    config, batch, start = prepared(loss__targets="centring")
    space = build.space(config)
    fixed = loop.make_recipe(config, 4, space)
    drawn = draws(config, fixed, ["w16-d1", "w32-d1", "w16-d2", "w32-d2"])

    def grads(state, batch, draw, axis_name):
        crops = {
            name: normalise(batch[name], (0.5,) * 3, (0.2,) * 3)
            for name in ("global_crops", "local_crops")
        }
        batch = crops | {"masks": batch["masks"]}
        found, summands, _, _ = losses_and_grads(fixed, state, batch, draw, HYPER, None, axis_name)
        return found, summands

    def averaged(state, batch, draw, hyper, key):
        return state, jax.lax.pmean(grads(state, batch, draw, parallel.AXIS), parallel.AXIS)

    mesh = parallel.make_mesh()
    step = parallel.parallel_update(averaged, mesh)
    state = parallel.replicated(mesh, jax.tree.map(jnp.asarray, start))
    inputs = parallel.sharded(mesh, (batch, drawn))
    _, (found, losses) = step(state, *inputs, HYPER, jax.random.key(1))

    alone = jax.jit(functools.partial(grads, axis_name=None))
    parts = [alone(start, _part(batch, i, 4), _part(drawn, i)) for i in range(4)]
    totals = [float(part[1]["loss/total"]) for part in parts]
    assert len({round(total, 4) for total in totals}) == 4
    np.testing.assert_allclose(losses["loss/total"], np.mean(totals), rtol=1e-5)
    mean = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *[part[0] for part in parts])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, mean)


def _part(tree, i, size=None):
    """Row i of every array; with `size`, rows [i·size, (i + 1)·size)."""
    rows = i if size is None else slice(i * size, (i + 1) * size)
    return jax.tree.map(lambda x: x[rows], tree)


def test_rows_of_the_batch_go_to_the_devices_in_order(mesh):
    found = parallel.sharded(mesh, {"x": np.arange(8)})["x"]
    shards = sorted(found.addressable_shards, key=lambda s: s.device.id)
    assert [s.data.tolist() for s in shards] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(("batch", "nearest"), [(20, 16), (28, 32), (8, 16)])
def test_a_batch_must_divide_by_devices_and_mask_groups(batch, nearest):
    config = tiny_run.config(train__batch_size=batch)
    with pytest.raises(ValueError, match=f"{batch} cannot be divided over 4 .* is {nearest}"):
        loop.check(config, 4)
    loop.check(config, 1)
