"""The Vision Transformer, written as an ordinary network; it becomes elastic by cutting.

`ViT` computes on parameters of any width. A sub-network of a supernet runs as

    ViT(width=w).apply({"params": cut(params, supernet.cuts(Width(w)))}, images, keep=blocks)

so the elastic forward and an extracted static network are the same code on the same numbers.
Crops of different sizes go through the blocks together: their tokens are packed into one matrix
for everything but attention, which runs for each crop size.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from poa_jax.elastic import cost
from poa_jax.elastic.extract import pick_blocks
from poa_jax.elastic.layers import Cut, Dense, LayerNorm, LayerScale, PatchEmbed
from poa_jax.elastic.width import Width
from poa_jax.models.positions import resize_positions
from poa_jax.models.remat import rematerialise
from poa_jax.models.stochastic_depth import pack_groups, split_groups
from poa_jax.models.sweep import Plan, Stage, walk
from poa_jax.models.transformer import Attention, Block, Mlp

Params = Mapping[str, Any]


class Features(NamedTuple):
    """What a backbone returns: cls (B, D) and patches (B, N, D), after the final norm."""

    cls: jax.Array
    patches: jax.Array


class ViT(nn.Module):
    """A Vision Transformer with class token, LayerScale and stacked blocks.

    Attributes:
      image_size: pixels; fixes the grid of the position table. Other sizes are interpolated.
      patch_size: pixels.
      width: embedding width D.
      depth: number of blocks L.
      head_dim: width of one attention head; D must be a multiple of it.
      mlp_ratio: feed-forward width / D. SwiGLU takes two thirds of it, rounded up to 8.
      mlp: "gelu" or "swiglu".
      layer_scale: initial LayerScale; 0 leaves it out.
      drop_path: stochastic-depth rate in training.
      drop_path_uniform: the same rate in every block; else it grows linearly from 0.
      hidden: feed-forward width F; None derives it from `mlp_ratio` and `width`.
      dtype: type of the arithmetic.
      remat: "none", "full", or the name of a `jax.checkpoint` policy.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    head_dim: int = 64
    mlp_ratio: float = 4.0
    mlp: str = "gelu"
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    drop_path_uniform: bool = True
    hidden: int | None = None
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def __post_init__(self) -> None:
        if self.width % self.head_dim:
            raise ValueError(
                f"a width of {self.width} is not a multiple of the head size {self.head_dim}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"an image of {self.image_size} pixels is not a multiple of the patch size "
                f"{self.patch_size}"
            )
        super().__post_init__()

    @property
    def hidden_width(self) -> int:
        """Feed-forward width F."""
        if self.hidden is not None:
            return self.hidden
        full = int(self.width * self.mlp_ratio)
        return full if self.mlp == "gelu" else (int(full * 2 / 3) + 7) // 8 * 8

    @property
    def num_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def _block(self) -> Block:
        # Without parents: the stack of blocks is a parameter, and each block a pure function of it.
        attn = Attention(self.head_dim, self.dtype, parent=None)
        mlp = Mlp(self.hidden_width, self.mlp, self.dtype, parent=None)
        return Block(attn, mlp, self.layer_scale, dtype=self.dtype, parent=None)

    def setup(self) -> None:
        """Create the parameters."""
        d = self.width
        self.patch_embed = PatchEmbed(d, self.patch_size, self.dtype)
        self.cls_token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, d))
        self.mask_token = self.param("mask_token", nn.initializers.zeros, (1, d))
        shape = (1, 1 + self.num_patches, d)
        self.pos_embed = self.param("pos_embed", nn.initializers.truncated_normal(0.02), shape)
        self.norm = LayerNorm(dtype=self.dtype)
        self.blocks = self.param("blocks", self._init_blocks)

    def _init_blocks(self, key: jax.Array) -> dict[str, Any]:
        token = jnp.zeros((1, self.width), self.dtype)
        init = lambda k: self._block.init(k, token, ((1, 1),))["params"]  # noqa: E731
        return jax.vmap(init)(jax.random.split(key, self.depth))

    def __call__(
        self,
        images_BHWC: jax.Array,
        masks_BN: jax.Array | None = None,
        *,
        width: Width | None = None,
        keep: tuple[jax.Array, ...] | None = None,
        with_blocks: bool = False,
    ) -> dict[str, jax.Array]:
        """Encode one batch of images of one size; see `views`."""
        return self.views(
            [images_BHWC], [masks_BN], width=width, keep=keep, with_blocks=with_blocks
        )[0]

    def views(
        self,
        images: Sequence[jax.Array],
        masks: Sequence[jax.Array | None],
        *,
        width: Width | None = None,
        keep: tuple[jax.Array, ...] | None = None,
        key: jax.Array | None = None,
        with_blocks: bool = False,
    ) -> list[dict[str, jax.Array]]:
        """Encode several batches of crops together.

        Args:
          images: batches (B, H, W, 3) float, normalised; sizes may differ between batches.
          masks: for each batch None or (B, N) booleans, True where the mask token replaces a
            patch embedding (before the position is added).
          width: None, or the traced width of a masked run.
          keep: None, or for each stage (L,) booleans; a block that is False is skipped and costs
            nothing.
          key: random key for stochastic depth; None for evaluation.
          with_blocks: also return the tokens after every block.

        Returns:
          For each batch a dict: `cls` (B, D) and `patches` (B, N, D) after the final norm,
          `prenorm` (B, 1 + N, D) before it and, with `with_blocks`, `blocks` (L, B, 1 + N, D),
          where a skipped block repeats its input.
        """
        tokens = [self._embed(x, m) for x, m in zip(images, masks, strict=True)]
        x_XD, groups = pack_groups(tokens)
        x_XD, ys = self._run_blocks(x_XD, groups, width, keep, key, with_blocks)
        normed = split_groups(self.norm(x_XD, width), groups)
        out = [
            {"cls": y[:, 0], "patches": y[:, 1:], "prenorm": x}
            for y, x in zip(normed, split_groups(x_XD, groups), strict=True)
        ]
        if with_blocks:
            stacks = [
                jnp.stack(s) for s in zip(*(split_groups(y, groups) for y in ys), strict=True)
            ]
            out = [{**o, "blocks": s} for o, s in zip(out, stacks, strict=True)]
        return out

    def sweep(self, images_BHWC: jax.Array, plan: Plan, width: Width | None = None) -> jax.Array:
        """Return the class features (S, B, D) of the sub-networks of `plan`; see `sweep.walk`."""
        x_XD, groups = pack_groups([self._embed(images_BHWC, None)])
        batch, tokens = groups[0]
        block = self._block

        def run(index: jax.Array, x: jax.Array) -> jax.Array:
            params = jax.tree.map(lambda leaf: leaf[index], self.blocks)
            return block.apply({"params": params}, x, groups, width)

        def finish(x: jax.Array) -> jax.Array:
            return self.norm(x.reshape(batch, tokens, -1)[:, 0], width)

        return walk([Stage(lambda x: x, run, self.depth)], finish, plan, x_XD)

    def normalise(self, tokens_BND: jax.Array, width: Width | None = None) -> jax.Array:
        """Apply the final norm to tokens, for example to those after a block in the middle."""
        return self.norm(tokens_BND, width)

    def check_image(self, h: int, w: int) -> None:
        """Raise ValueError for an image that this network cannot encode."""
        if min(h, w) < 1 or h % self.patch_size or w % self.patch_size:
            raise ValueError(
                f"an image of {h}×{w} pixels is not a multiple of the patch size {self.patch_size}"
            )

    def _embed(self, images_BHWC: jax.Array, masks_BN: jax.Array | None) -> jax.Array:
        h, w = images_BHWC.shape[1:3]
        self.check_image(h, w)
        x_BND = self.patch_embed(images_BHWC)
        if masks_BN is not None:
            x_BND = jnp.where(masks_BN[..., None], self.mask_token[None].astype(x_BND.dtype), x_BND)
        cls = jnp.broadcast_to(self.cls_token, (x_BND.shape[0], 1, x_BND.shape[2]))
        x_BND = jnp.concatenate([cls.astype(x_BND.dtype), x_BND], axis=1)
        grid = (h // self.patch_size, w // self.patch_size)
        return x_BND + resize_positions(self.pos_embed, grid).astype(x_BND.dtype)

    def _run_blocks(self, x_XD, groups, width, keep, key, with_blocks):
        rates, keys = self._drop_path_plan(key)
        runs = None if keep is None else keep[0]
        block = self._block

        def run(x: jax.Array, params: Params, block_key: Any, rate: Any) -> jax.Array:
            # A uniform rate stays a Python number, also inside `jax.checkpoint`, which traces its
            # arguments: it decides how many samples run.
            rate = self.drop_path if rate is None else rate
            return block.apply({"params": params}, x, groups, width, block_key, rate)

        run = rematerialise(run, self.remat)

        def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, jax.Array | None]:
            params, runs, block_key, rate = layer
            if runs is None:
                x = run(x, params, block_key, rate)
            else:
                x = jax.lax.cond(runs, lambda x: run(x, params, block_key, rate), lambda x: x, x)
            return x, (x if with_blocks else None)

        return jax.lax.scan(body, x_XD, (self.blocks, runs, keys, rates))

    def _drop_path_plan(self, key: jax.Array | None):
        if key is None or self.drop_path == 0:
            return None, None
        keys = jax.random.split(key, self.depth)
        if self.drop_path_uniform:
            return None, keys
        return jnp.linspace(0.0, self.drop_path, self.depth, dtype=jnp.float32), keys

    def cuts(self, width: Width) -> dict[str, Any]:
        """Say how every parameter shrinks to `width`: the slicing rule of the whole network."""
        d, hidden = self.width, self.hidden_width
        inner = width.scaled(hidden, d)
        if self.mlp == "swiglu":
            mlp = {
                "w12": Dense.cuts(width, d, inner, groups=True),
                "w3": Dense.cuts(inner, hidden, width),
            }
        else:
            mlp = {"fc1": Dense.cuts(width, d, inner), "fc2": Dense.cuts(inner, hidden, width)}
        blocks = {
            "norm1": LayerNorm.cuts(width),
            "attn": {
                "qkv": Dense.cuts(width, d, width, groups=True),
                "proj": Dense.cuts(width, d, width),
            },
            "norm2": LayerNorm.cuts(width),
            "mlp": mlp,
        }
        if self.layer_scale:
            blocks |= {"ls1": LayerScale.cuts(width), "ls2": LayerScale.cuts(width)}
        last = Cut(((-1, width),))
        tokens = {"cls_token": last, "mask_token": last, "pos_embed": last}
        rest = {"patch_embed": PatchEmbed.cuts(width), "norm": LayerNorm.cuts(width)}
        return {**tokens, **rest, "blocks": blocks}

    def resized(self, width: int, depths: tuple[int, ...] | None = None) -> "ViT":
        """Return the ordinary ViT that computes on parameters cut to `width` (and `depths`)."""
        hidden = self.hidden_width * width // self.width
        depth = self.depth if depths is None else depths[0]
        return self.clone(width=width, hidden=hidden, depth=depth)

    def pick(self, params: Params, kept: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
        """Keep the named blocks of each stage."""
        return {**params, "blocks": pick_blocks(params["blocks"], kept[0])}

    def feature_width(self, width: Width) -> Width:
        """Return the width of the features of a network cut to `width`: the same."""
        return width

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches that masks hide in a global crop."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def max_depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return (self.depth,)

    def cost(self, image_size: int) -> cost.Cost:
        """Count parameters (without the mask token) and multiply-adds for one square image."""
        d, hidden, patches = self.width, self.hidden_width, (image_size // self.patch_size) ** 2
        tokens = patches + 1
        gates = 2 if self.mlp == "swiglu" else 1
        block = cost.dense(tokens, d, 3 * d) + cost.dense(tokens, d, d)
        block += cost.dense(tokens, d, gates * hidden) + cost.dense(tokens, hidden, d)
        block += cost.attention(tokens, d) + cost.vector(d, 4 + 2 * bool(self.layer_scale))
        embed = cost.dense(patches, 3 * self.patch_size**2, d)
        table = cost.vector(d, 1 + 1 + self.num_patches)
        return embed + table + self.depth * block + cost.vector(d, 2)


def evenly_spaced_blocks(depth: int, count: int) -> tuple[int, ...]:
    """Return which of `depth` active blocks feed multi-layer evaluation, last one included.

    The official rule: positions round(depth / 4 · i) for the last count − 1 of i = 1..3, rounded
    half to even, then the last block.

    Raises:
      ValueError: if a block would be taken twice, which happens for small depths.
    """
    if not 1 <= count <= 4:
        raise ValueError(f"between 1 and 4 blocks can be taken, not {count}")
    taken = [round(depth / 4 * i) for i in range(5 - count, 4)] + [depth - 1]
    if len(set(taken)) != count or max(taken) >= depth:
        raise ValueError(f"{depth} blocks are too few to take {count} different ones")
    return tuple(taken)
