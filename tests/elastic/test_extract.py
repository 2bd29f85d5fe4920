"""Extraction against the files that the official tool wrote, and its refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_params import backbone_path, layout, under, vit_backbone

from poa_jax.elastic.extract import cut, pick_blocks
from poa_jax.elastic.layers import Cut
from poa_jax.elastic.space import kept_blocks
from poa_jax.elastic.width import Width
from poa_jax.models.vit import ViT

SUPERNET = ViT(image_size=32, patch_size=8, width=64, depth=5, head_dim=16)
SUBNETS = [(32, 3), (48, 4)]


def extract(golden, width, depth):
    params = vit_backbone(under(golden("vit"), "param/"))
    picked = SUPERNET.pick(params, (kept_blocks(depth, 5),))
    return cut(picked, SUPERNET.cuts(Width(width)))


@pytest.mark.parametrize(("width", "depth", "stored"), [(32, 3, 49), (48, 4, 57)])
def test_parameters_equal_what_the_official_tool_writes(golden, width, depth, stored):
    arrays, name = golden("extract_vit"), f"w{width}_d{depth}"
    official = under(arrays, f"{name}/") | under(arrays, f"{name}_missing_final_norm/")
    assert len(official) == stored
    found = extract(golden, width, depth)
    assert found["blocks"]["ls1"]["gamma"].shape == (depth, width)
    for key, array in official.items():
        path, block = backbone_path(key)
        leaf = functools.reduce(lambda tree, part: tree[part], path.split("/"), found)
        leaf = leaf if block is None else leaf[block]
        scaled = block is not None and path.endswith("kernel")
        rtol = 1e-6 if scaled else 0  # what α does not touch is copied bit by bit
        np.testing.assert_allclose(leaf, layout(path, array), rtol=rtol, err_msg=key)


@pytest.mark.parametrize(("width", "depth"), SUBNETS)
def test_static_network_equals_the_official_static_network(golden, width, depth):
    stored = under(golden("extract_vit"), f"w{width}_d{depth}_static_out/")
    images = jnp.asarray(golden("vit")["input/img32"].transpose(0, 2, 3, 1))
    static = SUPERNET.resized(width, (depth,))
    params = extract(golden, width, depth)
    out = jax.jit(static.apply)({"params": params}, images)
    for name, key in (("cls", "x_norm_clstoken"), ("patches", "x_norm_patchtokens")):
        np.testing.assert_allclose(out[name], stored[key], atol=5e-5, rtol=1e-4)


def test_the_intact_network_is_extracted_unchanged(golden):
    params = vit_backbone(under(golden("vit"), "param/"))
    jax.tree.map(np.testing.assert_array_equal, extract(golden, 64, 5), params)


def test_picking_blocks_keeps_their_order_and_leaves_the_rest():
    params = {"norm": np.ones(2), "blocks": {"a": {"b": np.arange(10.0).reshape(5, 2)}}}
    picked = SUPERNET.pick(params, ((0, 2, 4),))
    np.testing.assert_array_equal(picked["blocks"]["a"]["b"], [[0, 1], [4, 5], [8, 9]])
    assert picked["norm"] is params["norm"]
    np.testing.assert_array_equal(pick_blocks({"x": np.arange(4.0)}, (3,))["x"], [3])


def test_order_of_picking_and_cutting_does_not_matter(golden):
    params = vit_backbone(under(golden("vit"), "param/"))
    small = cut(params, SUPERNET.cuts(Width(32)))
    picked = SUPERNET.pick(small, (kept_blocks(3, 5),))
    jax.tree.map(np.testing.assert_array_equal, picked, extract(golden, 32, 3))


def test_a_tree_that_differs_from_the_rules_is_refused():
    rules = {"a": {"kernel": Cut(), "bias": Cut()}}
    for params in (
        {"a": {"kernel": np.ones(2)}},
        {"a": {k: np.ones(2) for k in ("kernel", "bias", "x")}},
    ):
        with pytest.raises(ValueError, match=r"slicing rules differ at \['(bias|x)'\]"):
            cut(params, rules)


def test_a_width_beyond_the_axis_is_refused():
    with pytest.raises(ValueError, match="width of 5 cannot be cut from an axis of 4"):
        cut({"x": np.ones((2, 4))}, {"x": Cut(((-1, Width(5)),))})
