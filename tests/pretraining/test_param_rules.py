"""Learning-rate and weight-decay factors of every parameter against the official groups."""

import functools

import golden_params
import golden_resnet
import golden_swin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from poa_jax.elastic.width import Width
from poa_jax.models.heads import MultiHead
from poa_jax.models.resnet import ResNet
from poa_jax.models.swin import Swin
from poa_jax.models.vit import ViT
from poa_jax.pretraining.optimizer import make_groups
from poa_jax.pretraining.param_rules import rules_for
from poa_jax.pretraining.state import init_params

FAMILIES = {
    "vit": (ViT(image_size=32, patch_size=8, width=64, depth=5), golden_params.backbone_path),
    "swin": (
        Swin(image_size=64, width=64, depths=(2, 2, 4, 2), window=4),
        golden_swin.backbone_path,
    ),
    "resnet": (
        ResNet(image_size=64, width=32, depths=(2, 2, 3, 2), stem=16, groups=4),
        golden_resnet.backbone_path,
    ),
}
OFFICIAL = {"lr": "lr_multiplier", "weight_decay": "wd_multiplier", "last_layer": "is_last_layer"}


@functools.cache
def groups(family):
    backbone = FAMILIES[family][0]
    width = backbone.feature_width(Width(backbone.width)).bound
    heads = MultiHead(width, (32, 48), hidden=40, bottleneck=24)
    make = functools.partial(init_params, backbone, heads, backbone.image_size, 0)
    return make_groups(jax.eval_shape(make), rules_for(backbone, 0.9, 0.2))


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_equal_the_official_ones_for_every_parameter(golden, family, name):
    data = golden("param_groups")
    ours = flatten_dict(getattr(groups(family), name), sep="/")
    sources = [
        (f"{family}_backbone", "backbone/", FAMILIES[family][1]),
        (f"head_{family}", "heads/", golden_params.head_path),
    ]
    seen = set()
    for model, prefix, to_path in sources:
        expected = data[f"{model}/{OFFICIAL[name]}"]
        for parameter, wanted in zip(data[f"{model}/names"], expected, strict=True):
            found = to_path(str(parameter))
            if found is None:  # a norm of the official Swin that pre-training never reaches
                continue
            path, block = found
            value = ours[prefix + path]
            value = value[block] if isinstance(value, np.ndarray) else value
            np.testing.assert_allclose(value, wanted, atol=1e-12, rtol=1e-12, err_msg=parameter)
            seen.add(prefix + path)
    assert seen == set(ours)


def test_backbones_of_unknown_families_are_refused():
    with pytest.raises(TypeError, match="no learning-rate rules for a MultiHead"):
        rules_for(MultiHead(8, (4,)), 0.9, 0.2)


def test_rates_of_stacked_blocks_broadcast_over_their_leaf():
    factor = groups("swin").lr["backbone"]["stage3"]["attn"]["qkv"]["kernel"]
    assert factor.shape == (4, 1, 1, 1)
    assert jnp.shape(groups("resnet").lr["backbone"]["stage1"]["first"]["conv1"]["kernel"]) == ()
