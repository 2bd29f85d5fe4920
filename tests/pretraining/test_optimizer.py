import dataclasses

import golden_params
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from poa_jax.pretraining import optimizer
from poa_jax.pretraining.optimizer import (
    Rules,
    adamw_step,
    ema,
    init_optimizer,
    make_groups,
    match,
)
from poa_jax.pretraining.param_rules import vit_rules
from poa_jax.pretraining.schedules import Hyper


@pytest.fixture(scope="module")
def student(golden):
    return golden_params.params(golden_params.under(golden("step_common"), "student/"))


@pytest.fixture(scope="module")
def groups(student):
    return make_groups(student, vit_rules(depth=5, layer_decay=0.9, patch_embed_lr=0.2))


def stored_hyper(data) -> Hyper:
    names = ("lr", "last_layer_lr", "wd", "momentum", "teacher_temp")
    return Hyper(*(float(data[f"hyper/{name}"]) for name in names), patch_masking=True)


@pytest.fixture(scope="module")
def updated(golden, student, groups):
    """One update on the stored gradients with and without patch loss: params, state, norms."""
    step = jax.jit(lambda *args: adamw_step(*args, groups))
    grads = {
        name: golden_params.params(golden_params.under(golden(name), "grad/"))
        for name in ("step_ibot", "step_noibot")
    }
    return {
        name: step(grad, init_optimizer(student), student, stored_hyper(golden(name)))
        for name, grad in grads.items()
    }


def assert_trees_close(actual, expected, **tolerance):
    actual, expected = flatten_dict(actual, sep="/"), flatten_dict(expected, sep="/")
    assert actual.keys() == expected.keys()
    for path, value in actual.items():
        np.testing.assert_allclose(value, expected[path], **tolerance, err_msg=path)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "last_layer"])
def test_groups_equal_official_for_every_parameter(golden, groups, name):
    data = golden("param_groups")
    official = {
        "lr": "lr_multiplier",
        "weight_decay": "wd_multiplier",
        "last_layer": "is_last_layer",
    }[name]
    ours = flatten_dict(getattr(groups, name), sep="/")
    seen = set()
    sources = [
        ("vit_backbone", "backbone/", golden_params.backbone_path),
        ("head_vit", "heads/", golden_params.head_path),
    ]
    for model, prefix, to_path in sources:
        expected = data[f"{model}/{official}"]
        for parameter, wanted in zip(data[f"{model}/names"], expected, strict=True):
            path, block = to_path(str(parameter))
            value = ours[prefix + path]
            value = value[block] if isinstance(value, np.ndarray) else value
            np.testing.assert_allclose(value, wanted, atol=1e-12, rtol=1e-12, err_msg=parameter)
            seen.add(prefix + path)
    assert seen == set(ours)


def test_blocks_learn_at_rates_that_broadcast_over_their_leaf(student, groups):
    factor = groups.lr["backbone"]["blocks"]["attn"]["qkv"]["kernel"]
    assert factor.shape == (5, 1, 1, 1)
    assert student["backbone"]["blocks"]["attn"]["qkv"]["kernel"].ndim == factor.ndim


@pytest.mark.parametrize("name", ["step_ibot", "step_noibot"])
def test_update_on_stored_gradients_equals_official(golden, updated, name):
    data = golden(name)
    new, state, norms = updated[name]
    new = jax.tree.map(lambda p: p, new)  # the fixture's own dicts stay whole
    expected = golden_params.params(golden_params.under(data, "student_new/"))
    stored = len(expected["backbone"]["blocks"]["ls1"]["gamma"])  # step_noibot keeps one block
    new["backbone"]["blocks"] = jax.tree.map(lambda p: p[:stored], new["backbone"]["blocks"])
    assert_trees_close(new, expected, atol=1e-6, rtol=1e-6)
    assert state.count == 1
    np.testing.assert_allclose(
        [norms["backbone"], norms["heads"]], data["grad_norm_before_clip/values"], rtol=1e-6
    )


def test_teacher_equals_official(golden):
    data = golden("step_ibot")
    teacher = golden_params.params(golden_params.under(golden("step_common"), "teacher/"))
    new = golden_params.params(golden_params.under(data, "student_new/"))
    expected = golden_params.params(golden_params.under(data, "teacher_new/"))
    moved = ema(teacher, new, float(data["hyper/momentum"]))
    assert_trees_close(moved, expected, atol=1e-6, rtol=1e-6)


def test_mask_token_without_gradient_still_decays(golden, student, groups, updated):
    data = golden("step_noibot")
    assert (data["grad/backbone.mask_token"] == 0).all()
    hyper = stored_hyper(data)
    rate = hyper.lr * groups.lr["backbone"]["mask_token"] * hyper.weight_decay
    before = student["backbone"]["mask_token"]
    after = updated["step_noibot"][0]["backbone"]["mask_token"]
    np.testing.assert_allclose(after, before * (1 - rate), rtol=1e-6)
    assert (np.asarray(after) != before).all()


@pytest.mark.parametrize("head", ["head_0", "head_1"])
def test_last_layer_rate_zero_leaves_the_last_layers_bit_equal(student, updated, head):
    before = student["heads"][head]["last_layer"]
    after = updated["step_ibot"][0]["heads"][head]["last_layer"]
    np.testing.assert_array_equal(after["v"], before["v"])
    np.testing.assert_array_equal(after["g"], before["g"])


TOY = {"backbone": {"a": np.array([1.0, -2.0, 3.0], np.float32)}, "heads": {"b": np.float32(4.0)}}
TOY_GROUPS = make_groups(
    TOY,
    Rules(
        lr=[(".*", 1.0)],
        weight_decay=[(".*", 1.0)],
        last_layer=[(".*", False)],
        module=[("backbone/.*", "backbone"), ("heads/.*", "heads")],
    ),
)
TOY_HYPER = Hyper(0.1, 0.1, 0.05, 0.9, 0.05, patch_masking=False)


def test_twenty_updates_without_clipping_equal_optax_adamw():
    hyper = dataclasses.replace(TOY_HYPER, lr=0.01)
    reference = optax.adamw(0.01, 0.9, 0.999, 1e-8, weight_decay=0.05)
    ours = theirs = jax.tree.map(jnp.asarray, TOY)
    state = init_optimizer(ours)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        their_state = reference.init(theirs)
        for i in range(20):
            grads = jax.tree.map(lambda p, i=i: jnp.sin(p) + i / 20, TOY)
            ours, state, _ = adamw_step(grads, state, ours, hyper, TOY_GROUPS, clip=0.0)
            updates, their_state = reference.update(grads, their_state, theirs)
            theirs = optax.apply_updates(theirs, updates)
    assert_trees_close(ours, theirs, atol=2e-6, rtol=1e-6)
    assert ours["backbone"]["a"][0] < 0.9
    assert state.count == 20


def test_each_module_is_clipped_by_its_own_norm_only():
    grads = {"backbone": {"a": jnp.array([3.0, 0.0, 4.0])}, "heads": {"b": jnp.float32(0.5)}}
    _, state, norms = adamw_step(grads, init_optimizer(TOY), TOY, TOY_HYPER, TOY_GROUPS, clip=1.5)
    np.testing.assert_allclose([norms["backbone"], norms["heads"]], [5.0, 0.5], rtol=1e-6)
    clipped = np.array([3.0, 0.0, 4.0]) * 1.5 / 5.0
    np.testing.assert_allclose(state.mu["backbone"]["a"], 0.1 * clipped, rtol=1e-5)
    np.testing.assert_allclose(state.mu["heads"]["b"], 0.1 * 0.5, rtol=1e-6)


def test_changing_rates_do_not_recompile():
    traces = []

    @jax.jit
    def step(params, state, hyper):
        traces.append(None)
        return adamw_step(params, state, params, hyper, TOY_GROUPS)

    for lr in (0.0, 1e-3, 0.1):
        step(TOY, init_optimizer(TOY), dataclasses.replace(TOY_HYPER, lr=lr, last_layer_lr=lr / 2))
    assert len(traces) == 1


def test_ema_of_equal_weights_stays_bit_equal():
    weights = {"w": np.random.default_rng(0).standard_normal(1000).astype(np.float32)}
    np.testing.assert_array_equal(ema(weights, weights, jnp.float32(0.992))["w"], weights["w"])


def test_first_matching_rule_wins():
    assert match(TOY, [("backbone/a", 1), (".*", 2)]) == {"backbone": {"a": 1}, "heads": {"b": 2}}


def test_patterns_fit_the_whole_path():
    with pytest.raises(ValueError, match="no pattern covers parameter 'backbone/a'"):
        match(TOY, [("backbone", 1), ("heads/b", 2)])


def test_a_parameter_no_pattern_covers_is_named_with_the_nearest_pattern():
    message = r"no pattern covers parameter 'heads/b' \(nearest pattern: 'heads/c'\)"
    with pytest.raises(ValueError, match=message):
        match(TOY, [("backbone/.*", 1), ("heads/c", 2)])


def test_a_pattern_that_covers_nothing_is_named_with_the_nearest_parameter():
    message = r"pattern 'backbone/aa' covers no parameter \(nearest parameter: 'backbone/a'\)"
    with pytest.raises(ValueError, match=message):
        match(TOY, [("backbone/aa", 0), (".*", 1)])


def test_a_pattern_hidden_behind_an_earlier_one_is_named():
    with pytest.raises(ValueError, match="pattern 'heads/b' covers no parameter"):
        match(TOY, [(".*", 0), ("heads/b", 1)])


def test_values_for_another_depth_are_refused(student):
    with pytest.raises(ValueError, match=r"one value for each of its 5 blocks, got 6"):
        make_groups(student, vit_rules(depth=6, layer_decay=0.9, patch_embed_lr=0.2))


def test_rules_apply_to_shapes_alone(student, groups):
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, student))
    again = make_groups(shapes, vit_rules(5, 0.9, 0.2))
    assert again.module == groups.module
    assert_trees_close(again.lr, groups.lr)


def test_module_norms_are_global_over_their_leaves():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]]), "c": jnp.array([2.0])}
    norms = optimizer.module_norms(grads, {"a": "x", "b": "x", "c": "y"})
    assert norms.keys() == {"x", "y"}
    np.testing.assert_allclose([norms["x"], norms["y"]], [5.0, 2.0], rtol=1e-6)
