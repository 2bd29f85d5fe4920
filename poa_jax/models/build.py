"""From a checked configuration to modules with typed fields: the door the ConfigDict stops at."""

import jax.numpy as jnp
import ml_collections

from poa_jax.elastic.space import SearchSpace, Subnet
from poa_jax.models.heads import MultiHead
from poa_jax.models.vit import ViT

_ALIASES = {
    "vit": {
        "small": Subnet(384, (12,)),
        "base": Subnet(768, (12,)),
        "large": Subnet(1024, (24,)),
    }
}


def backbone(config: ml_collections.ConfigDict) -> ViT:
    """Return the intact backbone that `config.model` describes."""
    m = config.model
    return ViT(
        image_size=m.image_size,
        patch_size=m.patch_size,
        width=m.width,
        depth=m.depth,
        head_dim=m.head_dim,
        mlp_ratio=m.mlp_ratio,
        mlp=m.mlp,
        layer_scale=m.layer_scale,
        drop_path=m.drop_path,
        drop_path_uniform=m.drop_path_uniform,
        dtype=jnp.dtype(m.dtype),
        remat=m.remat,
    )


def heads(config: ml_collections.ConfigDict) -> MultiHead:
    """Return the projection heads that `config.heads` describes."""
    h = config.heads
    return MultiHead(
        width=config.model.width,
        prototypes=tuple(h.prototypes),
        hidden=h.hidden,
        bottleneck=h.bottleneck,
        layers=h.layers,
        dtype=jnp.dtype(config.model.dtype),
    )


def space(config: ml_collections.ConfigDict) -> SearchSpace:
    """Return the sub-networks that `config.elastic` allows."""
    m, e = config.model, config.elastic
    widths = range(e.min_width, m.width + 1, e.width_step)
    depths = range(e.min_depth, m.depth + 1, e.depth_step)
    return SearchSpace.grid(widths, [depths], e.scale, e.scale, _ALIASES[m.family])


def bounds(config: ml_collections.ConfigDict, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the width bounds of `elastic.width_bounds`, ascending, the full width among them."""
    chosen = config.elastic.width_bounds
    if chosen == "each":
        return widths
    if chosen == "max":
        return widths[-1:]
    return tuple(sorted({*chosen, widths[-1]}))
