"""A trained supernet, and the static backbones cut out of it: what users hold in their hands."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.data.crops import normalise
from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import SearchSpace, Subnet, depth_mask, kept_blocks
from poa_jax.elastic.width import Width
from poa_jax.models.build import Model
from poa_jax.models.vit import Features

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One static network, ready to use: `backbone(images)`.

    Attributes:
      model: the network without parameters.
      params: its parameters.
      subnet: which sub-network of the supernet it was.
      mean, std: of the pixels (0..1) that images are normalised with; see `normalise`.
    """

    model: Model
    params: Params
    subnet: Subnet
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images_BHWC: jax.Array, masks_BN: jax.Array | None = None) -> Features:
        """Encode normalised float32 images (B, H, W, 3); `masks_BN` hides patches.

        Raises:
          ValueError: for an array of another rank or number of channels.
        """
        check_images(images_BHWC)
        return _encode(self.model, self.params, images_BHWC, masks_BN)

    def normalise(self, images_u8: np.ndarray) -> jax.Array:
        """Turn uint8 images into what the network was trained on."""
        return normalise(jnp.asarray(images_u8), self.mean, self.std)

    @property
    def num_params(self) -> int:
        """Parameters, without the mask token, which only pre-training uses."""
        sizes = {name: _count(tree) for name, tree in self.params.items()}
        return sum(size for name, size in sizes.items() if name != "mask_token")

    def macs(self, image_size: int | None = None) -> int:
        """Multiply-adds for one square image; the default size is that of training."""
        return self.model.cost(image_size or self.model.image_size).macs


@dataclasses.dataclass(frozen=True)
class Supernet:
    """A supernet with the parameters of the teacher, which every sub-network is cut from.

    Attributes:
      model: the intact network without parameters.
      params: its parameters.
      space: the sub-networks it holds.
      mean, std: as in `Backbone`.
      step: training steps behind the parameters.
    """

    model: Model
    params: Params
    space: SearchSpace
    mean: tuple[float, ...]
    std: tuple[float, ...]
    step: int = 0

    def extract(self, subnet: str | Subnet) -> Backbone:
        """Cut out a static backbone, without training: slices, α folded into the weights.

        Args:
          subnet: a name (`w384-d12`), an alias (`small`), or a `Subnet` of the space.

        Raises:
          ValueError: for one that is not in the space; names the nearest.
        """
        subnet = self._find(subnet)
        depths = zip(subnet.depths, self.model.max_depths, strict=True)
        kept = tuple(kept_blocks(depth, max_depth) for depth, max_depth in depths)
        params = extract_params(self.model, self.params, subnet.width, kept)
        model = self.model.resized(subnet.width, subnet.depths)
        return Backbone(model, params, subnet, self.mean, self.std)

    def apply(
        self,
        images_BHWC: jax.Array,
        subnet: str | Subnet | None = None,
        masks: jax.Array | None = None,
    ) -> Features:
        """Run the elastic forward of one sub-network (default: the intact network).

        One compilation serves all depths of a width. Images as in `Backbone`.
        """
        check_images(images_BHWC)
        subnet = self.space.intact if subnet is None else self._find(subnet)
        keep = depth_mask(subnet.depths, self.model.max_depths)
        return _elastic(self.model, subnet.width, self.params, images_BHWC, keep, masks)

    def cost(self, subnet: str | Subnet, image_size: int | None = None):
        """Return the exact parameters and multiply-adds of a sub-network (a `Cost`)."""
        subnet = self._find(subnet)
        resized = self.model.resized(subnet.width, subnet.depths)
        return resized.cost(image_size or self.model.image_size)

    def normalise(self, images_u8: np.ndarray) -> jax.Array:
        """Turn uint8 images into what the network was trained on."""
        return normalise(jnp.asarray(images_u8), self.mean, self.std)

    def _find(self, subnet: str | Subnet) -> Subnet:
        return self.space.parse(str(subnet))


@functools.partial(jax.jit, static_argnames=("model", "width", "kept"))
def extract_params(
    model: Model, params: Params, width: int, kept: tuple[tuple[int, ...], ...]
) -> dict[str, Any]:
    """Cut parameters to a width and to the kept blocks of each stage."""
    shallow = model.resized(model.width, tuple(map(len, kept)))
    return cut(model.pick(params, kept), shallow.cuts(Width(width)))


@functools.partial(jax.jit, static_argnames="model")
def _encode(model, params, images, masks):
    out = model.apply({"params": params}, images, masks)
    return Features(out["cls"], out["patches"])


@functools.partial(jax.jit, static_argnames=("model", "width"))
def _elastic(model, width, params, images, keep, masks):
    small = {"params": cut(params, model.cuts(Width(width)))}
    out = model.resized(width).apply(small, images, masks, keep=keep)
    return Features(out["cls"], out["patches"])


def check_images(images: Any) -> None:
    """Refuse arrays that are not normalised images."""
    shape = getattr(images, "shape", ())
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"expected images of shape (B, H, W, 3), got {tuple(shape)}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"expected normalised float images, got {images.dtype}; call normalise() on uint8 first"
        )


def _count(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
