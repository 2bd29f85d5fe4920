"""How fast each parameter learns and whether it decays: the published recipe of each family.

Learning rates fall from the output to the input, by one factor a block over all stages
(arXiv 2408.01031, appendix A; details from the official code). Biases, norms and LayerScale have no
weight decay; tokens, tables of positions and both parts of weight-normalised layers do.
"""

from collections.abc import Sequence

import flax.linen as nn
import numpy as np

from poa_jax.models.resnet import ResNet
from poa_jax.models.swin import Swin
from poa_jax.models.vit import ViT
from poa_jax.pretraining.optimizer import Rule, Rules

# The heads are the same whatever backbone they stand on.
HEAD_RULES = Rules(
    lr=[(r"heads/.*", 1.0)],
    weight_decay=[(r"heads/.*/bias", 0.0), (r"heads/.*", 1.0)],
    last_layer=[(r"heads/[^/]+/last_layer/.*", True), (r"heads/.*", False)],
    module=[(r"heads/.*", "heads")],
)


def rules_for(backbone: nn.Module, layer_decay: float, patch_embed_lr: float) -> Rules:
    """Return the rules for a backbone with its heads.

    Raises:
      TypeError: for a backbone of no known family; give such a one rules of its own.
    """
    match backbone:
        case ViT():
            return vit_rules(backbone.depth, layer_decay, patch_embed_lr)
        case Swin():
            return swin_rules(backbone.depths, layer_decay, patch_embed_lr)
        case ResNet():
            return resnet_rules(backbone.depths, layer_decay)
    raise TypeError(f"no learning-rate rules for a {type(backbone).__name__}")


def vit_rules(depth: int, layer_decay: float, patch_embed_lr: float) -> Rules:
    """Return the rules of a ViT of `depth` blocks with its heads.

    Block i learns at layer_decay^(depth − i), what comes before the blocks at
    layer_decay^(depth + 1), the patch embedding `patch_embed_lr` times that, the final norm and the
    heads at 1.
    """
    stem = layer_decay ** (depth + 1)
    return _with_heads(
        lr=[
            (r"backbone/patch_embed/.*", stem * patch_embed_lr),
            (r"backbone/(cls_token|pos_embed|mask_token)", stem),
            (r"backbone/blocks/.*", tuple(layer_decay ** (depth - i) for i in range(depth))),
            (r"backbone/norm/.*", 1.0),
        ],
        weight_decay=[(r"backbone/.*/(bias|scale|gamma)", 0.0), (r"backbone/.*", 1.0)],
    )


def swin_rules(depths: Sequence[int], layer_decay: float, patch_embed_lr: float) -> Rules:
    """Return the rules of a Swin: as the ViT's, with L blocks counted through all stages.

    What merges tokens before a stage learns as fast as the first block of that stage.
    """
    total = sum(depths)
    stem = layer_decay ** (total + 1)
    first = np.cumsum([0, *depths]).tolist()
    lr: list[Rule] = [
        (r"backbone/patch_(embed|norm)/.*", stem * patch_embed_lr),
        (r"backbone/mask_token", stem),
        (r"backbone/norm/.*", 1.0),
    ]
    for i, depth in enumerate(depths):
        rates = tuple(layer_decay ** (total - first[i] - j) for j in range(depth))
        lr.append((rf"backbone/stage{i + 1}/.*", rates))
        if i > 0:
            lr.append((rf"backbone/merge{i}/.*", rates[0]))
    no_decay = r"backbone/.*/(bias|scale)"
    return _with_heads(lr, [(no_decay, 0.0), (r"backbone/.*", 1.0)])


def resnet_rules(depths: Sequence[int], layer_decay: float) -> Rules:
    """Return the rules of a ResNet: block i of L learns at layer_decay^(L − 1 − i), the stem at L.

    The scale of the norm beside the residual path decays, as in the official code, which tells
    norms by their names.
    """
    total = sum(depths)
    first = np.cumsum([0, *depths]).tolist()
    lr: list[Rule] = [(r"backbone/(conv1|norm1|mask_token)(/.*)?", layer_decay**total)]
    for i, depth in enumerate(depths):
        rates = tuple(layer_decay ** (total - 1 - first[i] - j) for j in range(depth))
        lr.append((rf"backbone/stage{i + 1}/first/.*", rates[0]))
        if depth > 1:
            lr.append((rf"backbone/stage{i + 1}/rest/.*", rates[1:]))
    decays = r"backbone/.*/downsample_norm/scale"
    weight_decay = [(decays, 1.0), (r"backbone/.*/(bias|scale)", 0.0), (r"backbone/.*", 1.0)]
    return _with_heads(lr, weight_decay)


def _with_heads(lr: list[Rule], weight_decay: list[Rule]) -> Rules:
    return Rules(
        lr=[*lr, *HEAD_RULES.lr],
        weight_decay=[*weight_decay, *HEAD_RULES.weight_decay],
        last_layer=[(r"backbone/.*", False), *HEAD_RULES.last_layer],
        module=[(r"backbone/.*", "backbone"), *HEAD_RULES.module],
    )
