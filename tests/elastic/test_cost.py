"""Analytic cost against the published table, to the last digit."""

import csv

import jax
import jax.numpy as jnp
import pytest
from golden_params import GOLDEN

from poa_jax.elastic.cost import Cost, attention, dense, vector
from poa_jax.models.vit import ViT

with open(GOLDEN / "poa_cost_vit.csv", newline="") as file:
    ROWS = [{k: int(v) for k, v in row.items()} for row in csv.DictReader(file)]
SUPERNET = ViT(image_size=224, patch_size=16, width=1024, depth=24)


def test_the_table_has_every_published_network():
    assert {(r["width"], r["depth"]) for r in ROWS} == {
        (width, depth) for width in range(384, 1025, 64) for depth in range(12, 25)
    }
    assert set(ROWS[0]) == {
        "width", "depth", "heads", "params", "params_with_mask_token",
        "params_without_layerscale", "macs_224", "macs_patch_embed_224", "macs_linear_224",
        "macs_attention_matmul_224", "macs_96",
    }  # fmt: skip


def test_costs_equal_the_table_to_the_last_digit():
    for row in ROWS:
        width, depth = row["width"], row["depth"]
        net = SUPERNET.resized(width, (depth,))
        assert net.width // net.head_dim == row["heads"]
        assert net.cost(224) == Cost(row["params"], row["macs_224"])
        assert net.cost(96) == Cost(row["params"], row["macs_96"])
        assert net.cost(224).params + vector(width).params == row["params_with_mask_token"]
        bare = net.clone(layer_scale=0.0).cost(224)
        assert bare == Cost(row["params_without_layerscale"], row["macs_224"])
        assert depth * attention(197, width).macs == row["macs_attention_matmul_224"]
        assert dense(196, 3 * 16**2, width).macs == row["macs_patch_embed_224"]
        linear = dense(197, width, 12 * width).macs
        assert depth * linear == row["macs_linear_224"]


def test_costs_add_and_repeat():
    assert Cost(2, 3) + Cost(10, 20) == Cost(12, 23)
    assert 3 * Cost(2, 3) == Cost(6, 9)
    assert dense(5, 3, 4) == Cost(3 * 4 + 4, 5 * 3 * 4)
    assert attention(5, 8) == Cost(0, 2 * 5 * 5 * 8)
    assert vector(7, 2) == Cost(14, 0)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_swiglu_and_gelu_costs_equal_counted_parameters_and_products(mlp):
    net = ViT(image_size=16, patch_size=8, width=24, depth=3, head_dim=8, mlp=mlp)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    count = sum(x.size for x in jax.tree.leaves(params)) - params["mask_token"].size
    assert net.cost(16).params == count
    tokens, blocks = 5, params["blocks"]
    kernels = [k for part in (blocks["attn"], blocks["mlp"]) for k in part.values()]
    products = tokens * sum(k["kernel"].size for k in kernels)
    patches = 4 * params["patch_embed"]["kernel"].size
    assert net.cost(16).macs == products + patches + 3 * attention(tokens, 24).macs
