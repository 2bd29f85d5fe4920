"""One update, as a function of one device's batch: teacher, intact and elastic student.

    teacher   sees the two global crops, unmasked, and sets the targets
    intact    the whole network, sees all crops (globals masked)
    elastic   a sub-network with shared weights, sees the same crops

The loss is L_intact(params) + L_elastic(params), where the elastic student also imitates the
intact one through a stopped gradient. So each student has its own backward pass, and the elastic
one runs inside `lax.switch` over width bounds without carrying residuals of the other branches.
Collectives run over the named axis "data": Sinkhorn sums, gradients, metrics. None stands inside
a branch, so devices may draw different sub-networks.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from poa_jax.elastic.extract import add_cut, cut
from poa_jax.elastic.width import Width
from poa_jax.models.heads import MultiHead
from poa_jax.models.protocol import ElasticBackbone
from poa_jax.pretraining.losses import HeadLogits, HeadTargets, Weights, student_loss
from poa_jax.pretraining.optimizer import Groups, adamw_step, ema
from poa_jax.pretraining.schedules import Hyper
from poa_jax.pretraining.state import Centres, Draw, TrainState
from poa_jax.pretraining.targets import centre_softmax, sinkhorn, update_centre

Params = Mapping[str, Any]
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is fixed for a run.

    Attributes:
      backbone: the intact network; its drop path acts on students only.
      heads: the projection heads.
      bounds: width bounds, ascending; the last is the full width.
      widths: widths of the search space; a bound that serves one width slices without masks.
      max_masked: rows reserved for masked patches of one device's batch.
      weights: constants of the loss.
      targets: "sinkhorn" or "centring".
      sinkhorn_iterations: rounds of Sinkhorn-Knopp.
      centre_momentum: of the running mean of teacher logits.
      betas: of Adam.
      clip: largest gradient norm of a module; 0 turns clipping off.
    """

    backbone: ElasticBackbone
    heads: MultiHead
    bounds: tuple[int, ...]
    widths: tuple[int, ...]
    max_masked: int
    weights: Weights
    targets: str = "sinkhorn"
    sinkhorn_iterations: int = 3
    centre_momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Crops:
    """One device's batch, crop-major: all images' first crop, then all second crops.

    Attributes:
      global_: (2B, S, S, 3) normalised.
      local: (V·B, s, s, 3) normalised.
      masks: (2B, N) booleans.
      rows: (M,) indices of masked patches in the flat (2B·N); 2B·N where there are fewer.
      weight: (M,) 1 / masked patches of the row's crop; 0 where there are fewer.
    """

    global_: jax.Array
    local: jax.Array
    masks: jax.Array
    rows: jax.Array
    weight: jax.Array

    @property
    def images(self) -> int:
        """B."""
        return self.global_.shape[0] // 2


def prepare(batch: Batch, masking: jax.Array, max_masked: int) -> Crops:
    """Lay out a batch of `global_crops` (B, 2, …), `local_crops` (B, V, …), `masks` (B, 2, N)."""

    def crop_major(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

    masks = jnp.logical_and(crop_major(batch["masks"]), masking)
    (rows,) = jnp.nonzero(masks.reshape(-1), size=max_masked, fill_value=masks.size)
    count = jnp.sum(masks, axis=1, dtype=jnp.float32)
    share = 1.0 / jnp.maximum(count, 1.0)
    weight = jnp.take(share, rows // masks.shape[1], mode="fill", fill_value=0.0)
    return Crops(
        crop_major(batch["global_crops"]), crop_major(batch["local_crops"]), masks, rows, weight
    )


def _gather_patches(patches_BND: jax.Array, rows_M: jax.Array) -> jax.Array:
    flat = patches_BND.reshape(-1, patches_BND.shape[-1])
    return jnp.take(flat, rows_M, axis=0, mode="fill", fill_value=0)


def teacher_targets(
    recipe: Recipe,
    teacher: Params,
    crops: Crops,
    centres: Centres,
    temperature: jax.Array,
    axis_name: str | None,
) -> tuple[list[HeadTargets], Centres]:
    """Return each head's probabilities for both global crops and the masked patches (paper 3.2)."""
    out = recipe.backbone.apply({"params": teacher["backbone"]}, crops.global_)
    rows = jnp.concatenate([out["cls"], _gather_patches(out["patches"], crops.rows)])
    logits = recipe.heads.apply({"params": teacher["heads"]}, rows)
    cls_rows = crops.global_.shape[0]
    valid = {"cls": None, "patch": crops.weight > 0}
    probs, moved = {}, {}
    for kind in ("cls", "patch"):
        part = [z[:cls_rows] if kind == "cls" else z[cls_rows:] for z in logits]
        if recipe.targets == "sinkhorn":
            probs[kind] = [
                sinkhorn(
                    z,
                    temperature,
                    valid_B=valid[kind],
                    iterations=recipe.sinkhorn_iterations,
                    axis_name=axis_name,
                )
                for z in part
            ]
            moved[kind] = centres[kind]
        else:
            pairs = list(zip(part, centres[kind], strict=True))
            probs[kind] = [centre_softmax(z, c, temperature) for z, c in pairs]
            moved[kind] = [
                update_centre(
                    c,
                    z,
                    valid_B=valid[kind],
                    momentum=recipe.centre_momentum,
                    axis_name=axis_name,
                )
                for z, c in pairs
            ]
    targets = [
        HeadTargets(p.reshape(2, crops.images, -1), q)
        for p, q in zip(probs["cls"], probs["patch"], strict=True)
    ]
    return targets, moved


def student_forward(
    recipe: Recipe,
    params: Params,
    crops: Crops,
    width: Width,
    keep: tuple[jax.Array, ...] | None,
    key: jax.Array | None,
) -> tuple[list[HeadLogits], jax.Array]:
    """Run one student on all crops; return its logits and the CLS features (2, B, D) of globals.

    `params` are those of the student: whole for the intact one, cut for an elastic one.
    """
    large, small = recipe.backbone.resized(width.bound).apply(
        {"params": params["backbone"]},
        [crops.global_, crops.local],
        [crops.masks, None],
        width=width,
        keep=keep,
        key=key,
        method="views",
    )
    patches = _gather_patches(large["patches"], crops.rows)
    rows = jnp.concatenate([small["cls"], large["cls"], patches])
    n_local, n_global = small["cls"].shape[0], large["cls"].shape[0]

    def split(z: jax.Array) -> HeadLogits:
        local, global_, patch = jnp.split(z, [n_local, n_local + n_global])
        shape = (-1, crops.images, z.shape[-1])
        return HeadLogits(local.reshape(shape), global_.reshape(shape), patch)

    logits = [split(z) for z in recipe.heads.apply({"params": params["heads"]}, rows)]
    return logits, large["cls"].reshape(2, crops.images, -1)


def _intact_pass(recipe, params, crops, targets, key):
    def loss(params: Params):
        width = Width(recipe.backbone.width)
        logits, cls = student_forward(recipe, params, crops, width, None, key)
        value, parts = student_loss(logits, targets, cls, crops.weight, recipe.weights)
        return value, (parts, logits)

    (value, (parts, logits)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, parts, jax.lax.stop_gradient(logits), grads


def _elastic_branch(recipe: Recipe, bound: int) -> Callable:
    """Return the elastic student's pass at one width bound; gradients are added to those given."""
    below = max((b for b in recipe.bounds if b < bound), default=0)
    exact = [w for w in recipe.widths if below < w <= bound] == [bound]

    def run(params, crops, targets, intact, draw, key, grads):
        width = Width(bound) if exact else Width(bound, draw.width)
        features = recipe.backbone.feature_width(width)
        cuts = {"backbone": recipe.backbone.cuts(width), "heads": recipe.heads.cuts(features)}

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            logits, cls = student_forward(recipe, params, crops, width, draw.keep, key)
            return student_loss(logits, targets, cls, crops.weight, recipe.weights, intact=intact)

        small = cut(params, cuts)
        (value, parts), more = jax.value_and_grad(loss, has_aux=True)(small)
        return value, parts, add_cut(grads, more, cuts)

    return run


def losses_and_grads(
    recipe: Recipe,
    state: TrainState,
    batch: Batch,
    draw: Draw,
    hyper: Hyper,
    key: jax.Array | None,
    axis_name: str | None,
) -> tuple[Params, dict[str, jax.Array], dict[str, jax.Array], Centres]:
    """Return this device's gradients, the summands of its loss, the official log, new centres.

    Args:
      recipe: what is fixed for the run.
      state: parameters, teacher, centres.
      batch: normalised crops and masks of this device.
      draw: this device's sub-network.
      hyper: the numbers of this step.
      key: random key of this device and step, for stochastic depth; None turns it off.
      axis_name: mesh axis that Sinkhorn and centres are summed over; None for one device.
    """
    crops = prepare(batch, jnp.asarray(hyper.patch_masking), recipe.max_masked)
    targets, centres = teacher_targets(
        recipe, state.teacher, crops, state.centres, hyper.teacher_temperature, axis_name
    )
    keys = (None, None) if key is None else jax.random.split(key)
    value_i, parts_i, logits, grads = _intact_pass(recipe, state.params, crops, targets, keys[0])
    operands = (state.params, crops, targets, logits, draw, keys[1], grads)
    branches = [_elastic_branch(recipe, bound) for bound in recipe.bounds]
    if len(branches) == 1:
        value_e, parts_e, grads = branches[0](*operands)
    else:
        value_e, parts_e, grads = jax.lax.switch(draw.branch, branches, *operands)
    summands = loss_summands(parts_i, parts_e, recipe.weights)
    summands["loss/total"] = value_i + value_e
    return grads, summands, jax.tree.map(jnp.add, parts_i, parts_e), centres


def loss_summands(
    intact: Mapping[str, jax.Array], elastic: Mapping[str, jax.Array], weights: Weights
) -> dict[str, jax.Array]:
    """Name the summands of the optimised loss; they add up to `loss/total`."""
    same = elastic["same_view_local"] + elastic["same_view_global"]
    patch = intact["patch"] + elastic["patch"]
    return {
        "loss/cls_intact": weights.cls * jnp.mean(intact["cls_local"] + intact["cls_global"]),
        "loss/cls_elastic": weights.cls * jnp.mean(elastic["cls_local"] + elastic["cls_global"]),
        "loss/same_view": weights.cls * (1 - weights.intact) * jnp.mean(same),
        "loss/patch": 2 * weights.patch * jnp.mean(patch),
        "loss/koleo": 2 * (intact["koleo"] + elastic["koleo"]),
    }


def update(
    recipe: Recipe,
    groups: Groups,
    state: TrainState,
    batch: Batch,
    draw: Draw,
    hyper: Hyper,
    key: jax.Array | None,
    axis_name: str | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one update and its metrics, averaged over devices.

    Arguments as in `losses_and_grads`; `groups` are the optimiser's. The teacher moves after the
    students, towards their new values (paper 3.1).
    """
    grads, metrics, _, centres = losses_and_grads(recipe, state, batch, draw, hyper, key, axis_name)
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    params, opt, norms = adamw_step(
        grads, state.opt, state.params, hyper, groups, betas=recipe.betas, clip=recipe.clip
    )
    teacher = ema(state.teacher, params, hyper.teacher_momentum)
    metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    return TrainState(state.step + 1, params, teacher, opt, centres), metrics
