"""AdamW in parameter groups, clipping by module, and the moving average that is the teacher.

A group is what an ordered list of (pattern, value) says about each parameter: `param_rules` holds
the lists of the published recipes, `make_groups` applies them to a tree.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poa_jax.errors import nearest
from poa_jax.pretraining.schedules import Hyper

Rule = tuple[str, Any]


@dataclasses.dataclass(frozen=True)
class Rules:
    """One ordered list of (regular expression for the whole path, value) for each property."""

    lr: Sequence[Rule]  # factor on the learning rate
    weight_decay: Sequence[Rule]  # factor on the weight decay
    last_layer: Sequence[Rule]  # True: follows `Hyper.last_layer_lr`
    module: Sequence[Rule]  # name; gradients of one module are clipped together


@dataclasses.dataclass(frozen=True)
class Groups:
    """The same properties as trees like the params; factors are floats or (L, 1, …) arrays."""

    lr: Any
    weight_decay: Any
    last_layer: Any
    module: Any


def match(params: Any, rules: Sequence[Rule]) -> Any:
    """Return a tree like `params` with the value of the first rule whose pattern fits the path.

    Patterns must fit the whole path, `backbone/norm/scale`. A value that is a tuple or an array has
    one entry for each block of a stacked leaf and comes back as (L, 1, …), ready to broadcast.
    Raises ValueError naming every parameter without a rule, every rule that is the first for no
    parameter, and values whose length is not the leaf's first axis.
    """
    with_paths, tree = jax.tree_util.tree_flatten_with_path(params)
    shapes = {jax.tree_util.keystr(p, simple=True, separator="/"): a.shape for p, a in with_paths}
    patterns = [pattern for pattern, _ in rules]
    first = {
        path: next((i for i, p in enumerate(patterns) if re.fullmatch(p, path)), None)
        for path in shapes
    }
    faults = [
        f"no pattern covers parameter {path!r}" + _hint("pattern", path, patterns)
        for path, rule in first.items()
        if rule is None
    ]
    faults += [
        f"pattern {pattern!r} covers no parameter" + _hint("parameter", pattern, shapes)
        for i, pattern in enumerate(patterns)
        if i not in first.values()
    ]
    if faults:
        raise ValueError("; ".join(faults))
    values = [_along_blocks(rules[first[path]][1], path, shapes[path]) for path in shapes]
    return jax.tree.unflatten(tree, values)


def make_groups(params: Any, rules: Rules) -> Groups:
    """Apply each list of `rules` to `params` (arrays or shapes)."""
    return Groups(
        **{f.name: match(params, getattr(rules, f.name)) for f in dataclasses.fields(rules)}
    )


def init_optimizer(params: Any) -> optax.ScaleByAdamState:
    """Return the state before the first step: count 0, both moments zero, float32."""
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros))


def adamw_step(
    grads: Any,
    state: optax.ScaleByAdamState,
    params: Any,
    hyper: Hyper,
    groups: Groups,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip: float = 1.5,
) -> tuple[Any, optax.ScaleByAdamState, dict[str, jax.Array]]:
    """Return (params, state, gradient norm of each module before clipping) after one update.

        g ← g · min(1, clip / (‖g of its module‖ + 1e-6))          clip = 0: no clipping
        m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²
        p ← p (1 − lr · wd) − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps)

    with lr and wd times the parameter's factors. A parameter that took no part comes with a zero
    gradient and still decays. optax.adamw computes the same; it is written out because one rate is
    not enough here and so that each parameter is read and written once.
    """
    b1, b2 = betas
    norms = module_norms(grads, groups.module)
    scale = {name: jnp.minimum(1.0, clip / (norm + 1e-6)) for name, norm in norms.items()}
    count = optax.safe_increment(state.count)
    # 1 − βᵗ through expm1: as a float32 difference its error at β = 0.999, t = 1 would be 1e-5.
    t = count.astype(jnp.float32)
    correction1, correction2 = (
        -jnp.expm1(t * (math.log(b) if b > 0 else -math.inf)) for b in betas
    )

    def update(p, g, m, v, lr_factor, wd_factor, is_last, module):
        lr = _float32(lr_factor) * (hyper.last_layer_lr if is_last else hyper.lr)
        g = g.astype(jnp.float32)
        if clip > 0:
            g = g * scale[module]
        m = b1 * m + (1.0 - b1) * g
        v = b2 * v + (1.0 - b2) * (g * g)
        step = (m / correction1) / (jnp.sqrt(v / correction2) + eps)
        return p * (1.0 - lr * _float32(wd_factor) * hyper.weight_decay) - lr * step, m, v

    done = jax.tree.map(
        update,
        params,
        grads,
        state.mu,
        state.nu,
        groups.lr,
        groups.weight_decay,
        groups.last_layer,
        groups.module,
    )
    params, mu, nu = jax.tree.transpose(jax.tree.structure(params), None, done)
    return params, optax.ScaleByAdamState(count, mu, nu), norms


def module_norms(grads: Any, module: Any) -> dict[str, jax.Array]:
    """Return the global L2 norm of the gradients of each module, float32."""
    squares: dict[str, list[jax.Array]] = {}
    for g, name in zip(jax.tree.leaves(grads), jax.tree.leaves(module), strict=True):
        squares.setdefault(name, []).append(jnp.sum(jnp.square(g.astype(jnp.float32))))
    return {name: jnp.sqrt(sum(values)) for name, values in squares.items()}


def ema(teacher: Any, student: Any, momentum: float | jax.Array) -> Any:
    """Return momentum · teacher + (1 − momentum) · student.

    Written as a step towards the student: equal weights stay bit for bit equal, and rounding of the
    momentum does not make the average drift over a long run.
    """
    return jax.tree.map(lambda t, s: t + (1.0 - momentum) * (s - t), teacher, student)


def _along_blocks(value: Any, path: str, shape: tuple[int, ...]) -> Any:
    if not isinstance(value, tuple | list | np.ndarray):
        return value
    values = np.asarray(value)
    if not shape or values.shape != shape[:1]:
        blocks = shape[0] if shape else 0
        raise ValueError(
            f"parameter {path!r} needs one value for each of its {blocks} blocks, "
            f"got {len(values)}: the rules are for another depth"
        )
    return values.reshape(-1, *(1 for _ in shape[1:]))


def _float32(factor: float | np.ndarray) -> float | jax.Array:
    """A factor as a float32 array if it is an array; a Python float adapts by itself."""
    return jnp.asarray(factor, jnp.float32) if isinstance(factor, np.ndarray) else factor


def _hint(what: str, word: str, choices: Any) -> str:
    close = nearest(word, choices)
    return f" (nearest {what}: {close!r})" if close else ""
