"""Features of many sub-networks over a data set: one pass over the images for each width."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.data.pipeline import eval_batches
from poa_jax.data.sources import Source
from poa_jax.elastic.depth_tree import depth_tree
from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import Subnet
from poa_jax.elastic.width import Width
from poa_jax.supernet import Supernet

FEATURE_BYTES = 8 * 2**30  # features held at once; more sub-networks mean more passes


def by_width(
    subnets: Iterable[Subnet], images: int, feature_bytes: int = FEATURE_BYTES
) -> Iterator[tuple[int, tuple[Subnet, ...]]]:
    """Yield (width, sub-networks) so that the float32 features of each group fit in memory."""
    groups: dict[int, list[Subnet]] = {}
    for subnet in subnets:
        groups.setdefault(subnet.width, []).append(subnet)
    for width, members in sorted(groups.items()):
        at_once = max(1, feature_bytes // (4 * width * max(images, 1)))
        for start in range(0, len(members), at_once):
            yield width, tuple(members[start : start + at_once])


@functools.partial(jax.jit, static_argnames=("model", "width", "mean", "std"))
def _sweep(model, width, mean, std, params, images_u8, blocks, levels, leaves):
    from poa_jax.data.crops import normalise

    small = {"params": cut(params, model.cuts(Width(width)))}
    images = normalise(images_u8, mean, std)
    nodes_SBD = model.resized(width).apply(small, images, blocks, levels, method="sweep")
    return nodes_SBD[leaves].astype(jnp.float32)


def cls_features(
    net: Supernet, params: Any, subnets: Sequence[Subnet], images_u8: jax.Array
) -> jax.Array:
    """Return class tokens (S, B, D) of sub-networks of one width, for uint8 images (B, H, W, 3).

    One compilation for a width and a list of depths. `params` are the supernet's, or others of the
    same shape.
    """
    tree = depth_tree([s.depths[0] for s in subnets], net.model.max_depths[0])
    nodes = (np.asarray(x, np.int32) for x in (tree.blocks, tree.levels, tree.leaves))
    return _sweep(net.model, subnets[0].width, net.mean, net.std, params, images_u8, *nodes)


def labelled_images(
    source: Source, resize: int, crop: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield evaluation batches of a labelled source; see `data.pipeline.eval_batches`.

    Raises:
      ValueError: for a source without labels.
    """
    if source.num_classes is None:
        raise ValueError(
            "k-NN needs labels, and this source has none; put images into class sub-folders"
        )
    return eval_batches(source, resize, crop, batch_size)


def extract_features(
    net: Supernet,
    all_params: Sequence[Any],
    subnets: Sequence[Subnet],
    batches: Iterable[tuple[np.ndarray, np.ndarray, int]],
) -> tuple[list[np.ndarray], np.ndarray]:
    """Run sub-networks of one width over batches, once for each set of parameters.

    Returns:
      A list with one (S, n, D) float32 array for each set of parameters, and the labels (n,).
    """
    features: list[list[np.ndarray]] = [[] for _ in all_params]
    labels = []
    for images, label, valid in batches:
        for out, params in zip(features, all_params, strict=True):
            found = cls_features(net, params, subnets, jnp.asarray(images))
            out.append(np.asarray(found)[:, :valid])
        labels.append(label[:valid])
    return [np.concatenate(f, axis=1) for f in features], np.concatenate(labels)
