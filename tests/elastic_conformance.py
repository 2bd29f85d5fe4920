"""What every elastic backbone must satisfy; `test_elastic_conformance.py` runs it on each family.

The protocol is `poa_jax/models/protocol.py`. A family adds one `Row`.
"""

import collections
import csv
import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import golden_params
import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.elastic.extract import cut
from poa_jax.elastic.space import SearchSpace, Subnet, depth_mask, kept_blocks
from poa_jax.elastic.width import Width
from poa_jax.models.heads import MultiHead
from poa_jax.models.sweep import make_plan

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
# Of the largest entry of an output; measured on the ViT: 0.065 for its smallest width, else 0.02.
BFLOAT16_DISTANCE = 0.1
BFLOAT16_COSINE = 0.97  # between the gradients; measured: 0.978 and up


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One family.

    Attributes:
      name: shown in the names of tests.
      backbone: a small supernet with stochastic depth; `image_size` is that of its global crops.
      heads: heads for its features.
      space: its sub-networks; few, because each is compiled once as a static network.
      local_size: pixels of the second kind of crop.
      published: the published supernet; only its shapes are ever computed.
      published_sizes: the sub-networks of it that have names of their own.
      cost_table: file in tests/golden with `params`, `macs_224`, `macs_96` of its sub-networks.
      subnet_of: from a row of that table to the sub-network.
      sparse: names of parameters of which an image uses only some entries.
      alive: least share of the entries of every other parameter that have a gradient.
      spread: of random kernels; about 1/√fan_in, for larger ones amplify rounding.
    """

    name: str
    backbone: nn.Module
    heads: MultiHead
    space: SearchSpace
    local_size: int
    published: nn.Module
    published_sizes: tuple[Subnet, ...]
    cost_table: str
    subnet_of: Callable[[dict[str, str]], Subnet]
    sparse: tuple[str, ...] = ()
    alive: float = 0.95
    spread: float = 0.15


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Parameters in which every term matters, crops of two sizes, and a gradient to pull back."""

    params: dict
    images: list[jax.Array]
    masks: list[jax.Array | None]
    cotangents: list[jax.Array]


traces: collections.Counter = collections.Counter()


@functools.cache
def inputs(row: Row) -> Inputs:
    """Return the inputs of a row, the same in every call."""
    rng = np.random.default_rng(0)
    sizes = (row.backbone.image_size, row.local_size)
    images = [rng.normal(size=(2, s, s, 3)).astype(np.float32) for s in sizes]
    masks = [rng.random((2, math.prod(row.backbone.mask_grid))) < 0.4, None]

    def values(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        offset = 1.0 if name in ("scale", "gamma", "g") else 0.0
        spread = row.spread if name in ("kernel", "v") else 0.3
        return rng.normal(offset, spread, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(values, _param_shapes(row.backbone, row.heads))
    everything = functools.partial(_outputs, row, row.space.intact.width, None, None)
    shapes = jax.eval_shape(everything, params["backbone"], params["heads"], images, masks)
    cotangents = [rng.normal(size=s.shape).astype(np.float32) / s.size for s in shapes]
    return Inputs(params, images, masks, cotangents)


def _param_shapes(backbone: nn.Module, heads: MultiHead) -> dict:
    image = jnp.zeros((1, backbone.image_size, backbone.image_size, 3))
    feature = jnp.zeros((1, heads.width))
    return {
        "backbone": jax.eval_shape(backbone.init, jax.random.key(0), image)["params"],
        "heads": jax.eval_shape(heads.init, jax.random.key(0), feature)["params"],
    }


def _outputs(row, size, depths, keep, body, heads, images, masks, **kwargs) -> list[jax.Array]:
    """Features of both crop sizes, then the logits of their class features."""
    backbone = row.backbone.resized(size, depths)
    out = backbone.apply({"params": body}, images, masks, keep=keep, method="views", **kwargs)
    rows = jnp.concatenate([o["cls"] for o in out])
    logits = row.heads.apply({"params": heads}, rows)
    return [o[name] for o in out for name in ("cls", "patches")] + logits


def _value_and_grad(forward, params, cotangents):
    """Return outputs, and the gradient of their product with the cotangents."""

    def pulled(params):
        outs = forward(params)
        pairs = zip(outs, cotangents, strict=True)
        total = sum(jnp.sum(o.astype(jnp.float32) * c[..., : o.shape[-1]]) for o, c in pairs)
        return 100 * total, outs

    grads, outs = jax.grad(pulled, has_aux=True)(params)
    return outs, grads


@functools.partial(jax.jit, static_argnames=("row", "bound"))
def _elastic(row, bound, active, keep, params, images, masks, cotangents, key):
    """One student: masked where `active` is given, else sliced to `bound`."""
    traces[row, bound, "sliced" if active is None else "masked", key is None] += 1
    width = Width(bound, active)

    def forward(params):
        body = cut(params["backbone"], row.backbone.cuts(width))
        heads = cut(params["heads"], row.heads.cuts(row.backbone.feature_width(width)))
        options = {"width": width, "key": key}
        return _outputs(row, bound, None, keep, body, heads, images, masks, **options)

    if key is not None:  # a comparison of outputs is enough; compiling gradients takes long
        return forward(params), None
    return _value_and_grad(forward, params, cotangents)


@functools.partial(jax.jit, static_argnames=("row", "subnet"))
def _static(row, subnet, params, images, masks, cotangents):
    """The extracted network, and which parameters went into it."""

    def forward(params):
        small = extracted(row.backbone, row.heads, subnet, params)
        parts = (small["backbone"], small["heads"])
        return _outputs(row, subnet.width, subnet.depths, None, *parts, images, masks)

    def total(params):
        return sum(
            map(jnp.sum, jax.tree.leaves(extracted(row.backbone, row.heads, subnet, params)))
        )

    used = jax.tree.map(lambda g: g != 0, jax.grad(total)(params))
    return *_value_and_grad(forward, params, cotangents), used


def extracted(backbone: nn.Module, heads: MultiHead, subnet: Subnet, params: dict) -> dict:
    """Return the static parameters of a sub-network, with those of its heads."""
    depths = zip(subnet.depths, backbone.max_depths, strict=True)
    kept = tuple(kept_blocks(depth, max_depth) for depth, max_depth in depths)
    width = Width(subnet.width)
    shallow = backbone.resized(backbone.width, subnet.depths)
    return {
        "backbone": cut(backbone.pick(params["backbone"], kept), shallow.cuts(width)),
        "heads": cut(params["heads"], heads.cuts(backbone.feature_width(width))),
    }


def _call(row, data, subnet, masked, key=None):
    keep = depth_mask(subnet.depths, row.backbone.max_depths)
    bound = row.space.intact.width if masked else subnet.width
    active = jnp.int32(subnet.width) if masked else None
    args = (data.params, data.images, data.masks, data.cotangents)
    return jax.tree.map(np.asarray, _elastic(row, bound, active, keep, *args, key))


@functools.cache
def run(row: Row, subnet: Subnet, how: str) -> tuple:
    """Return outputs and gradients of a sub-network run `how`; extracted, also what it used."""
    data = inputs(row)
    if how != "extracted":
        return _call(row, data, subnet, how == "masked")
    found = _static(row, subnet, data.params, data.images, data.masks, data.cotangents)
    return jax.tree.map(np.asarray, found)


def _assert_outputs_equal(found: list, expected: list) -> None:
    """Compare; channels beyond those of `expected` must be exactly zero."""
    for wide, narrow in zip(found, expected, strict=True):
        channels = narrow.shape[-1]
        np.testing.assert_allclose(wide[..., :channels], narrow, **TOLERANCE)
        assert not wide[..., channels:].any()


def _assert_gradients_equal(found: dict, expected: dict) -> None:
    def compare(path, a, b):
        scale = np.abs(b).max()
        message = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, atol=3e-5 * scale + 1e-6, rtol=1e-4, err_msg=message)

    jax.tree_util.tree_map_with_path(compare, found, expected)


def check_masked_sliced_and_extracted_agree(row: Row, subnet: Subnet) -> None:
    """Outputs at both image sizes, logits, and gradients for the supernet's parameters."""
    outs, grads, _ = run(row, subnet, "extracted")
    for how in ("masked", "sliced"):
        _assert_outputs_equal(run(row, subnet, how)[0], outs)
        _assert_gradients_equal(run(row, subnet, how)[1], grads)
    assert min(np.abs(out).max() for out in outs) > 0.1
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 0.1


def check_gradient_stays_inside(row: Row, subnet: Subnet) -> None:
    """Exactly zero for channels and blocks not in the sub-network, and not zero for those in it."""
    *_, used = run(row, subnet, "extracted")
    if subnet != row.space.intact:
        assert not all(u.all() for u in jax.tree.leaves(used))

    def check(path, grad, inside):
        if not inside.any():
            assert not grad.any()
            return
        name = jax.tree_util.keystr(path)
        assert not grad[~inside].any(), f"{name} has a gradient outside the sub-network"
        least = 0.1 if path[-1].key in row.sparse else row.alive
        assert np.mean(grad[inside] != 0) > least, f"{name} lacks a gradient inside the sub-network"

    for how in ("masked", "sliced"):
        jax.tree_util.tree_map_with_path(check, run(row, subnet, how)[1], used)


def check_extracted_parameters_fit_the_static_network(row: Row, subnet: Subnet) -> None:
    """Same structure and shapes as the static network makes for itself; cost counts them."""
    backbone = row.backbone.resized(subnet.width, subnet.depths)
    cutter = functools.partial(extracted, row.backbone, row.heads, subnet)
    found = jax.eval_shape(cutter, inputs(row).params)["backbone"]
    own = _param_shapes(backbone, row.heads)["backbone"]
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, own)
    assert count_params(found) == backbone.cost(row.backbone.image_size).params
    assert backbone.max_depths == subnet.depths


def count_params(backbone_params: dict) -> int:
    """Count entries, without the mask token, which only pre-training uses."""
    sizes = jax.tree.map(lambda x: int(np.prod(x.shape)), backbone_params)
    return sum(jax.tree.leaves({k: v for k, v in sizes.items() if k != "mask_token"}))


def check_one_compilation_per_bound(row: Row) -> None:
    """Masked, one program serves the whole space; sliced, one serves all depths of a width."""
    for subnet in row.space:
        run(row, subnet, "masked")
        run(row, subnet, "sliced")
    widths = row.space.widths
    assert traces[row, widths[-1], "masked", True] == 1
    assert [traces[row, w, "sliced", True] for w in widths] == [1] * len(widths)


def check_images_do_not_see_each_other(row: Row) -> None:
    """Replacing the second image of every batch leaves the first one's features alone."""
    data, subnet = inputs(row), row.space.smallest
    images = [np.concatenate([x[:1], 10 * x[1:] + 1]) for x in data.images]
    for masked in (True, False):
        before = run(row, subnet, "masked" if masked else "sliced")[0]
        after = _call(row, dataclasses.replace(data, images=images), subnet, masked)[0]
        for a, b in zip(after[:4], before[:4], strict=True):
            np.testing.assert_allclose(a[0], b[0], atol=1e-6)
            assert np.abs(a[1] - b[1]).max() > 0.1


def check_stochastic_depth_is_the_same_masked_and_sliced(row: Row) -> None:
    """With one key, both drop the same samples of the same blocks."""
    subnet, key = row.space.smallest, jax.random.key(3)
    masked, sliced = (_call(row, inputs(row), subnet, m, key) for m in (True, False))
    _assert_outputs_equal(masked[0], sliced[0])
    if not getattr(row.backbone, "drop_path", 0):  # a family without stochastic depth
        return
    whole = run(row, subnet, "sliced")[0]
    assert max(np.abs(a - b).max() for a, b in zip(sliced[0], whole, strict=True)) > 0.1


@functools.cache
def _rough(row: Row) -> Row:
    backbone, heads = (m.clone(dtype=jnp.bfloat16) for m in (row.backbone, row.heads))
    return dataclasses.replace(row, backbone=backbone, heads=heads)


def check_bfloat16_stays_close(row: Row, subnet: Subnet) -> None:
    """Features in bfloat16 are near those in float32; logits and gradients stay float32."""
    outs, grads = _call(_rough(row), inputs(row), subnet, masked=True)
    exact, exact_grads = run(row, subnet, "masked")[:2]
    assert [str(o.dtype) for o in outs[:4]] == ["bfloat16"] * 4
    assert {str(g.dtype) for g in jax.tree.leaves((grads, outs[4:]))} == {"float32"}
    for rough, fine in zip(outs, exact, strict=True):
        distance = np.abs(rough.astype(np.float32) - fine).max() / np.abs(fine).max()
        assert 0 < distance < BFLOAT16_DISTANCE
    a, b = (np.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in (grads, exact_grads))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > BFLOAT16_COSINE


def check_published_sizes(row: Row) -> None:
    """Shapes of the published network, of sub-networks cut from it, and of their outputs."""
    supernet = row.published
    heads = MultiHead(supernet.feature_width(Width(supernet.width)).bound, (16,))
    params = _param_shapes(supernet, heads)
    image = jax.ShapeDtypeStruct((2, supernet.image_size, supernet.image_size, 3), jnp.float32)
    for subnet in row.published_sizes:
        backbone = supernet.resized(subnet.width, subnet.depths)
        cutter = functools.partial(extracted, supernet, heads, subnet)
        small = jax.eval_shape(cutter, params)["backbone"]
        assert count_params(small) == backbone.cost(supernet.image_size).params
        out = jax.eval_shape(backbone.apply, {"params": small}, image)
        width = supernet.feature_width(Width(subnet.width)).bound
        assert out["cls"].shape == (2, width)
        assert out["patches"].shape == (2, math.prod(supernet.mask_grid), width)


def check_cost_equals_the_table(row: Row) -> None:
    """Parameters and multiply-adds of all published sub-networks, to the last digit."""
    with (golden_params.GOLDEN / row.cost_table).open() as file:
        lines = list(csv.DictReader(file))
    found = set()
    for line in lines:
        subnet = row.subnet_of(line)
        net = row.published.resized(subnet.width, subnet.depths)
        counted = {"macs_224": net.cost(224).macs, "params": net.cost(224).params}
        if "macs_96" in line:
            counted["macs_96"] = net.cost(96).macs
        assert counted == {name: int(line[name]) for name in counted}, subnet
        found.add(subnet)
    assert found.issuperset(row.published_sizes)
    assert len(found) == len(lines) > 30


def check_sweep_equals_each_network_alone(row: Row) -> None:
    """One walk gives the class features of all sub-networks of a width, in the order asked for."""
    data = inputs(row)
    for width in row.space.widths:
        subnets = [s for s in reversed(row.space.subnets) if s.width == width]
        plan = make_plan([s.depths for s in subnets], row.backbone.max_depths)
        assert plan.wanted.sum() == len(subnets)
        small = cut(data.params["backbone"], row.backbone.cuts(Width(width)))
        backbone = row.backbone.resized(width)
        sweep = jax.jit(functools.partial(backbone.apply, method="sweep"))
        found = sweep({"params": small}, data.images[1], plan)
        for cls, subnet in zip(found, subnets, strict=True):
            expected = run(row, subnet, "sliced")[0][2]
            np.testing.assert_allclose(cls, expected, **TOLERANCE)
