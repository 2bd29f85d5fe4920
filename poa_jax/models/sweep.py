"""Features of many sub-networks of one width in one walk: shared blocks run once.

Within a stage the kept blocks of all depths form a tree (`elastic.depth_tree`). Where a depth ends,
the walk goes on into the next stage; so two sub-networks share everything up to where they part.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.elastic.depth_tree import depth_tree


class Stage(NamedTuple):
    """One stage of a backbone, for one batch of images.

    Attributes:
      enter: from the output of the stage before to the input of this one's blocks.
      run: (index of a block, traced; its input) → its output, of the same shape.
      depth: blocks of the stage.
    """

    enter: Callable[[Any], jax.Array]
    run: Callable[[jax.Array, jax.Array], jax.Array]
    depth: int


class Plan(NamedTuple):
    """What a walk visits; arrays only, so that one compilation serves plans of one shape.

    Attributes:
      trees: for each stage (blocks, levels, leaf, ends): of every node its block, how many blocks
        ran before it, the position of the depth that ends there (−1: none does); of every depth
        its last node.
      wanted: booleans over the depths of all stages; combinations nobody asked for are left out.
      picks: (S, stages) positions of each sub-network in `wanted`.
    """

    trees: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...]
    wanted: np.ndarray
    picks: np.ndarray


def make_plan(depths: Sequence[tuple[int, ...]], max_depths: tuple[int, ...]) -> Plan:
    """Return the plan for sub-networks with these `depths`, in their order."""
    trees, positions = [], []
    for stage, max_depth in enumerate(max_depths):
        own = sorted({d[stage] for d in depths})
        tree = depth_tree(own, max_depth)
        leaf = np.full(len(tree.blocks), -1, np.int32)
        leaf[list(tree.leaves)] = np.arange(len(own))
        rows = (tree.blocks, tree.levels, leaf, tree.leaves)
        trees.append(tuple(np.asarray(row, np.int32) for row in rows))
        positions.append({depth: i for i, depth in enumerate(own)})
    picks = [[at[d] for at, d in zip(positions, ds, strict=True)] for ds in depths]
    wanted = np.zeros([len(at) for at in positions], bool)
    wanted[tuple(np.transpose(picks))] = True
    return Plan(tuple(trees), wanted, np.asarray(picks, np.int32))


def walk(
    stages: Sequence[Stage], finish: Callable[[jax.Array], jax.Array], plan: Plan, x: Any
) -> jax.Array:
    """Return (S, …): what `finish` makes of the last stage's output, for each sub-network."""
    found = _walk(tuple(stages), finish, plan.trees, jnp.asarray(plan.wanted), x)
    return found[tuple(jnp.asarray(plan.picks).T)]


def _walk(stages, finish, trees, wanted, x) -> jax.Array:
    """Return (depths of stage 1, depths of stage 2, …, rest); zeros where it is not wanted."""
    if not stages:
        return finish(x)
    (stage, *later), (tree, *later_trees) = stages, trees
    x = stage.enter(x)

    def onward(x: jax.Array, wanted: jax.Array) -> jax.Array:
        return _walk(tuple(later), finish, tuple(later_trees), wanted, x)

    blocks, levels, leaf, ends = map(jnp.asarray, tree)
    if ends.shape[0] == 1:  # one path: nothing to go back to
        x = jax.lax.scan(lambda x, block: (stage.run(block, x), None), x, blocks)[0]
        return onward(x, wanted[0])[None]
    # Above the level where the trees part nothing is shared, but one buffer is simplest to index.
    nothing = jax.eval_shape(onward, x, wanted[0])

    def visit(outputs: jax.Array, node: tuple) -> tuple[jax.Array, jax.Array]:
        block, level, leaf = node
        x = stage.run(block, outputs[level])
        found = jax.lax.cond(
            (leaf >= 0) & wanted[leaf].any(),
            lambda: onward(x, wanted[leaf]),
            lambda: jnp.zeros(nothing.shape, nothing.dtype),
        )
        return outputs.at[level + 1].set(x), found

    start = jnp.zeros((stage.depth + 1, *x.shape), x.dtype).at[0].set(x)
    return jax.lax.scan(visit, start, (blocks, levels, leaf))[1][ends]
