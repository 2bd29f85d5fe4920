"""What a backbone must offer to be pre-trained, measured and cut: a handful of functions.

`ViT`, `Swin` and `ResNet` satisfy it; a Flax module of your own that does so too goes into
`pretraining.step.Recipe`, `Supernet` and the sweep as they do. `tests/elastic_conformance.py`
checks a backbone against all of it: add a row to `tests/test_elastic_conformance.py`.

One sub-network runs in three ways, which must give the same numbers:

    masked     resized(max) on cut(params, cuts(Width(max, active))), with width= and keep=
    sliced     resized(w) on cut(params, cuts(Width(w))), with keep=
    extracted  resized(w, depths) on cut(pick(params, kept), resized(max, depths).cuts(Width(w))):
               a static network
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

from poa_jax.elastic.cost import Cost
from poa_jax.elastic.width import Width
from poa_jax.models.sweep import Plan

Params = Mapping[str, Any]
Keep = tuple[jax.Array, ...]


class ElasticBackbone(Protocol):
    """A Flax module that computes on parameters of any width, and says how they shrink.

    Attributes:
      image_size: pixels of a global crop.
      width: the elastic width of this network.
    """

    image_size: int
    width: int

    @property
    def max_depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of a mask of a global crop; as many patch features come out."""

    def feature_width(self, width: Width) -> Width:
        """Return the width D of the features of a network cut to `width`; heads are cut to it."""

    def cuts(self, width: Width) -> dict[str, Any]:
        """Return a `Cut` for every parameter: how it shrinks to `width`."""

    def resized(self, width: int, depths: tuple[int, ...] | None = None) -> "ElasticBackbone":
        """Return the ordinary module for parameters cut to `width`, or also to `depths` blocks.

        Its own `cuts` fit parameters that lost the other blocks.
        """

    def pick(self, params: Params, kept: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
        """Return the parameters with only the named blocks of each stage."""

    def check_image(self, h: int, w: int) -> None:
        """Raise ValueError for an image size it cannot encode."""

    def cost(self, image_size: int) -> Cost:
        """Count parameters, without the mask token, and multiply-adds for one square image."""

    def views(
        self,
        images: Sequence[jax.Array],
        masks: Sequence[jax.Array | None],
        *,
        width: Width | None = None,
        keep: Keep | None = None,
        key: jax.Array | None = None,
    ) -> list[dict[str, Any]]:
        """Encode several batches of crops of different sizes in one pass.

        Args:
          images: (B, H, W, 3) each.
          masks: for each None, or (B, N) booleans over the mask grid.
          width: the traced `Width` of a masked run; else None, or one without `active`.
          keep: for each stage booleans over its blocks, traced; None runs all.
          key: random key of stochastic depth; None drops nothing.

        Returns:
          For each batch a dict with `cls` (B, D) and `patches` (B, N, D), and what else it likes.
        """

    def __call__(
        self,
        images_BHWC: jax.Array,
        masks_BN: jax.Array | None = None,
        *,
        width: Width | None = None,
        keep: Keep | None = None,
    ) -> dict[str, Any]:
        """Encode crops of one size, as `views` does."""

    def sweep(self, images_BHWC: jax.Array, plan: Plan, width: Width | None = None) -> jax.Array:
        """Return `cls` (S, B, D) of all sub-networks of a plan; see `models.sweep.walk`."""
