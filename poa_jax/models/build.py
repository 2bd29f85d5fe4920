"""From a checked configuration to modules with typed fields: the door the ConfigDict stops at."""

import itertools

import jax.numpy as jnp
import ml_collections

from poa_jax.elastic.space import SearchSpace, Subnet
from poa_jax.elastic.width import Width
from poa_jax.models.heads import MultiHead
from poa_jax.models.resnet import ResNet
from poa_jax.models.swin import Swin
from poa_jax.models.vit import ViT

Model = ViT | Swin | ResNet
FAMILIES: dict[str, type[Model]] = {"vit": ViT, "swin": Swin, "resnet": ResNet}

_ALIASES = {
    "vit": {
        "small": Subnet(384, (12,)),
        "base": Subnet(768, (12,)),
        "large": Subnet(1024, (24,)),
    },
    "swin": {
        "tiny": Subnet(96, (2, 2, 6, 2)),
        "small": Subnet(96, (2, 2, 18, 2)),
        "base": Subnet(128, (2, 2, 18, 2)),
    },
    "resnet": {
        "r50": Subnet(64, (3, 4, 6, 3)),
        "r101": Subnet(64, (3, 4, 23, 3)),
        "r152": Subnet(64, (3, 8, 36, 3)),
    },
}


def backbone(config: ml_collections.ConfigDict) -> Model:
    """Return the intact backbone that `config.model` describes."""
    m = config.model
    common = {
        "image_size": m.image_size,
        "width": m.width,
        "dtype": jnp.dtype(m.dtype),
        "remat": m.remat,
    }
    match m.family:
        case "vit":
            return ViT(
                patch_size=m.patch_size,
                depth=m.depth,
                head_dim=m.head_dim,
                mlp_ratio=m.mlp_ratio,
                mlp=m.mlp,
                layer_scale=m.layer_scale,
                drop_path=m.drop_path,
                drop_path_uniform=m.drop_path_uniform,
                **common,
            )
        case "swin":
            return Swin(
                patch_size=m.patch_size,
                depths=tuple(m.depths),
                window=m.window,
                head_dim=m.head_dim,
                mlp_ratio=m.mlp_ratio,
                drop_path=m.drop_path,
                official_patch_norm=m.official_patch_norm,
                **common,
            )
        case "resnet":
            return ResNet(depths=tuple(m.depths), stem=m.stem, groups=m.groups, **common)
    raise ValueError(f"no model family '{m.family}', expected one of {', '.join(FAMILIES)}")


def family(model: Model) -> str:
    """Return the name of a backbone's family.

    Raises:
      TypeError: for a backbone of none of them.
    """
    for name, kind in FAMILIES.items():
        if isinstance(model, kind):
            return name
    raise TypeError(f"a {type(model).__name__} is of none of the families {', '.join(FAMILIES)}")


def heads(config: ml_collections.ConfigDict) -> MultiHead:
    """Return the projection heads that `config.heads` describes."""
    h, body = config.heads, backbone(config)
    return MultiHead(
        width=body.feature_width(Width(body.width)).bound,
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
    least, most = ((e.min_depth,), (m.depth,)) if m.family == "vit" else (e.min_depths, m.depths)
    depths = [
        range(low, high + 1, step)
        for low, high, step in zip(least, most, itertools.repeat(e.depth_step), strict=False)
    ]
    width_scale = e.scale if e.weight_widths else 1
    return SearchSpace.grid(widths, depths, width_scale, e.scale, _ALIASES[m.family])


def bounds(config: ml_collections.ConfigDict, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the width bounds of `elastic.width_bounds`, ascending, the full width among them."""
    chosen = config.elastic.width_bounds
    if chosen == "each":
        return widths
    if chosen == "max":
        return widths[-1:]
    return tuple(sorted({*chosen, widths[-1]}))
