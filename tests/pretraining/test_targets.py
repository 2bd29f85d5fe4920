import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from poa_jax.pretraining.targets import centre_softmax, sinkhorn, update_centre

SINKHORN = [
    ("n8_k32", 0.04, 3),
    ("n8_k32", 0.055, 3),
    ("n16_k48", 0.07, 3),
    ("n16_k48", 0.1, 3),
    ("n5_k64", 0.04, 3),
    ("n64_k128", 0.04, 3),
    ("n64_k128", 0.07, 3),
    ("n8_k32", 0.07, 1),
    ("n64_k128", 0.07, 1),
]


def random_logits(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


def reference(logits_BK: np.ndarray, temperature: float, iterations: int = 3) -> np.ndarray:
    """Divide columns and rows in turn, in float64 logarithms: exact at any range of logits."""
    log_BK = logits_BK.astype(np.float64) / temperature
    for _ in range(iterations):
        log_BK = log_BK - np.logaddexp.reduce(log_BK, axis=0, keepdims=True)
        log_BK = log_BK - np.logaddexp.reduce(log_BK, axis=1, keepdims=True)
    return np.exp(log_BK)


@pytest.mark.parametrize(("case", "temperature", "iterations"), SINKHORN)
def test_sinkhorn_equals_official(golden, case, temperature, iterations):
    data = golden("losses")
    suffix = "_iter1" if iterations == 1 else ""
    probs_BK = sinkhorn(data[f"sinkhorn/{case}/input"], temperature, iterations=iterations)
    expected_BK = data[f"sinkhorn/{case}/temp{temperature}{suffix}"]
    np.testing.assert_allclose(probs_BK, expected_BK, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("columns", [32, 48])
@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_sinkhorn_of_padded_patches_equals_official_and_padding_is_zero(
    golden, columns, temperature
):
    data = golden("losses")
    logits_MK = data[f"ibot_sinkhorn/n17_k{columns}/input"]
    padding_MK = np.full((6, columns), 90.0, np.float32)
    padding_MK[0] = np.nan
    valid_M = np.arange(23) < 17
    probs_MK = sinkhorn(np.concatenate([logits_MK, padding_MK]), temperature, valid_B=valid_M)
    expected_MK = data[f"ibot_sinkhorn/n17_k{columns}/temp{temperature}_count17"]
    np.testing.assert_allclose(probs_MK[:17], expected_MK, atol=1e-6, rtol=1e-5)
    assert (np.asarray(probs_MK[17:]) == 0).all()


def test_sinkhorn_rows_sum_to_one_and_columns_are_about_equally_used():
    probs_BK = np.asarray(sinkhorn(random_logits(64, 16), 0.5, iterations=30))
    np.testing.assert_allclose(probs_BK.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(probs_BK.sum(0), 64 / 16, rtol=1e-3)


def test_sinkhorn_without_a_valid_row_is_zero():
    probs_BK = sinkhorn(random_logits(4, 8), 0.05, valid_B=np.zeros(4, bool))
    assert (np.asarray(probs_BK) == 0).all()


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_sinkhorn_survives_logits_far_beyond_the_range_of_exp(scale):
    probs_BK = np.asarray(sinkhorn(random_logits(8, 32, scale), 0.04))
    assert np.isfinite(probs_BK).all()
    np.testing.assert_allclose(probs_BK.sum(1), 1.0, atol=1e-5)


def test_sinkhorn_is_exact_when_rows_and_columns_differ_by_hundreds():
    rng = np.random.default_rng(1)
    logits_BK = random_logits(8, 16) + 100 * rng.random((1, 16), np.float32)
    logits_BK += np.linspace(0, 30, 8, dtype=np.float32)[:, None]
    expected_BK = reference(logits_BK, 1.0)
    np.testing.assert_allclose(sinkhorn(logits_BK, 1.0), expected_BK, atol=2e-5)


def test_sinkhorn_shows_a_broken_teacher():
    logits_BK = random_logits(4, 8)
    logits_BK[1, 2] = np.nan
    assert np.isnan(sinkhorn(logits_BK, 0.05)).any()


def test_sinkhorn_takes_bfloat16_and_gives_float32():
    logits_BK = jnp.asarray(random_logits(8, 16), jnp.bfloat16)
    probs_BK = sinkhorn(logits_BK, 0.1)
    assert probs_BK.dtype == jnp.float32
    expected_BK = sinkhorn(logits_BK.astype(jnp.float32), 0.1)
    np.testing.assert_array_equal(probs_BK, expected_BK)


def test_sinkhorn_has_no_gradient():
    grad_BK = jax.grad(lambda z: jnp.sum(sinkhorn(z, 0.1) ** 2))(random_logits(4, 8))
    assert (np.asarray(grad_BK) == 0).all()


def test_sinkhorn_needs_an_iteration():
    with pytest.raises(ValueError, match="at least 1 iteration, got 0"):
        sinkhorn(random_logits(4, 8), 0.1, iterations=0)


@pytest.mark.parametrize("check_vma", [True, False])
def test_sinkhorn_over_four_devices_equals_one(mesh, check_vma):
    logits_BK = random_logits(24, 40)
    valid_B = np.ones(24, bool)
    valid_B[[1, 8, 9]] = False
    valid_B[18:] = False  # the last device has no valid row at all
    sharded = jax.shard_map(
        lambda z, v: sinkhorn(z, 0.1, valid_B=v, axis_name="data"),
        mesh=mesh,
        in_specs=(P("data"), P("data")),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    expected_BK = sinkhorn(logits_BK, 0.1, valid_B=valid_B)
    np.testing.assert_allclose(
        jax.jit(sharded)(logits_BK, valid_B), expected_BK, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("head", [0, 1])
def test_centring_equals_official_over_three_batches(golden, head):
    data = golden("losses")
    centre_K = jnp.zeros(data[f"center/step0/input{head}"].shape[1])
    for step in range(3):
        logits_BK = data[f"center/step{step}/input{head}"]
        before_K = data[f"center/step{step}/center_before_probs{head}"][0]
        np.testing.assert_allclose(centre_K, before_K, atol=1e-6)
        probs_BK = centre_softmax(logits_BK, centre_K, 0.06)
        expected_BK = data[f"center/step{step}/probs{head}"]
        np.testing.assert_allclose(probs_BK, expected_BK, atol=1e-6, rtol=1e-5)
        centre_K = update_centre(centre_K, logits_BK)
    np.testing.assert_allclose(centre_K, data[f"center/final_center{head}"][0], atol=1e-6)


@pytest.mark.parametrize("head", [0, 1])
def test_patch_centring_equals_official_and_ignores_padding(golden, head):
    data = golden("losses")
    centre_K = jnp.zeros(data[f"patch_center/step0/input{head}"].shape[-1])
    for step in (0, 1, 2):
        logits_MK = data[f"patch_center/step{step}/input{head}"][0]
        probs_MK = centre_softmax(logits_MK, centre_K, 0.06)
        expected_MK = data[f"patch_center/step{step}/probs{head}"][0]
        np.testing.assert_allclose(probs_MK, expected_MK, atol=1e-6, rtol=1e-5)
        padded_MK = np.concatenate([logits_MK, np.full_like(logits_MK[:5], np.nan)])
        centre_K = update_centre(centre_K, padded_MK, valid_B=np.arange(16) < 11)
    np.testing.assert_allclose(centre_K, data[f"patch_center/final_center{head}"][0, 0], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.04, 0.1])
def test_centring_at_zero_is_plain_softmax(golden, temperature):
    data = golden("losses")
    logits_BK = data["vanilla/input"]
    probs_BK = centre_softmax(logits_BK, jnp.zeros(logits_BK.shape[1]), temperature)
    expected_BK = data[f"vanilla/temp{temperature}"]
    np.testing.assert_allclose(probs_BK, expected_BK, atol=1e-6, rtol=1e-5)


def test_centre_stays_when_no_row_is_valid():
    centre_K = np.arange(8, dtype=np.float32)
    moved_K = update_centre(centre_K, random_logits(4, 8), valid_B=np.zeros(4, bool))
    np.testing.assert_array_equal(moved_K, centre_K)


def test_centre_over_four_devices_is_the_mean_of_all_valid_rows(mesh):
    logits_BK, centre_K = random_logits(12, 8), np.ones(8, np.float32)
    valid_B = np.arange(12) % 5 != 0  # devices hold different numbers of valid rows
    sharded = jax.shard_map(
        lambda c, z, v: update_centre(c, z, valid_B=v, axis_name="data"),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    expected_K = 0.9 * centre_K + 0.1 * logits_BK[valid_B].mean(0)
    np.testing.assert_allclose(sharded(centre_K, logits_BK, valid_B), expected_K, atol=1e-6)
