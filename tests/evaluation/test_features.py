import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from poa_jax.evaluation import features
from poa_jax.evaluation.datasets import labelled_batches


@pytest.fixture(scope="module")
def net():
    return tiny_run.supernet()


def some_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


def of_width(net, width):
    return [s for s in net.space if s.width == width]


@pytest.mark.parametrize("width", [16, 32])
def test_one_pass_gives_each_sub_network_its_own_features(net, width):
    images = some_images(5)
    subnets = of_width(net, width)
    found_SBD = features.cls_features(net, net.params, subnets, jnp.asarray(images))
    assert found_SBD.shape == (5, 5, width)
    for subnet, found_BD in zip(subnets, found_SBD, strict=True):
        want = net.apply(net.normalise(images), subnet=subnet).cls
        np.testing.assert_allclose(found_BD, want, rtol=0, atol=1e-5, err_msg=str(subnet))
    # Each depth is another network here, so no mix-up could have gone unseen.
    for a, b in itertools.combinations(np.asarray(found_SBD), 2):
        assert np.abs(a - b).max() > 1e-2


def test_depths_may_come_in_any_order(net):
    images = jnp.asarray(some_images(3))
    subnets = of_width(net, 16)
    shuffled = [subnets[i] for i in (3, 0, 4)]
    found = features.cls_features(net, net.params, shuffled, images)
    want = features.cls_features(net, net.params, subnets, images)
    np.testing.assert_allclose(found, np.asarray(want)[[3, 0, 4]], rtol=0, atol=1e-5)


def test_a_width_is_compiled_once_for_both_sets_of_parameters(net, monkeypatch):
    traced = []
    plain = features.normalise

    def counting(*arguments):
        traced.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(features, "normalise", counting)
    features._sweep.clear_cache()
    sets = [net.params, tiny_run.supernet(seed=1).params]
    for width in net.space.widths:
        subnets = of_width(net, width)
        source = tiny_run.images(50)
        batches = labelled_batches(source, 16, 16, batch_size=16)
        features.extract_features(net, sets, subnets, batches, len(source))
    assert len(traced) == len(net.space.widths)


def test_features_of_a_source_keep_its_order_and_leave_out_the_filling(net):
    source = tiny_run.images(21)
    subnets = of_width(net, 32)[1:3]
    batches = list(labelled_batches(source, 16, 16, batch_size=8))
    other = tiny_run.supernet(seed=1).params
    found, labels = features.extract_features(net, [net.params, other], subnets, batches, 21)
    assert found.shape == (2, 2, 21, 32)
    assert labels.tolist() == [source[i][1] for i in range(21)]
    images = np.concatenate([images[:valid] for images, _, valid in batches])
    for params, found_SBD in zip((net.params, other), found, strict=True):
        want = features.cls_features(net, params, subnets, jnp.asarray(images))
        np.testing.assert_allclose(found_SBD, want, rtol=0, atol=1e-5)


def test_images_that_cannot_be_read_leave_no_row(net):
    batches = [(some_images(4), np.arange(4), 4), (some_images(4), np.arange(4), 1)]
    found, labels = features.extract_features(net, [net.params], of_width(net, 16), batches, 8)
    assert found.shape == (1, 5, 5, 16)
    assert labels.tolist() == [0, 1, 2, 3, 0]


def test_sub_networks_of_two_widths_do_not_mix(net):
    with pytest.raises(ValueError, match=r"one width, got widths \[16, 32\]"):
        features.cls_features(net, net.params, list(net.space), jnp.asarray(some_images(1)))


def test_groups_hold_as_many_sub_networks_as_memory_does(net):
    groups = list(features.by_width(net.space, images=100, limit=4 * 16 * 100 * 2))
    assert [(width, len(group)) for width, group in groups] == [(16, 2), (16, 2), (16, 1)] + [
        (32, 1)
    ] * 5
    assert [s for _, group in groups for s in group] == list(net.space)
    assert [len(group) for _, group in features.by_width(net.space, images=100)] == [5, 5]


def test_a_sub_network_named_twice_is_in_one_group(net):
    twice = [net.space.smallest, net.space.smallest]
    assert list(features.by_width(twice, 10)) == [(16, (net.space.smallest,))]


def test_memory_is_half_of_what_the_process_may_use(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(features, "_CGROUP_LIMIT", limit)
    whole = features.feature_bytes()
    assert whole > 2**28
    limit.write_text("max\n")
    assert features.feature_bytes() == whole
    limit.write_text("1000000\n")
    assert features.feature_bytes() == 500_000
