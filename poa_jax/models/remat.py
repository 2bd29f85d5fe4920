"""Rematerialisation by name: which intermediate results the backward pass computes again."""

from collections.abc import Callable

import jax

# Policies without arguments; the others need names of values or an offload target.
POLICIES = (
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "checkpoint_dots",
    "checkpoint_dots_with_no_batch_dims",
    "everything_saveable",
    "nothing_saveable",
)
NAMES = ("none", "full", "lean", *POLICIES)

# What "lean" keeps of a block: inputs of its large products, from which the rest is cheap to redo.
SAVED = ("qkv", "attention", "middle", "hidden", "conv1", "conv2", "conv3", "downsample")


def rematerialise(fn: Callable, name: str) -> Callable:
    """Wrap `fn` in `jax.checkpoint`; "none" leaves it, "full" saves its inputs only.

    "lean" saves the values named in `SAVED`: norms, softmax and GELU are computed again, no large
    matrix product is.

    Raises:
      ValueError: for a name that is none of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"remat policy '{name}' is unknown; expected one of {', '.join(NAMES)}")
    if name == "none":
        return fn
    if name == "lean":
        policy = jax.checkpoint_policies.save_only_these_names(*SAVED)
    else:
        policy = None if name == "full" else getattr(jax.checkpoint_policies, name)
    # Inside scan the barrier against common-subexpression elimination is not needed.
    return jax.checkpoint(fn, policy=policy, prevent_cse=False)
