import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poa_jax.evaluation import knn

LISTS = {"ks10_20": (10, 20), "ks10": (10,), "ks20": (20,), "ks5_10_20": (5, 10, 20)}
BLOCKS = [(2048, 256), (64, 7), (37, 60), (1, 16)]  # whole, uneven, and one image at a time


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("knn")


def problem(seed=0, bank=90, queries=23, width=8, classes=4):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(bank, width)).astype(np.float32),
        rng.integers(0, classes, bank).astype(np.int32),
        rng.normal(size=(queries, width)).astype(np.float32),
        rng.integers(0, classes, queries).astype(np.int32),
    )


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("features", ["features", "features_raw"])
def test_probabilities_and_top1_are_those_of_the_reference(arrays, name, features):
    probs = knn.predict(
        arrays[f"train_{features}"],
        arrays["train_labels"],
        arrays[f"val_{features}"],
        num_classes=10,
        ks=LISTS[name],
    )
    assert tuple(probs) == LISTS[name]
    for k, probs_BK in probs.items():
        assert probs_BK.dtype == jnp.float32
        np.testing.assert_allclose(probs_BK, arrays[f"{name}/k{k}/probs"], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(jnp.argmax(probs_BK, 1), arrays[f"{name}/k{k}/top1"])
        accuracy = knn.accuracy(probs_BK, arrays["val_labels"])
        np.testing.assert_allclose(accuracy, arrays[f"{name}/k{k}/top1_accuracy"], rtol=1e-6)


@pytest.mark.parametrize(("block", "query_block"), BLOCKS)
def test_neighbours_are_those_of_the_reference_for_any_block_size(arrays, block, query_block):
    similarity, label = knn.neighbours(
        arrays["train_features"],
        arrays["train_labels"],
        arrays["val_features"],
        k=20,
        block=block,
        query_block=query_block,
    )
    want = arrays["ks10_20/neighbour_similarity"]
    np.testing.assert_allclose(similarity, want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(label, arrays["ks10_20/neighbour_labels"])


@pytest.mark.parametrize(("block", "query_block"), BLOCKS)
def test_the_earlier_image_wins_among_equals_for_any_block_size(block, query_block):
    bank, _, query, _ = problem(bank=30)
    bank = np.concatenate([bank, bank, bank])
    similarity, label = knn.neighbours(
        bank, np.arange(90, dtype=np.int32), query, k=7, block=block, query_block=query_block
    )
    # The nearest image is there three times, then the second, and so on.
    assert (np.diff(np.asarray(label)[:, :3]) == 30).all()
    assert (np.diff(np.asarray(label)[:, 3:6]) == 30).all()
    assert (np.asarray(label)[:, 6] < 30).all()
    assert (np.diff(np.asarray(similarity)) <= 0).all()


def test_only_the_largest_k_has_probabilities_that_sum_to_one():
    bank, labels, query, _ = problem()
    probs = knn.predict(bank, labels, query, num_classes=4, ks=(3, 20))
    np.testing.assert_allclose(probs[20].sum(1), 1.0, atol=1e-6)
    assert (probs[3].sum(1) < 0.99).all()


def test_a_k_above_the_size_of_the_bank_is_clipped_and_said():
    assert knn.usable_ks((200, 10, 100), 60) == (
        (10, 60),
        "k = 100, 200 is more than the 60 labelled images; used 60",
    )
    assert knn.usable_ks((10, 20), 20) == ((10, 20), None)
    bank, labels, query, _ = problem(bank=15)
    probs = knn.predict(bank, labels, query, num_classes=4, ks=(10, 200))
    assert tuple(probs) == (10, 15)
    np.testing.assert_allclose(probs[15].sum(1), 1.0, atol=1e-6)


@pytest.mark.parametrize(("ks", "size"), [((), 5), ((0, 3), 5), ((3,), 0)])
def test_impossible_ks_and_an_empty_bank_are_errors(ks, size):
    with pytest.raises(ValueError, match="k-NN needs"):
        knn.usable_ks(ks, size)


def test_no_query_is_an_error():
    bank, labels, query, _ = problem()
    with pytest.raises(ValueError, match="at least one image to classify"):
        knn.predict(bank, labels, query[:0], num_classes=4, ks=(3,))


def test_a_stack_of_sub_networks_gives_what_each_gives_alone_in_one_program():
    parts = [problem(seed) for seed in range(3)]
    bank, query = (np.stack([part[i] for part in parts]) for i in (0, 2))
    labels, query_labels = parts[0][1], parts[0][3]
    options = {"num_classes": 4, "ks": (3, 20), "block": 32, "query_block": 8}
    before = knn.accuracies._cache_size()
    together = knn.accuracies(bank, labels, query, query_labels, **options)
    assert knn.accuracies._cache_size() == before + 1
    for s in range(3):
        alone = knn.predict(bank[s], labels, query[s], **options)
        for k in (3, 20):
            assert together[k].shape == (3,)
            assert float(together[k][s]) == float(knn.accuracy(alone[k], query_labels))


def test_no_array_of_queries_times_bank_exists():
    shapes = (jax.ShapeDtypeStruct((n, 8), jnp.float32) for n in (50_000, 20_000))
    labels = jax.ShapeDtypeStruct((50_000,), jnp.int32)
    bank, query = shapes
    compiled = knn.predict.lower(bank, labels, query, num_classes=10, ks=(200,)).compile()
    # Temporary memory: the padded copies and some blocks, 30 MB; queries × bank would be 4 GB.
    assert compiled.memory_analysis().temp_size_in_bytes < 60e6


def test_low_precision_features_are_compared_in_float32():
    bank, labels, query, _ = problem()
    low = [jnp.asarray(x, jnp.bfloat16) for x in (bank, query)]
    similarity, _ = knn.neighbours(low[0], labels, low[1], k=3)
    exact, _ = knn.neighbours(low[0].astype(jnp.float32), labels, low[1].astype(jnp.float32), k=3)
    assert similarity.dtype == jnp.float32
    np.testing.assert_array_equal(similarity, exact)


def test_the_best_k_is_the_smallest_of_equals():
    assert knn.best({10: 0.5, 20: 0.75, 100: 0.75, 200: 0.7}) == (20, 0.75)


def test_pixels_are_flat_and_between_0_and_1():
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    features = knn.pixels(images)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, images.reshape(2, 36) / 255.0, rtol=1e-6)
