"""The losses of one student, with the weights of the official code (arXiv 2408.01031, section 3).

For one head, τ the student temperature, λ the share of the intact student:

    intact   λ       · [ Σ_locals Σ_2 CE(t_g, l_v) + 2 · mean CE(t_g, s_1−g) ] / (2V + 2)
             λ       · Σ_masked patches w · CE(t, s) / (2B)
    elastic  (1 − λ) · the same two terms of the elastic student's logits
             (1 − λ) · [ mean_locals CE(p, l) + mean_globals CE(p, s) ]

averaged over heads; each student adds γ · ½ · Σ_2 globals KoLeo(its CLS features). CE(p, z) =
−Σ_k p_k log softmax(z / τ)_k; t are the teacher's probabilities, p = softmax(intact logits / τ),
without a gradient. So no student is differentiated through the other, and each can have its own
backward pass. All float32.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import ml_collections
from jax import lax


@dataclasses.dataclass(frozen=True)
class Weights:
    """Constants of the loss; `intact` is λ, `cls` scales the cross-view and same-view terms."""

    intact: float = 0.8
    cls: float = 1.0
    patch: float = 1.0
    koleo: float = 0.1
    temperature: float = 0.1

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> Self:
        """Take the constants from `config.loss`."""
        c = config.loss
        return cls(c.intact_weight, c.cls, c.patch, c.koleo, c.student_temperature)


class HeadLogits(NamedTuple):
    """One student's logits from one head: every crop's CLS, then its masked patches (or None)."""

    local_VBK: jax.Array
    global_VBK: jax.Array  # V = 2
    patch_MK: jax.Array | None = None


class HeadTargets(NamedTuple):
    """The teacher's probabilities from one head, global crops in the students' order."""

    global_VBK: jax.Array  # V = 2
    patch_MK: jax.Array | None = None


def cross_entropy(
    logits_XK: jax.Array, targets_XK: jax.Array, temperature: float | jax.Array
) -> jax.Array:
    """Return −Σ_k targets log softmax(logits / temperature) for each row, float32 (X).

    Written as logsumexp(z) Σ_k p − ⟨p, z⟩, so that no log-probabilities are stored; a row of zero
    targets costs 0 and has no gradient.
    """
    z_XK = logits_XK.astype(jnp.float32) / temperature
    mass_X = jnp.sum(targets_XK, axis=-1)
    return mass_X * jax.nn.logsumexp(z_XK, axis=-1) - jnp.sum(targets_XK * z_XK, axis=-1)


def cross_view(
    local_VBK: jax.Array, global_VBK: jax.Array, targets_VBK: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Return the (local, global) parts of a student's distance to the teacher on *other* crops.

    Local crop v meets both teacher crops, global crop g the teacher's crop 1 − g. Both parts are
    batch means divided by the number of pairs of crops, 2V + 2 for V local crops.
    """
    pairs = 2 * local_VBK.shape[0] + 2
    # CE is linear in its targets: one pass against the sum of both teachers serves both pairs.
    both_1BK = jnp.sum(targets_VBK, axis=0, keepdims=True)
    local_VB = cross_entropy(local_VBK, both_1BK, temperature)
    global_VB = cross_entropy(global_VBK, targets_VBK[::-1], temperature)
    batch = global_VBK.shape[1]
    # The official code averages the two global pairs and counts the mean twice: their plain sum.
    return jnp.sum(local_VB) / (batch * pairs), jnp.sum(global_VB) / (batch * pairs)


def same_view(elastic_VBK: jax.Array, intact_VBK: jax.Array, temperature: float) -> jax.Array:
    """Return the mean distance of the elastic student to the intact one on the *same* crops.

    The intact student's softmax, at the students' temperature, is the target and has no gradient.
    Without crops (V = 0) the result is 0.
    """
    if elastic_VBK.shape[0] == 0:
        return jnp.zeros((), jnp.float32)
    z_VBK = lax.stop_gradient(intact_VBK).astype(jnp.float32) / temperature
    targets_VBK = jax.nn.softmax(z_VBK, axis=-1)
    return jnp.mean(cross_entropy(elastic_VBK, targets_VBK, temperature))


def patch(
    logits_MK: jax.Array,
    targets_MK: jax.Array,
    weight_M: jax.Array,
    crops: int,
    temperature: float,
) -> jax.Array:
    """Return Σ_m weight · CE / crops over the masked patches of `crops` global crops.

    `weight_M` is 1 / (masked patches of the row's crop), and 0 for padding rows, whose logits do
    not matter then.
    """
    return jnp.sum(weight_M * cross_entropy(logits_MK, targets_MK, temperature)) / crops


def koleo(x_BD: jax.Array) -> jax.Array:
    """Return −mean log(distance to the nearest other row + 1e-8) of the L2-normalised rows.

    It spreads features out (arXiv 1806.03198). The distance is ‖x − neighbour + 1e-8‖₂; both ends
    have a gradient, the choice of the neighbour has none. A single row has no neighbour: 0.
    """
    eps = 1e-8
    if x_BD.shape[0] < 2:
        return jnp.zeros((), jnp.float32)
    x_BD = x_BD.astype(jnp.float32)
    # The larger of the squares, not of the norms: the square root has no derivative at 0.
    square_B1 = jnp.sum(x_BD * x_BD, axis=1, keepdims=True)
    x_BD = x_BD / jnp.sqrt(jnp.maximum(square_B1, eps * eps))
    fixed_BD = lax.stop_gradient(x_BD)
    dots_BB = jnp.matmul(fixed_BD, fixed_BD.T, precision=lax.Precision.HIGHEST)
    neighbour_B = jnp.argmax(jnp.where(jnp.eye(len(x_BD), dtype=bool), -1.0, dots_BB), axis=1)
    gap_BD = x_BD - x_BD[neighbour_B] + eps
    return -jnp.mean(jnp.log(jnp.sqrt(jnp.sum(gap_BD * gap_BD, axis=1)) + eps))


def student_loss(
    logits: Sequence[HeadLogits],
    targets: Sequence[HeadTargets],
    cls_VBD: jax.Array,
    patch_weight_M: jax.Array | None,
    weights: Weights,
    *,
    intact: Sequence[HeadLogits] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return what one student adds to the optimised loss, and its parts.

    `logits` and `targets` hold one entry a head; `cls_VBD` are the backbone's CLS features of the
    two global crops. Given the logits of the `intact` student (they get no gradient), the student
    is the elastic one: share 1 − λ, plus the same-view terms. Patch terms need `patch_weight_M`.

    The parts are scaled as the official code logs them, so that adding both students' dicts gives
    its numbers: `cls_local`, `cls_global`, `same_view_local`, `same_view_global`, `patch`, each
    (heads,), and `koleo` (); all of them always, 0 where a term is absent. They are not the
    summands of the loss: same-view is logged without its 1 − λ, patch and KoLeo with half their
    weight.
    """
    temperature = weights.temperature
    share = weights.intact if intact is None else 1.0 - weights.intact
    none = jnp.zeros((), jnp.float32)
    heads = []
    for h, (z, t) in enumerate(zip(logits, targets, strict=True)):
        local, global_ = cross_view(z.local_VBK, z.global_VBK, t.global_VBK, temperature)
        part = dict.fromkeys(("same_view_local", "same_view_global", "patch"), none)
        part |= {"cls_local": share * local, "cls_global": share * global_}
        if intact is not None:
            same = intact[h]
            part["same_view_local"] = same_view(z.local_VBK, same.local_VBK, temperature)
            part["same_view_global"] = same_view(z.global_VBK, same.global_VBK, temperature)
        if patch_weight_M is not None:
            crops = z.global_VBK.shape[0] * z.global_VBK.shape[1]
            value = patch(z.patch_MK, t.patch_MK, patch_weight_M, crops, temperature)
            part["patch"] = 0.5 * share * value
        heads.append(part)
    parts = jax.tree.map(lambda *values: jnp.stack(values), *heads)
    parts["koleo"] = 0.25 * weights.koleo * (koleo(cls_VBD[0]) + koleo(cls_VBD[1]))
    return _optimised(parts, share, weights), parts


def _optimised(parts: dict[str, jax.Array], share: float, weights: Weights) -> jax.Array:
    """Undo the scales of the log and add up: heads are averaged, KoLeo is outside that mean."""
    cross_H = parts["cls_local"] + parts["cls_global"]
    same_H = share * (parts["same_view_local"] + parts["same_view_global"])
    per_head_H = weights.cls * (cross_H + same_H) + 2.0 * weights.patch * parts["patch"]
    return jnp.mean(per_head_H) + 2.0 * parts["koleo"]
