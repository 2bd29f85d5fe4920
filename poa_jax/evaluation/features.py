"""Features of many sub-networks over a data set: one pass over the images for each width."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.data.crops import normalise
from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import Subnet
from poa_jax.elastic.width import Width
from poa_jax.models.sweep import make_plan
from poa_jax.supernet import Supernet

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def feature_bytes() -> int:
    """Return how much memory features may take at once: half of what this process may use."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a Unix system
        memory = 8 * 2**30
    with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ("max")
        memory = min(memory, int(_CGROUP_LIMIT.read_text()))
    return memory // 2


def by_width(
    subnets: Iterable[Subnet],
    images: int,
    limit: int | None = None,
    feature_width: Callable[[int], int] = int,
) -> Iterator[tuple[int, tuple[Subnet, ...]]]:
    """Yield (width, sub-networks) so that the float32 features of each group fit into memory.

    Sub-networks of a group share one pass over the images; a group smaller than its width's share
    of the list means more passes, never another number. `images` counts an image once for each set
    of parameters; `limit` is in bytes, `feature_bytes()` by default; `feature_width` says how wide
    the features of a network's width are.
    """
    limit = feature_bytes() if limit is None else limit
    groups: dict[int, list[Subnet]] = {}
    for subnet in dict.fromkeys(subnets):
        groups.setdefault(subnet.width, []).append(subnet)
    for width, members in sorted(groups.items()):
        at_once = max(1, limit // (4 * feature_width(width) * max(images, 1)))
        for start in range(0, len(members), at_once):
            yield width, tuple(members[start : start + at_once])


@functools.partial(jax.jit, static_argnames=("model", "width", "mean", "std"))
def _sweep(model, width, mean, std, params, images_u8, plan):
    small = {"params": cut(params, model.cuts(Width(width)))}
    images = normalise(images_u8, mean, std)
    return model.resized(width).apply(small, images, plan, method="sweep").astype(jnp.float32)


def cls_features(
    net: Supernet, params: Any, subnets: Sequence[Subnet], images_u8: jax.Array
) -> jax.Array:
    """Return class features (S, B, D) of sub-networks of one width, for uint8 images (B, H, W, 3).

    One compilation for a width and as many depths in each stage. `params` are the supernet's, or
    others of the same shape.

    Raises:
      ValueError: for sub-networks of several widths.
    """
    widths = {s.width for s in subnets}
    if len(widths) != 1:
        raise ValueError(f"expected sub-networks of one width, got widths {sorted(widths)}")
    plan = make_plan([s.depths for s in subnets], net.model.max_depths)
    return _sweep(net.model, widths.pop(), net.mean, net.std, params, images_u8, plan)


def extract_features(
    net: Supernet,
    all_params: Sequence[Any],
    subnets: Sequence[Subnet],
    batches: Iterable[tuple[np.ndarray, np.ndarray, int]],
    images: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Run sub-networks of one width over batches, once for each set of parameters.

    Args:
      net: the supernet.
      all_params: P sets of its parameters.
      subnets: S sub-networks of one width.
      batches: (images uint8 (b, H, W, 3), labels (b,), how many of the b count).
      images: the most images that the batches hold.

    Returns:
      Features (P, S, n, D) float32 and labels (n,) int32, in the host's memory.
    """
    features = net.model.feature_width(Width(subnets[0].width)).bound
    shape = (len(all_params), len(subnets), images, features)
    features_PSBD, labels_B = np.empty(shape, np.float32), np.empty(images, np.int32)
    done = 0
    for pixels, labels, valid in batches:
        rows = slice(done, done + valid)
        for out_SBD, params in zip(features_PSBD, all_params, strict=True):
            found_SBD = cls_features(net, params, subnets, jnp.asarray(pixels))
            out_SBD[:, rows] = np.asarray(found_SBD)[:, :valid]
        labels_B[rows] = labels[:valid]
        done += valid
    return features_PSBD[:, :, :done], labels_B[:done]
