import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poa_jax import config
from poa_jax.pretraining import losses
from poa_jax.pretraining.losses import HeadLogits, HeadTargets, Weights

student_loss = jax.jit(losses.student_loss, static_argnames="weights")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
HEADS = 2
# Their names in the official log, each followed by the number of the head.
OFFICIAL = {
    "cls_local": "dino_local_crops_loss",
    "cls_global": "dino_global_crops_loss",
    "same_view_local": "distill_local_crops_loss",
    "same_view_global": "distill_global_crops_loss",
    "patch": "ibot_loss",
}


def test_cross_entropy_of_all_pairs_equals_official_with_gradient(golden):
    data = golden("losses")
    teachers = [data[f"dino_ce/teacher_probs{i}"] for i in range(2)]

    def loss(students):
        return sum(jnp.mean(losses.cross_entropy(z, t, 0.1)) for z in students for t in teachers)

    value, grads = jax.value_and_grad(loss)([data[f"dino_ce/student{i}"] for i in range(3)])
    np.testing.assert_allclose(value, data["dino_ce/loss"], **CLOSE)
    for i, grad_BK in enumerate(grads):
        np.testing.assert_allclose(grad_BK, data[f"dino_ce/grad_student{i}"], **CLOSE)


def test_cross_entropy_is_finite_for_huge_logits_and_zero_for_zero_targets():
    z_BK = jnp.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    p_BK = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    value_B = losses.cross_entropy(z_BK, p_BK, 0.1)
    grad_BK = jax.grad(lambda z: jnp.sum(losses.cross_entropy(z, p_BK, 0.1)))(z_BK)
    np.testing.assert_array_equal(value_B, [0.0, 0.0])
    np.testing.assert_array_equal(grad_BK, np.zeros((2, 3)))


def test_cross_view_pairs_every_teacher_crop_with_every_other_crop():
    rng = np.random.default_rng(0)
    local_VBK = rng.standard_normal((3, 5, 7)).astype(np.float32)
    global_VBK = rng.standard_normal((2, 5, 7)).astype(np.float32)
    targets_VBK = np.asarray(jax.nn.softmax(rng.standard_normal((2, 5, 7)).astype(np.float32)))

    def ce(z_BK, p_BK):
        return -np.mean(np.sum(p_BK * np.asarray(jax.nn.log_softmax(z_BK / 0.2)), -1))

    local, global_ = losses.cross_view(local_VBK, global_VBK, targets_VBK, 0.2)
    pairs = 3 * 2 + 2
    expected_local = sum(ce(z, t) for z in local_VBK for t in targets_VBK) / pairs
    expected_global = sum(ce(global_VBK[1 - g], targets_VBK[g]) for g in range(2)) / pairs
    np.testing.assert_allclose(local, expected_local, rtol=1e-5)
    np.testing.assert_allclose(global_, expected_global, rtol=1e-5)


def test_a_teacher_crop_never_meets_the_same_crop():
    z_VBK = jnp.ones((2, 1, 4))
    local_VBK = jnp.ones((0, 1, 4))
    targets_VBK = jnp.stack([jnp.zeros((1, 4)), jnp.full((1, 4), 0.25)])

    def loss(z):
        return losses.cross_view(local_VBK, z * jnp.arange(4.0)[None, None], targets_VBK, 1.0)[1]

    grad_VBK = jax.grad(loss)(z_VBK)
    assert (np.asarray(grad_VBK[1]) == 0).all(), "its only partner, teacher crop 0, is empty"
    assert (np.asarray(grad_VBK[0])[:, 1:] != 0).all()


def test_same_view_gives_the_intact_student_no_gradient():
    rng = np.random.default_rng(0)
    elastic_VBK, intact_VBK = rng.standard_normal((2, 3, 4, 6)).astype(np.float32)
    grad_elastic, grad_intact = jax.grad(losses.same_view, (0, 1))(elastic_VBK, intact_VBK, 0.1)
    assert (np.asarray(grad_intact) == 0).all()
    assert (np.asarray(grad_elastic) != 0).any()


def test_patch_loss_equals_official_with_gradient_and_ignores_padding(golden):
    data = golden("losses")
    rows = len(data["ibot_masked/student"])
    pad = ((0, 4), (0, 0))
    logits_MK = np.pad(data["ibot_masked/student"], pad, constant_values=3.0)
    targets_MK = np.pad(data["ibot_masked/teacher_probs"], pad)
    weight_M = np.pad(data["ibot_masked/masks_weight"], (0, 4))
    crops = len(data["ibot_masked/mask"])
    value, grad_MK = jax.value_and_grad(losses.patch)(logits_MK, targets_MK, weight_M, crops, 0.1)
    np.testing.assert_allclose(value, data["ibot_masked/loss"], **CLOSE)
    np.testing.assert_allclose(grad_MK[:rows], data["ibot_masked/grad_student"], **CLOSE)
    assert (np.asarray(grad_MK[rows:]) == 0).all()


def test_patch_loss_of_dense_crops_equals_official(golden):
    data = golden("losses")
    mask = data["ibot_masked/mask"]
    count_B1 = mask.sum(1, keepdims=True)
    weight_BN = np.where(mask, 1.0 / np.maximum(count_B1, 1), 0.0).astype(np.float32)
    prototypes = data["ibot_dense/student"].shape[-1]
    value = losses.patch(
        data["ibot_dense/student"].reshape(-1, prototypes),
        data["ibot_dense/teacher_probs"].reshape(-1, prototypes),
        weight_BN.reshape(-1),
        len(mask),
        0.1,
    )
    np.testing.assert_allclose(value, data["ibot_dense/loss"], **CLOSE)


@pytest.mark.parametrize("case", ["n4_d32", "n16_d64", "n2_d8"])
def test_koleo_equals_official_with_gradient(golden, case):
    data = golden("losses")
    value, grad_BD = jax.value_and_grad(losses.koleo)(data[f"koleo/{case}/input"])
    np.testing.assert_allclose(value, data[f"koleo/{case}/loss"], **CLOSE)
    np.testing.assert_allclose(grad_BD, data[f"koleo/{case}/grad"], **CLOSE)


def test_koleo_of_equal_rows_equals_official_and_is_finite(golden):
    data = golden("losses")
    value, grad_BD = jax.value_and_grad(losses.koleo)(data["koleo/duplicate/input"])
    np.testing.assert_allclose(value, data["koleo/duplicate/loss"], **CLOSE)
    assert np.isfinite(grad_BD).all()


def test_koleo_of_one_row_is_zero_without_gradient():
    value, grad_BD = jax.value_and_grad(losses.koleo)(jnp.ones((1, 8)))
    assert value == 0
    np.testing.assert_array_equal(grad_BD, np.zeros((1, 8)))


def test_koleo_of_a_zero_row_is_finite():
    x_BD = jnp.eye(4).at[0].set(0.0)
    value, grad_BD = jax.value_and_grad(losses.koleo)(x_BD)
    assert np.isfinite(value)
    assert np.isfinite(grad_BD).all()


def student(data, who: str) -> tuple[list[HeadLogits], np.ndarray]:
    """Rows of the stored outputs: 2 local crops, 2 global crops (4 images each), masked patches."""
    logits = []
    for h in range(HEADS):
        z_BK = data[f"mid/student_{who}_head_output{h}"]
        crops = z_BK[:16].reshape(4, 4, -1)
        logits.append(HeadLogits(crops[:2], crops[2:], z_BK[16:]))
    return logits, data[f"mid/student_{who}_head_input"][8:16].reshape(2, 4, -1)


def step_inputs(golden, name: str):
    """Both students, the teacher's targets in plain order, patch weights (None without patches)."""
    data, common = golden(name), golden("step_common")
    patches = name == "step_ibot"
    targets = []
    for h in range(HEADS):
        swapped_VBK = data[f"mid/teacher_dino_probs{h}"].reshape(2, 4, -1)
        patch_MK = data[f"mid/teacher_ibot_probs{h}"] if patches else None
        if patches:
            patch_MK = np.pad(patch_MK, ((0, 3), (0, 0)))
        targets.append(HeadTargets(swapped_VBK[::-1], patch_MK))
    weight_M = np.pad(common["batch/masks_weight"], (0, 3)) if patches else None
    return student(data, "intact"), student(data, "sub"), targets, weight_M


@pytest.mark.parametrize("name", ["step_ibot", "step_noibot"])
def test_both_students_together_equal_every_logged_loss_and_the_optimised_one(golden, name):
    (intact, intact_cls), (elastic, elastic_cls), targets, weight_M = step_inputs(golden, name)
    weights = Weights()
    first, first_parts = student_loss(intact, targets, intact_cls, weight_M, weights)
    second, second_parts = student_loss(
        elastic, targets, elastic_cls, weight_M, weights, intact=intact
    )
    data = golden(name)
    np.testing.assert_allclose(first + second, data["total_loss"], **CLOSE)
    parts = jax.tree.map(jnp.add, first_parts, second_parts)
    np.testing.assert_allclose(parts.pop("koleo"), data["loss/koleo_loss"], **CLOSE)
    for part, official in OFFICIAL.items():
        for h in range(HEADS):
            expected = data.get(f"loss/{official}_{h}", 0.0)
            np.testing.assert_allclose(parts[part][h], expected, **CLOSE, err_msg=part)
    assert set(parts) == set(OFFICIAL)


def test_without_masked_patches_zero_weights_equal_no_patch_loss(golden):
    (intact, cls_VBD), _, targets, weight_M = step_inputs(golden, "step_ibot")
    empty = [t._replace(patch_MK=jnp.zeros_like(t.patch_MK)) for t in targets]

    def loss(logits, patch_weight_M):
        return student_loss(logits, empty, cls_VBD, patch_weight_M, Weights())[0]

    value, grad = jax.value_and_grad(loss)(intact, np.zeros_like(weight_M))
    np.testing.assert_allclose(value, loss(intact, None), rtol=1e-6)
    assert all((np.asarray(g.patch_MK) == 0).all() for g in grad)


def test_intact_weight_one_leaves_the_elastic_student_only_koleo(golden):
    (intact, _), (elastic, cls_VBD), targets, weight_M = step_inputs(golden, "step_ibot")

    def loss(logits, weights):
        return student_loss(logits, targets, cls_VBD, weight_M, weights, intact=intact)[0]

    weights = Weights(intact=1.0)
    value, grad = jax.value_and_grad(loss)(elastic, weights)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(grad))
    spread = losses.koleo(cls_VBD[0]) + losses.koleo(cls_VBD[1])
    np.testing.assert_allclose(value, 0.1 * spread / 2, rtol=1e-6)


def test_cls_patch_and_koleo_weights_scale_their_terms(golden):
    (intact, cls_VBD), _, targets, weight_M = step_inputs(golden, "step_ibot")

    def loss(**weights):
        none = {"cls": 0.0, "patch": 0.0, "koleo": 0.0}
        arguments = (intact, targets, cls_VBD, weight_M, Weights(**(none | weights)))
        return student_loss(*arguments)[0]

    total = loss(cls=1.0) + loss(patch=1.0) + loss(koleo=0.1)
    np.testing.assert_allclose(total, loss(cls=1.0, patch=1.0, koleo=0.1), rtol=1e-6)
    np.testing.assert_allclose(loss(patch=3.0), 3 * loss(patch=1.0), rtol=1e-6)
    np.testing.assert_allclose(loss(cls=3.0), 3 * loss(cls=1.0), rtol=1e-6)


def test_weights_are_taken_from_the_config():
    c = config.default()
    c.loss.intact_weight = 0.7
    c.loss.koleo = 0.2
    assert Weights.from_config(c) == Weights(intact=0.7, koleo=0.2)
