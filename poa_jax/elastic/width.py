"""One elastic dimension: how much of it is stored, sliced and masked."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Width:
    """How many leading channels of a dimension take part.

    `bound` is a Python int: parameters are *sliced* to it, so arithmetic shrinks with it.
    `active` is None, or a traced integer ≤ `bound`: what lies beyond it is *masked* to zero.
    `Width(max, active)` is pure masking (one program for all sizes, at full cost), `Width(w)`
    is exact slicing (arithmetic follows the size).
    """

    bound: int = dataclasses.field(metadata={"static": True})
    active: jax.Array | None = None

    @property
    def size(self) -> int | jax.Array:
        """Number of channels in use: `active` where it is traced, else `bound`."""
        return self.bound if self.active is None else self.active

    def scaled(self, numerator: int, denominator: int = 1) -> "Width":
        """Return the dependent dimension floor(size · numerator / denominator), in integers."""
        active = None if self.active is None else self.active * numerator // denominator
        return Width(self.bound * numerator // denominator, active)

    def alpha(self, max_width: int) -> float | jax.Array:
        """Return α = max / size, which keeps the scale of a shortened dot product (paper 3.2)."""
        if self.active is None:
            return max_width / self.bound
        return max_width / self.active.astype(jnp.float32)

    def mask(self) -> jax.Array:
        """Return (bound,) booleans, True for the channels in use."""
        return jnp.arange(self.bound) < self.size
