import jax
import numpy as np
import pytest
import tiny_run

from poa_jax.data.pipeline import eval_batches
from poa_jax.evaluation import features, knn, sweep

PROTOCOL = sweep.Protocol(
    resize=16, crop=16, neighbours=(3, 10), temperature=0.07, batch_size=16, workers=0
)


def quiet(sentence):
    pass


@pytest.fixture(scope="module")
def net():
    return tiny_run.supernet()


@pytest.fixture(scope="module")
def sets():
    return tiny_run.images(60, seed=1), tiny_run.images(25, seed=2)


@pytest.fixture(scope="module")
def records(net, sets):
    start = tiny_run.supernet(seed=1).params
    return sweep.knn_sweep(net, list(net.space), *sets, PROTOCOL, untrained=start, say=quiet)


def encoded(backbone, source):
    (batch,) = eval_batches(source, 16, 16, len(source), workers=0)
    return backbone(backbone.normalise(batch[0])).cls, np.asarray(batch[1])


def accuracies_one_by_one(net, name, sets):
    """The slow way: cut the network out, encode, vote."""
    backbone = net.extract(name)
    (bank, labels), (query, true_labels) = (encoded(backbone, source) for source in sets)
    probs = knn.predict(bank, labels, query, num_classes=tiny_run.CLASSES, ks=(3, 10))
    return {k: float(np.mean(np.argmax(p, axis=1) == true_labels)) for k, p in probs.items()}


def test_the_sweep_is_k_nn_of_each_extracted_backbone(net, sets, records):
    assert [r["name"] for r in records] == [str(s) for s in net.space]
    for record in records[::3]:
        want = accuracies_one_by_one(net, record["name"], sets)
        assert record["knn_of_k"] == pytest.approx({str(k): a for k, a in want.items()})
        assert (record["best_k"], record["knn"]) == knn.best(want)
    # Networks and numbers of neighbours differ, so no mix-up could have gone unseen.
    assert len({tuple(r["knn_of_k"].values()) for r in records}) > 4


def test_untrained_networks_are_measured_under_the_same_protocol(sets, records):
    start = tiny_run.supernet(seed=1)
    for record in records[::9]:
        want = accuracies_one_by_one(start, record["name"], sets)
        assert record["untrained"] == pytest.approx(max(want.values()))


def test_sizes_are_those_of_the_extracted_backbones(net, records):
    for record in records[::3]:
        backbone = net.extract(record["name"])
        assert record["params"] == backbone.num_params
        assert record["macs"] == backbone.macs()
        assert (record["width"], tuple(record["depths"])) == (
            backbone.subnet.width,
            backbone.subnet.depths,
        )


def test_some_sub_networks_have_the_numbers_they_have_among_all(net, sets, records):
    chosen = [net.space.parse(name) for name in ("w32-d3", "w16-d6", "w32-d3")]
    found = sweep.knn_sweep(net, chosen, *sets, PROTOCOL, say=quiet)
    by_name = {r["name"]: r for r in records}
    assert [r["name"] for r in found] == ["w32-d3", "w16-d6"]
    for record in found:
        assert "untrained" not in record
        assert record["knn_of_k"] == by_name[record["name"]]["knn_of_k"]


def test_little_memory_changes_the_number_of_passes_and_no_number(net, sets, records, monkeypatch):
    monkeypatch.setattr(features, "feature_bytes", lambda: 4 * 32 * (60 + 25))
    said = []
    chosen = [s for s in net.space if s.width == 16][:3]
    found = sweep.knn_sweep(net, chosen, *sets, PROTOCOL, say=said.append)
    assert said == ["width 16: 2 sub-networks", "width 16: 1 sub-networks"]
    assert [r["knn_of_k"] for r in found] == [r["knn_of_k"] for r in records[:3]]


def read(source):
    """All images as unit vectors of their pixels, and the labels."""
    (batch,) = eval_batches(source, 16, 16, len(source), workers=0)
    pixels = batch[0].reshape(len(source), -1) / 255.0
    return pixels / np.linalg.norm(pixels, axis=1, keepdims=True), batch[1]


def test_raw_pixels_are_measured_under_the_same_protocol(sets):
    (bank, labels), (query, true_labels) = map(read, sets)
    similarity = query @ bank.T
    found = []
    for k in (3, 10):
        nearest = np.argsort(-similarity, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
        votes = [np.where(labels[nearest] == c, weights, 0).sum(axis=1) for c in range(5)]
        found.append(np.mean(np.argmax(votes, axis=0) == true_labels))
    assert sweep.knn_of_pixels(*sets, PROTOCOL) == pytest.approx(max(found))
    assert 0.3 < max(found) < 1.0


def test_more_neighbours_than_images_are_cut_and_told(net, sets):
    said = []
    few = tiny_run.images(6, seed=1)
    (record,) = sweep.knn_sweep(net, [net.space.smallest], few, sets[1], PROTOCOL, say=said.append)
    assert "k = 10 is more than the 6 labelled images; used 6" in said
    assert list(record["knn_of_k"]) == ["3", "6"]


def test_a_source_without_labels_is_told(net, sets):
    bare = tiny_run.images(6, labelled=False)
    for pair in ((bare, sets[1]), (sets[0], bare)):
        with pytest.raises(ValueError, match="k-NN needs labels"):
            sweep.knn_sweep(net, [net.space.smallest], *pair, PROTOCOL, say=quiet)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    spec = tiny_run.write_images(tmp_path_factory.mktemp("data") / "set.npz")
    config = tiny_run.config(data__source=spec, seed=5)
    net = tiny_run.supernet()
    return sweep.evaluate(config, net, [net.space.intact], baselines=True, say=quiet)


def test_a_report_says_what_it_takes_to_get_its_numbers_again(report):
    net = tiny_run.supernet()
    assert report["checkpoint"] == {
        "step": 0,
        "branch": "teacher",
        "sha256": sweep.sha256(net.params),
    }
    assert report["data"]["bank"]["images"] == 60
    assert report["data"]["queries"]["split"] == "test"
    assert report["data"]["bank"]["fingerprint"] == tiny_run.images(60, seed=1).fingerprint
    assert report["transform"]["shorter_side"] == report["transform"]["centre_crop"] == 16
    assert report["transform"]["mean"] == list(net.mean)
    assert report["protocol"]["neighbours"] == [3, 10]
    assert report["protocol"]["temperature"] == 0.07
    assert report["versions"]["jax"] == jax.__version__
    assert 0 < report["pixels"] < 1


def test_the_hash_of_a_network_sees_every_value_and_every_name():
    params = {"a": {"b": np.zeros(3, np.float32)}, "c": np.ones((2, 2), np.float32)}
    moved = {"a": {"d": np.zeros(3, np.float32)}, "c": np.ones((2, 2), np.float32)}
    shaped = {"a": {"b": np.zeros(3, np.float32)}, "c": np.ones((4,), np.float32)}
    changed = {"a": {"b": np.array([0, 0, 1e-30], np.float32)}, "c": np.ones((2, 2), np.float32)}
    reordered = {"c": params["c"], "a": params["a"]}
    assert sweep.sha256(reordered) == sweep.sha256(params)
    assert len({sweep.sha256(p) for p in (params, moved, shaped, changed)}) == 4
