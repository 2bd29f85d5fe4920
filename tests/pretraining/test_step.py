"""One whole update against the official step: losses, gradients, optimiser, teacher, trajectory."""

import functools

import golden_params
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_params import under
from golden_step import OFFICIAL, batch, hyper

from poa_jax.elastic.space import Subnet
from poa_jax.models.heads import MultiHead
from poa_jax.models.vit import ViT
from poa_jax.pretraining.losses import Weights
from poa_jax.pretraining.optimizer import init_optimizer, make_groups
from poa_jax.pretraining.param_rules import vit_rules
from poa_jax.pretraining.state import TrainState, make_draw
from poa_jax.pretraining.step import Recipe, losses_and_grads, update


def recipe(bounds=(32, 48, 64), **kwargs):
    return Recipe(
        backbone=ViT(image_size=32, patch_size=8, width=64, depth=5, head_dim=16),
        heads=MultiHead(width=64, prototypes=(32, 48), hidden=40, bottleneck=24),
        bounds=bounds,
        widths=(32, 48, 64),
        max_masked=20,
        weights=Weights(),
        **kwargs,
    )


def state(common):
    params = jax.tree.map(jnp.asarray, golden_params.params(under(common, "student/")))
    teacher = jax.tree.map(jnp.asarray, golden_params.params(under(common, "teacher/")))
    centres = {n: [jnp.zeros(k) for k in (32, 48)] for n in ("cls", "patch")}
    return TrainState(jnp.int32(0), params, teacher, init_optimizer(params), centres)


@functools.partial(jax.jit, static_argnums=0)
def step(fixed, *args):
    groups = make_groups(args[0].params, vit_rules(5, 0.9, 0.2))
    return update(fixed, groups, *args, None, None)


@functools.partial(jax.jit, static_argnums=0)
def grads(fixed, *args):
    return losses_and_grads(fixed, *args, None, None)


def draw(fixed, width, depth):
    return make_draw(Subnet(width, (depth,)), fixed.bounds, fixed.backbone.max_depths)


@pytest.mark.parametrize("bounds", [(32, 48, 64), (64,), (48, 64)], ids=str)
@pytest.mark.parametrize("case", ["ibot", "noibot"])
def test_every_loss_and_gradient_equals_the_official_step(golden, case, bounds):
    common, stored = golden("step_common"), golden(f"step_{case}")
    fixed = recipe(bounds)
    found, summands, parts, _ = grads(
        fixed, state(common), batch(common), draw(fixed, 48, 3), hyper(case == "ibot")
    )
    np.testing.assert_allclose(summands["loss/total"], stored["total_loss"], atol=1e-5)
    np.testing.assert_allclose(parts["koleo"], stored["loss/koleo_loss"], atol=1e-5)
    checked = 1
    for name, official in OFFICIAL.items():
        for head in (0, 1):
            key = f"loss/{official}_{head}"
            if key in stored:
                np.testing.assert_allclose(parts[name][head], stored[key], atol=1e-5)
                checked += 1
            else:
                assert parts[name][head] == 0
    assert checked == sum(k.startswith("loss/") for k in stored)
    total = sum(v for k, v in summands.items() if k != "loss/total")
    np.testing.assert_allclose(total, stored["total_loss"], atol=2e-5)
    expected = golden_params.params(under(stored, "grad/"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("case", ["ibot", "noibot"])
def test_gradient_norms_before_clipping_equal_the_official_ones(golden, case):
    common, stored = golden("step_common"), golden(f"step_{case}")
    fixed = recipe()
    args = (state(common), batch(common), draw(fixed, 48, 3), hyper(case == "ibot"))
    _, metrics = step(fixed, *args)
    found = [metrics["grad_norm/backbone"], metrics["grad_norm/heads"]]
    np.testing.assert_allclose(found, stored["grad_norm_before_clip/values"], rtol=1e-5)


def test_six_steps_follow_the_official_trajectory(golden):
    common = golden("step_common")
    fixed, now, data = recipe(), state(common), batch(common)
    schedule = under(common, "trajectory_hyper/")
    for i, (width, depth) in enumerate(common["trajectory/networks"]):
        numbers = hyper(
            bool(common["trajectory/ibot_active"][i]),
            float(schedule["teacher_temp"][i]),
            lr=float(schedule["lr"][i]),
            last_layer_lr=float(schedule["last_layer_lr"][i]),
            weight_decay=float(schedule["wd"][i]),
            teacher_momentum=float(schedule["momentum"][i]),
        )
        sub = draw(fixed, width, depth)
        _, summands, parts, _ = grads(fixed, now, data, sub, numbers)
        check_log(parts, common, "trajectory", i)
        total = common["trajectory/total"][i]
        np.testing.assert_allclose(summands["loss/total"], total, rtol=1e-5)
        now, metrics = step(fixed, now, data, sub, numbers)
        norms = [metrics["grad_norm/backbone"], metrics["grad_norm/heads"]]
        expected = common["trajectory/grad_norm_backbone_head"][i]
        np.testing.assert_allclose(norms, expected, rtol=2e-4)
    names = [str(n) for n in common["trajectory/param_names"]]
    for tree, key in ((now.params, "final_student_l2"), (now.teacher, "final_teacher_l2")):
        reference = dict(zip(names, common[f"trajectory/{key}"], strict=True))
        # Key biases have no true gradient: Adam turns its rounding noise into steps of full size.
        found = norms_by_name(tree, names)
        np.testing.assert_allclose(found, list(reference.values()), rtol=5e-5)


def check_log(parts, stored, prefix, i):
    """Compare the official log of step i; NaN means that the term was off."""
    np.testing.assert_allclose(parts["koleo"], stored[f"{prefix}/koleo_loss"][i], atol=1e-5)
    for name, official in OFFICIAL.items():
        for head in (0, 1):
            expected = np.nan_to_num(stored[f"{prefix}/{official}_{head}"][i])
            np.testing.assert_allclose(parts[name][head], expected, atol=1e-5, rtol=1e-5)


def norms_by_name(tree, names):
    """The L2 norm of each official parameter, read from our tree."""
    out = []
    for name in names:
        top, rest = name.split(".", 1)
        to_path = golden_params.backbone_path if top == "backbone" else golden_params.head_path
        path, block = to_path(rest)
        leaf = tree["backbone" if top == "backbone" else "heads"]
        for key in path.split("/"):
            leaf = leaf[key]
        out.append(float(jnp.linalg.norm((leaf if block is None else leaf[block]).reshape(-1))))
    return out


def test_centring_follows_the_official_run(golden):
    common, stored = golden("step_common"), golden("step_centering")
    fixed = recipe(targets="centring")
    now, data = state(common), batch(common)
    schedule = under(stored, "centering_hyper/")
    for i, (width, depth) in enumerate(stored["centering/networks"]):
        numbers = hyper(
            True,
            float(schedule["teacher_temp"][i]),
            lr=float(schedule["lr"][i]),
            last_layer_lr=float(schedule["last_layer_lr"][i]),
            weight_decay=float(schedule["wd"][i]),
            teacher_momentum=float(schedule["momentum"][i]),
        )
        sub = draw(fixed, width, depth)
        _, _, parts, _ = grads(fixed, now, data, sub, numbers)
        check_log(parts, stored, "centering", i)
        now, _ = step(fixed, now, data, sub, numbers)
    for head in (0, 1):
        for kind, official in (("cls", "dino"), ("patch", "ibot")):
            expected = stored[f"centering/final_{official}_center{head}"].reshape(-1)
            np.testing.assert_allclose(now.centres[kind][head], expected, atol=1e-5)


def test_one_compilation_serves_twenty_subnetworks_before_and_after_masking(golden):
    common = golden("step_common")
    fixed, data, now = recipe(), batch(common), state(common)
    traces = []

    def counted(*args):
        traces.append(1)
        groups = make_groups(args[0].params, vit_rules(5, 0.9, 0.2))
        return update(fixed, groups, *args, None, None)

    jitted = jax.jit(counted)
    nets = [(w, d) for w in (32, 48, 64) for d in (1, 2, 3, 4, 5)]
    nets += [(w, d) for w in (32, 48, 64) for d in (2, 4)][:5]
    for i in range(40):
        sub = draw(fixed, *nets[i % 20])
        numbers = hyper(i >= 20, lr=1e-4 * i, last_layer_lr=0.0 if i < 5 else 1e-4)
        now, metrics = jitted(now, data, sub, numbers)
        assert np.isfinite(metrics["loss/total"])
        assert (metrics["loss/patch"] > 0) == (i >= 20)
    assert len(traces) == 1
    assert jitted._cache_size() == 1
    assert int(now.step) == 40


def test_masked_and_sliced_students_have_the_same_losses_and_gradients(golden):
    common = golden("step_common")
    for width in (32, 48, 64):
        results = []
        for bounds in ((64,), (32, 48, 64)):
            fixed = recipe(bounds)
            args = (state(common), batch(common), draw(fixed, width, 4), hyper(True))
            results.append(grads(fixed, *args)[:3])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *results)
