"""The multi-prototype head: several projection heads with different numbers of prototypes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from poa_jax.elastic.layers import Cut, Dense, gelu, trunc_normal
from poa_jax.elastic.width import Width


class WeightNormDense(nn.Module):
    """Bias-free linear map with weight normalisation: y_k = g_k · ⟨v_k, x⟩ / ‖v_k‖.

    Parameters: v (in, K) and g (K,), both trained; g starts at 1.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> jax.Array:
        """Return (B, K) in float32."""
        v_DK = self.param("v", trunc_normal, (x_BD.shape[-1], self.features))
        g_K = self.param("g", nn.initializers.ones, (self.features,))
        weight = v_DK * (g_K * jax.lax.rsqrt(jnp.square(v_DK).sum(0)))[None]
        y = x_BD.astype(self.dtype) @ weight.astype(self.dtype)
        return y.astype(jnp.float32)


class Head(nn.Module):
    """MLP, L2 normalisation, prototypes (paper 3.4).

    Attributes:
      prototypes: K.
      hidden: width of the hidden layers.
      bottleneck: width before the prototypes.
      layers: linear maps of the MLP, GELU between them.
      epsilon: smallest norm divided by.
      dtype: type of the arithmetic; normalisation and logits are float32.
    """

    prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    epsilon: float = 1e-12
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> jax.Array:
        """Return logits (B, K), float32."""
        for i in range(1, self.layers):
            x_BD = gelu(Dense(self.hidden, dtype=self.dtype, name=f"fc{i}")(x_BD))
        x_BD = Dense(self.bottleneck, dtype=self.dtype, name=f"fc{self.layers}")(x_BD)
        x_BD = l2_normalise(x_BD.astype(jnp.float32), self.epsilon)
        return WeightNormDense(self.prototypes, self.dtype, name="last_layer")(x_BD)


class MultiHead(nn.Module):
    """Independent heads, one for each number of prototypes; only their first map is elastic.

    Attributes:
      width: input width of the intact network.
      prototypes: K of each head.
      hidden: as in `Head`, like `bottleneck`, `layers` and `dtype`.
    """

    width: int
    prototypes: tuple[int, ...]
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> list[jax.Array]:
        """Return the logits (B, K) of each head."""
        return [
            Head(k, self.hidden, self.bottleneck, self.layers, dtype=self.dtype, name=f"head_{i}")(
                x_BD
            )
            for i, k in enumerate(self.prototypes)
        ]

    def cuts(self, width: Width) -> dict[str, Any]:
        """Slice the first map of each head to the width of the features; leave the rest whole."""
        whole = {"kernel": Cut(), "bias": Cut()}
        head = {"fc1": Dense.cuts(width, self.width, None), "last_layer": {"v": Cut(), "g": Cut()}}
        head |= {f"fc{i}": whole for i in range(2, self.layers + 1)}
        return {f"head_{i}": head for i in range(len(self.prototypes))}


def l2_normalise(x_BD: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Divide rows by max(‖x‖₂, ε).

    Written through max(‖x‖², ε²), so that a row of zeros has a finite gradient.
    """
    square = jnp.square(x_BD).sum(-1, keepdims=True)
    return x_BD * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))
