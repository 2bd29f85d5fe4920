"""Every sub-network of the small spaces, cut out, against its elastic forward at two image sizes.

Slow, so it runs only when asked for: `make test TEST_FLAGS="-m slow"`.
"""

import functools

import golden_params
import golden_resnet
import golden_swin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import SearchSpace, depth_mask, kept_blocks
from poa_jax.elastic.width import Width
from poa_jax.models.resnet import ResNet
from poa_jax.models.swin import Swin
from poa_jax.models.vit import ViT
from poa_jax.supernet import extract_params

FAMILIES = {
    "vit": (
        ViT(image_size=32, patch_size=8, width=64, depth=5, head_dim=16),
        SearchSpace.grid((32, 48, 64), [range(2, 6)], 3, 3),
        (32, 48),
        lambda: golden_params.vit_backbone(_stored("vit")),
    ),
    "swin": (
        Swin(image_size=64, width=64, depths=(2, 2, 4, 2), window=4),
        SearchSpace.grid((32, 48, 64), [(2,), (2,), (2, 3, 4), (2,)], 2, 2),
        (64, 40),
        lambda: golden_swin.backbone(_stored("swin")),
    ),
    "resnet": (
        ResNet(image_size=64, width=32, depths=(2, 2, 3, 2), stem=16, groups=4),
        SearchSpace.grid(range(16, 33, 4), [(1, 2), (1, 2), (1, 2, 3), (1, 2)], 1, 2),
        (64, 32),
        lambda: golden_resnet.resnet_backbone(_stored("resnet")),
    ),
}


def _stored(name):
    return golden_params.under(golden_params.load(name), "param/")


@functools.partial(jax.jit, static_argnames=("model", "width"))
def elastic(model, width, params, keep, images):
    small = {"params": cut(params, model.cuts(Width(width)))}
    return [model.resized(width).apply(small, x, keep=keep) for x in images]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_extracted_network_equals_its_elastic_forward(family):
    model, space, sizes, make = FAMILIES[family]
    params = jax.tree.map(jnp.asarray, make())
    rng = np.random.default_rng(0)
    images = [jnp.asarray(rng.normal(size=(1, s, s, 3)), jnp.float32) for s in sizes]
    worst = 0.0
    for subnet in space:
        expected = elastic(
            model, subnet.width, params, depth_mask(subnet.depths, model.max_depths), images
        )
        kept = tuple(map(kept_blocks, subnet.depths, model.max_depths))
        # Operation by operation: each network would be compiled for itself and run once.
        with jax.disable_jit():
            small = {"params": extract_params(model, params, subnet.width, kept)}
            static = model.resized(subnet.width, subnet.depths)
            found = [static.apply(small, x) for x in images]
        for a, b in zip(found, expected, strict=True):
            for name in ("cls", "patches"):
                worst = max(worst, float(np.abs(a[name] - b[name]).max()))
    print(f"{family}: {len(space)} networks, largest difference {worst:.1e}")
    assert worst <= 1e-5
