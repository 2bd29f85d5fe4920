import numpy as np
import pytest

from poa_jax.elastic.depth_tree import depth_tree
from poa_jax.elastic.space import kept_blocks

SPACES = [(range(12, 25), 24), (range(3, 7), 6), ((6,), 6), ((1, 2), 2), ((9, 2, 5, 9), 12)]


def walk(tree):
    """The blocks behind each node, following the rule that readers of the tree follow."""
    latest, paths = {-1: ()}, []
    for block, level in zip(tree.blocks, tree.levels, strict=True):
        latest[level] = (*latest[level - 1], block)
        paths.append(latest[level])
    return paths


@pytest.mark.parametrize(("depths", "max_depth"), SPACES)
def test_every_leaf_has_run_the_blocks_its_depth_keeps(depths, max_depth):
    tree = depth_tree(depths, max_depth)
    paths = walk(tree)
    found = [paths[leaf] for leaf in tree.leaves]
    assert found == [kept_blocks(depth, max_depth) for depth in depths]


@pytest.mark.parametrize(("depths", "max_depth"), SPACES)
def test_no_beginning_is_run_twice_and_none_in_vain(depths, max_depth):
    paths = walk(depth_tree(depths, max_depth))
    kept = [kept_blocks(depth, max_depth) for depth in depths]
    beginnings = {path[:n] for path in kept for n in range(1, len(path) + 1)}
    assert len(paths) == len(set(paths))
    assert set(paths) == beginnings


def test_the_published_vit_saves_31_percent():
    tree = depth_tree(range(12, 25), 24)
    assert (len(tree.blocks), tree.separate) == (161, 234)
    assert tree.saved == pytest.approx(0.312, abs=5e-4)


def test_levels_count_the_blocks_before_a_node():
    tree = depth_tree((2, 3), 4)  # keep blocks (0, 3) and (0, 1, 3)
    assert sorted(zip(tree.levels, tree.blocks, strict=True)) == [(0, 0), (1, 1), (1, 3), (2, 3)]
    assert np.array(tree.blocks)[list(tree.leaves)].tolist() == [3, 3]


def test_one_depth_saves_nothing():
    assert depth_tree((5,), 9).saved == 0


@pytest.mark.parametrize(
    ("depths", "sentence"), [((), "at least one depth"), ((7,), "a depth of 7 is not within 1..6")]
)
def test_impossible_depths_are_refused(depths, sentence):
    with pytest.raises(ValueError, match=sentence):
        depth_tree(depths, 6)
