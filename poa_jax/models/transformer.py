"""The transformer block: attention, feed-forward part, and both behind stochastic depth."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from poa_jax.elastic.layers import (
    Dense,
    Initializer,
    LayerNorm,
    LayerScale,
    gelu,
    trunc_normal,
)
from poa_jax.elastic.width import Width
from poa_jax.models.stochastic_depth import Groups, pack_groups, residual, split_groups


class Attention(nn.Module):
    """Multi-head self-attention; the softmax is float32 and its scale head_dim^-1/2."""

    head_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_XD: jax.Array, groups: Groups, out_scale: jax.Array | None = None
    ) -> jax.Array:
        """Map packed tokens; each sample of each group attends to itself."""
        d = x_XD.shape[-1]
        qkv = Dense(d, groups=3, dtype=self.dtype, name="qkv")(x_XD).reshape(-1, 3 * d)
        qkv = checkpoint_name(qkv, "qkv")
        outs = [self._attend(part, d) for part in split_groups(qkv, groups)]
        out = checkpoint_name(pack_groups(outs)[0], "attention")
        return Dense(d, dtype=self.dtype, name="proj")(out, out_scale)

    def _attend(self, qkv_BNE: jax.Array, d: int) -> jax.Array:
        b, n, _ = qkv_BNE.shape
        q, k, v = jnp.split(qkv_BNE.reshape(b, n, 3 * d // self.head_dim, self.head_dim), 3, 2)
        scale = jnp.asarray(self.head_dim**-0.5, q.dtype)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, d)


class Mlp(nn.Module):
    """The feed-forward part: W2·gelu(W1·x), or SwiGLU W3·(silu(a) ⊙ b) with (a, b) = W12·x."""

    hidden: int
    kind: str = "gelu"
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = trunc_normal

    @nn.compact
    def __call__(self, x_XD: jax.Array, out_scale: jax.Array | None = None) -> jax.Array:
        """Map tokens one by one."""
        d = x_XD.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        if self.kind == "swiglu":
            both = checkpoint_name(dense(self.hidden, 2, name="w12")(x_XD), "hidden")
            gate, value = both[..., 0, :], both[..., 1, :]
            return dense(d, name="w3")(nn.silu(gate) * value, out_scale)
        hidden_XF = gelu(checkpoint_name(dense(self.hidden, name="fc1")(x_XD), "hidden"))
        return dense(d, name="fc2")(hidden_XF, out_scale)


class Block(nn.Module):
    """Pre-norm transformer block: x + ls1·attention(norm1 x), then x + ls2·mlp(norm2 x).

    Attributes:
      attn: maps packed tokens, their groups, a factor on its output or None, and what `__call__`
        is given for it, to packed tokens.
      mlp: the feed-forward part.
      layer_scale: initial LayerScale; 0 leaves it out.
      epsilon: of the norms.
      dtype: type of the arithmetic.
    """

    attn: nn.Module
    mlp: Mlp
    layer_scale: float = 0.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Build the sub-modules."""
        self.norm1 = LayerNorm(self.epsilon, self.dtype)
        self.norm2 = LayerNorm(self.epsilon, self.dtype)
        if self.layer_scale:
            self.ls1 = LayerScale(self.layer_scale)
            self.ls2 = LayerScale(self.layer_scale)

    def __call__(
        self,
        x_XD: jax.Array,
        groups: Groups,
        width: Width | None = None,
        key: jax.Array | None = None,
        rate: float | jax.Array = 0.0,
        for_attn: tuple = (),
    ) -> jax.Array:
        """Map packed tokens; `key` turns on stochastic depth at `rate`."""

        d = x_XD.shape[-1]
        scales = (self.ls1(d), self.ls2(d)) if self.layer_scale else (None, None)

        def attend(x: jax.Array, parts: Groups) -> jax.Array:
            return self.attn(self.norm1(x, width), parts, scales[0], *for_attn)

        def feed_forward(x: jax.Array, parts: Groups) -> jax.Array:
            del parts
            return self.mlp(self.norm2(x, width), scales[1])

        keys = (None, None) if key is None else jax.random.split(key)
        x_XD = residual(x_XD, attend, groups, keys[0], rate)
        x_XD = checkpoint_name(x_XD, "middle")
        return residual(x_XD, feed_forward, groups, keys[1], rate)
