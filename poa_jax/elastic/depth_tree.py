"""The work that sub-networks of one width share: a tree of the blocks they keep.

Each depth keeps an increasing list of blocks. Lists that begin alike compute the same tokens up to
where they part, so all depths together form a tree of (block) nodes, and one walk over it gives the
features of every depth. For the published ViT (depths 12..24) the walk runs 161 blocks where the 13
networks one by one run 234: 31 % saved. No exact walk runs fewer, for two blocks give the same
tokens only where all blocks before them are the same.
"""

import dataclasses
from collections.abc import Sequence

from poa_jax.elastic.space import kept_blocks


@dataclasses.dataclass(frozen=True)
class DepthTree:
    """Nodes in depth-first order.

    Attributes:
      blocks: for each node the block it runs.
      levels: for each node how many blocks ran before it on its path; its input is the output of
        the latest node one level up.
      leaves: for each depth asked for, the node where it ends.
      separate: blocks that the networks would run one by one.
    """

    blocks: tuple[int, ...]
    levels: tuple[int, ...]
    leaves: tuple[int, ...]
    separate: int

    @property
    def saved(self) -> float:
        """Share of block runs that the tree saves."""
        return 1 - len(self.blocks) / self.separate


def depth_tree(depths: Sequence[int], max_depth: int) -> DepthTree:
    """Return the tree for some depths, in any order, of a stack of `max_depth` blocks.

    Raises:
      ValueError: for no depth at all, or one outside 1..`max_depth`.
    """
    if not depths:
        raise ValueError("expected at least one depth, got none")
    paths = [kept_blocks(depth, max_depth) for depth in depths]
    blocks, levels, ends = [], [], {}
    previous: tuple[int, ...] = ()
    for path in sorted(set(paths)):
        shared = 0
        while shared < min(len(path), len(previous)) and path[shared] == previous[shared]:
            shared += 1
        blocks += path[shared:]
        levels += range(shared, len(path))
        ends[path] = len(blocks) - 1
        previous = path
    leaves = tuple(ends[path] for path in paths)
    return DepthTree(tuple(blocks), tuple(levels), leaves, sum(map(len, paths)))
