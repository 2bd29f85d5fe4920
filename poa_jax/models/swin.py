"""The Swin Transformer, written as an ordinary network; it becomes elastic by cutting, as `vit.py`.

Four stages with C, 2C, 4C, 8C channels; between them 2 × 2 tokens merge into one. A block is
shifted or not because of its place in the *full* network: dropping blocks does not change that, so
a network cut out of another stores its pattern of shifts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from poa_jax.elastic import cost as costs
from poa_jax.elastic.extract import pick_blocks
from poa_jax.elastic.layers import Cut, Dense, LayerNorm, PatchEmbed
from poa_jax.elastic.space import kept_blocks
from poa_jax.elastic.width import Width
from poa_jax.models.merging import EPSILON, INIT, PatchMerge
from poa_jax.models.remat import rematerialise
from poa_jax.models.stochastic_depth import pack_groups, split_groups
from poa_jax.models.sweep import Plan, Stage, walk
from poa_jax.models.transformer import Block, Mlp
from poa_jax.models.upsampling import hide, nearest_upsample
from poa_jax.models.windows import WindowAttention, padded

Params = Mapping[str, Any]
Shifts = tuple[tuple[bool, ...], ...]
Sizes = tuple[tuple[int, int], ...]
STAGES = 4


class Swin(nn.Module):
    """A Swin Transformer with stacked blocks in each stage.

    Attributes:
      image_size: pixels of a global crop.
      patch_size: pixels.
      width: channels C of the first stage.
      depths: blocks of each of the four stages.
      window: side of an attention window in tokens.
      head_dim: width of one attention head; C must be a multiple of it.
      mlp_ratio: feed-forward width / channels.
      drop_path: stochastic-depth rate of the last block in training; grows linearly from 0.
      official_patch_norm: the norm after the patch embedding runs over all channels of the supernet
        and the result is cut, as in the official code; else over the channels in use.
      embed_width: channels that the patch embedding computes; None: C. Larger only in a network
        that was cut out with `official_patch_norm`.
      shifts: for each stage, which blocks shift their windows; None: every second one.
      mask_scale: side of the grid that masks (and patch features) have, over that of the last map.
      dtype: type of the arithmetic.
      remat: "none", "full", or the name of a `jax.checkpoint` policy.
    """

    image_size: int
    width: int
    depths: tuple[int, ...]
    patch_size: int = 4
    window: int = 7
    head_dim: int = 16
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    official_patch_norm: bool = False
    embed_width: int | None = None
    shifts: Shifts | None = None
    mask_scale: int = 2
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def __post_init__(self) -> None:
        if len(self.depths) != STAGES or min(self.depths) < 1:
            raise ValueError(f"a Swin has {STAGES} stages of 1 block or more, not {self.depths}")
        if self.width % self.head_dim:
            raise ValueError(
                f"a width of {self.width} is not a multiple of the head size {self.head_dim}"
            )
        if self.shifts is not None and [len(s) for s in self.shifts] != list(self.depths):
            raise ValueError(f"shifts {self.shifts} do not fit stages of {self.depths} blocks")
        self.check_image(self.image_size, self.image_size)
        super().__post_init__()

    @property
    def shift_pattern(self) -> Shifts:
        """For each stage, which blocks shift their windows."""
        if self.shifts is not None:
            return tuple(tuple(stage) for stage in self.shifts)
        return tuple(tuple(i % 2 == 1 for i in range(depth)) for depth in self.depths)

    @property
    def _embed_width(self) -> int:
        return self.width if self.embed_width is None else self.embed_width

    def _channels(self, stage: int) -> int:
        return self.width * 2**stage

    def _block(self, stage: int, sizes: Sizes) -> Block:
        # Without parents: a stack of blocks is a parameter, and each block a pure function of it.
        c = self._channels(stage)
        attn = WindowAttention(self.head_dim, self.window, sizes, self.dtype, INIT, parent=None)
        mlp = Mlp(int(c * self.mlp_ratio), "gelu", self.dtype, INIT, parent=None)
        return Block(attn, mlp, 0.0, EPSILON, self.dtype, parent=None)

    def setup(self) -> None:
        """Create the parameters."""
        self.patch_embed = PatchEmbed(self._embed_width, self.patch_size, self.dtype)
        self.patch_norm = LayerNorm(EPSILON, self.dtype)
        self.mask_token = self.param("mask_token", nn.initializers.zeros, (1, self.width))
        for i in range(STAGES):
            setattr(self, f"stage{i + 1}", self.param(f"stage{i + 1}", self._init_blocks, i))
        for i in range(STAGES - 1):
            setattr(self, f"merge{i + 1}", PatchMerge(self.dtype))
        self.norm = LayerNorm(EPSILON, self.dtype)

    def _init_blocks(self, key: jax.Array, stage: int) -> dict[str, Any]:
        size = (self.window, self.window)
        tokens = jnp.zeros((self.window**2, self._channels(stage)), self.dtype)
        groups = ((1, self.window**2),)
        shifted = jnp.zeros((), bool)

        def init(key: jax.Array) -> dict[str, Any]:
            block = self._block(stage, (size,))
            return block.init(key, tokens, groups, for_attn=(shifted,))["params"]

        return jax.vmap(init)(jax.random.split(key, self.depths[stage]))

    def __call__(
        self,
        images_BHWC: jax.Array,
        masks_BN: jax.Array | None = None,
        *,
        width: Width | None = None,
        keep: tuple[jax.Array, ...] | None = None,
        with_stages: bool = False,
    ) -> dict[str, Any]:
        """Encode one batch of images of one size; see `views`."""
        return self.views(
            [images_BHWC], [masks_BN], width=width, keep=keep, with_stages=with_stages
        )[0]

    def views(
        self,
        images: Sequence[jax.Array],
        masks: Sequence[jax.Array | None],
        *,
        width: Width | None = None,
        keep: tuple[jax.Array, ...] | None = None,
        key: jax.Array | None = None,
        with_stages: bool = False,
    ) -> list[dict[str, Any]]:
        """Encode several batches of crops together.

        Args:
          images: batches (B, H, W, 3) float, normalised; sizes may differ between batches.
          masks: for each batch None or (B, N) booleans over the mask grid, True where the mask
            token replaces the embedding of the patches below.
          width: None, or the traced width C of a masked run.
          keep: None, or for each stage (L,) booleans; a block that is False is skipped and costs
            nothing.
          key: random key for stochastic depth; None for evaluation.
          with_stages: also return the tokens after every stage.

        Returns:
          For each batch a dict: `cls` (B, D), the mean of the normalised tokens; `patches`
          (B, N, D), these tokens repeated to the mask grid; `prenorm` (B, n, D) before the norm;
          with `with_stages` also `stages`, four maps (B, H, W, C) without a norm.
        """
        maps = [self._embed(x, m, width) for x, m in zip(images, masks, strict=True)]
        plan = self._drop_path_plan(key)
        stages = []
        for i in range(STAGES):
            maps = self._enter(i, maps, width)
            maps = self._run_stage(i, maps, width, None if keep is None else keep[i], plan[i])
            stages.append(maps)
        tokens = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps]
        normed = self._normalise(tokens, width)
        out = [self._features(y, x) for y, x in zip(normed, maps, strict=True)]
        if with_stages:
            out = [{**o, "stages": s} for o, s in zip(out, zip(*stages, strict=True), strict=True)]
        return out

    def _normalise(self, tokens: list[jax.Array], width: Width | None) -> list[jax.Array]:
        x_XD, groups = pack_groups(tokens)
        last = None if width is None else width.scaled(2 ** (STAGES - 1))
        return split_groups(self.norm(x_XD, last), groups)

    def _features(self, normed_BND: jax.Array, map_BHWC: jax.Array) -> dict[str, jax.Array]:
        b, h, w, d = map_BHWC.shape
        patches = nearest_upsample(normed_BND.reshape(b, h, w, d), self.mask_scale)
        return {
            "cls": normed_BND.mean(1),
            "patches": patches.reshape(b, -1, d),
            "prenorm": map_BHWC.reshape(b, -1, d),
        }

    def sweep(self, images_BHWC: jax.Array, plan: Plan, width: Width | None = None) -> jax.Array:
        """Return the class features (S, B, D) of the sub-networks of `plan`; see `sweep.walk`."""

        def stage(i: int) -> Stage:
            def run(index: jax.Array, x_BHWC: jax.Array) -> jax.Array:
                params = jax.tree.map(lambda leaf: leaf[index], self._stack(i))
                shifted = jnp.asarray(self.shift_pattern[i])[index]
                b, h, w, c = x_BHWC.shape
                tokens, groups = pack_groups([x_BHWC.reshape(b, -1, c)])
                y = self._block(i, ((h, w),)).apply(
                    {"params": params}, tokens, groups, _at(width, i), for_attn=(shifted,)
                )
                return y.reshape(x_BHWC.shape)

            return Stage(lambda x: self._enter(i, [x], width)[0], run, self.depths[i])

        def finish(x_BHWC: jax.Array) -> jax.Array:
            tokens = x_BHWC.reshape(x_BHWC.shape[0], -1, x_BHWC.shape[-1])
            return self._normalise([tokens], width)[0].mean(1)

        x = self._embed(images_BHWC, None, width)
        return walk([stage(i) for i in range(STAGES)], finish, plan, x)

    def check_image(self, h: int, w: int) -> None:
        """Raise ValueError for an image that this network cannot encode."""
        p = self.patch_size
        if h % p or w % p:
            near = max(1, round(min(h, w) / p)) * p
            raise ValueError(
                f"an image of {h}×{w} pixels is not a multiple of the patch size {p}; "
                f"the nearest is {near}"
            )
        if min(h, w) < p * self.window:
            raise ValueError(
                f"an image of {h}×{w} pixels is smaller than one window of {self.window} patches "
                f"of {p} pixels; expected {p * self.window} or more"
            )

    def _embed(
        self, images_BHWC: jax.Array, masks_BN: jax.Array | None, width: Width | None
    ) -> jax.Array:
        b, h, w, _ = images_BHWC.shape
        self.check_image(h, w)
        whole = self.official_patch_norm
        x = self.patch_norm(self.patch_embed(images_BHWC), None if whole else width)
        if whole:
            x = x[..., : self.width]
            if width is not None and width.active is not None:
                x = jnp.where(width.mask()[None, None], x, jnp.zeros((), x.dtype))
        x_BHWC = x.reshape(b, h // self.patch_size, w // self.patch_size, self.width)
        return hide(x_BHWC, masks_BN, self.mask_token[0], self._mask_stride, self.patch_size)

    @property
    def _mask_stride(self) -> int:
        """Tokens of the first stage under one entry of a mask, along a side."""
        return 2 ** (STAGES - 1) // self.mask_scale

    def _stack(self, stage: int) -> Params:
        return getattr(self, f"stage{stage + 1}")

    def _enter(self, stage: int, maps: list[jax.Array], width: Width | None) -> list[jax.Array]:
        if stage == 0:
            return maps
        return [getattr(self, f"merge{stage}")(x, _at(width, stage - 1)) for x in maps]

    def _run_stage(self, stage, maps, width, runs, plan) -> list[jax.Array]:
        sizes = tuple(x.shape[1:3] for x in maps)
        tokens = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps]
        x_XD, groups = pack_groups(tokens)
        block = self._block(stage, sizes)
        own = _at(width, stage)

        def run(x: jax.Array, params: Params, shifted: Any, key: Any, rate: Any) -> jax.Array:
            rate = 0.0 if rate is None else rate
            return block.apply({"params": params}, x, groups, own, key, rate, (shifted,))

        run = rematerialise(run, self.remat)

        def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
            params, runs, *rest = layer
            if runs is None:
                return run(x, params, *rest), None
            return jax.lax.cond(runs, lambda x: run(x, params, *rest), lambda x: x, x), None

        shifted = jnp.asarray(self.shift_pattern[stage])
        x_XD, _ = jax.lax.scan(body, x_XD, (self._stack(stage), runs, shifted, *plan))
        parts = split_groups(x_XD, groups)
        return [part.reshape(x.shape) for part, x in zip(parts, maps, strict=True)]

    def _drop_path_plan(self, key: jax.Array | None) -> list[tuple]:
        """Return (keys, rates) for each stage: rates grow linearly over all blocks."""
        if key is None or self.drop_path == 0:
            return [(None, None)] * STAGES
        total = sum(self.depths)
        ends = np.cumsum(self.depths)[:-1].tolist()
        keys = jnp.split(jax.random.split(key, total), ends)
        rates = jnp.split(jnp.linspace(0.0, self.drop_path, total, dtype=jnp.float32), ends)
        return list(zip(keys, rates, strict=True))

    def cuts(self, width: Width) -> dict[str, Any]:
        """Say how every parameter shrinks to `width`: the slicing rule of the whole network."""
        if self.official_patch_norm:
            whole = Cut()
            embed = {"kernel": whole, "bias": whole}, {"scale": whole, "bias": whole}
        else:
            embed = PatchEmbed.cuts(width), LayerNorm.cuts(width)
        cuts = {
            "patch_embed": embed[0],
            "patch_norm": embed[1],
            "mask_token": Cut(((-1, width),)),
            "norm": LayerNorm.cuts(_at(width, STAGES - 1)),
        }
        for i in range(STAGES):
            cuts[f"stage{i + 1}"] = self._block_cuts(_at(width, i), self._channels(i))
        for i in range(STAGES - 1):
            cuts[f"merge{i + 1}"] = PatchMerge.cuts(_at(width, i), self._channels(i))
        return cuts

    def _block_cuts(self, width: Width, max_width: int) -> dict[str, Any]:
        hidden = int(max_width * self.mlp_ratio)
        inner = width.scaled(hidden, max_width)
        return {
            "norm1": LayerNorm.cuts(width),
            "attn": WindowAttention.cuts(width, max_width, self.head_dim),
            "norm2": LayerNorm.cuts(width),
            "mlp": {
                "fc1": Dense.cuts(width, max_width, inner),
                "fc2": Dense.cuts(inner, hidden, width),
            },
        }

    def resized(self, width: int, depths: tuple[int, ...] | None = None) -> "Swin":
        """Return the ordinary Swin that computes on parameters cut to `width` (and `depths`)."""
        embed = self._embed_width if self.official_patch_norm else None
        if depths is None:
            return self.clone(width=width, embed_width=embed)
        shifts = tuple(
            tuple(pattern[i] for i in kept_blocks(depth, max_depth))
            for pattern, depth, max_depth in zip(
                self.shift_pattern, depths, self.depths, strict=True
            )
        )
        return self.clone(width=width, embed_width=embed, depths=tuple(depths), shifts=shifts)

    def pick(self, params: Params, kept: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
        """Keep the named blocks of each stage."""
        stages = {f"stage{i + 1}": blocks for i, blocks in enumerate(kept)}
        picked = {name: pick_blocks(params[name], blocks) for name, blocks in stages.items()}
        return {**params, **picked}

    @property
    def max_depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return tuple(self.depths)

    def feature_width(self, width: Width) -> Width:
        """Return the width of the features of a network cut to `width`: that of the last stage."""
        return _at(width, STAGES - 1)

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches that masks hide in a global crop."""
        side = self.image_size // (self.patch_size * self._mask_stride)
        return side, side

    def cost(self, image_size: int) -> costs.Cost:
        """Count parameters (without the mask token) and multiply-adds for one square image.

        Padding of windows counts in attention and its linear maps, for it is computed.
        """
        side, embed = image_size // self.patch_size, self._embed_width
        total = costs.dense(side**2, 3 * self.patch_size**2, embed) + costs.vector(embed, 2)
        for i, depth in enumerate(self.depths):
            c = self._channels(i)
            total += depth * self._block_cost(c, side)
            if i < STAGES - 1:
                side = -(-side // 2)
                merge = costs.dense(side**2, 4 * c, 2 * c) + costs.vector(4 * c, 2)
                total += merge + costs.vector(2 * c, -1)  # the map has no bias
        return total + costs.vector(self._channels(STAGES - 1), 2)

    def _block_cost(self, c: int, side: int) -> costs.Cost:
        hidden, n = int(c * self.mlp_ratio), self.window**2
        windows = (padded(side, self.window) // self.window) ** 2
        attend = costs.dense(windows * n, c, 3 * c) + costs.dense(windows * n, c, c)
        attend += costs.Cost(0, windows * costs.attention(n, c).macs)
        mlp = costs.dense(side**2, c, hidden) + costs.dense(side**2, hidden, c)
        table = costs.vector((2 * self.window - 1) ** 2, c // self.head_dim)
        return attend + mlp + table + costs.vector(c, 4)


def _at(width: Width | None, stage: int) -> Width | None:
    """Return the width of a stage (from 0)."""
    return None if width is None else width.scaled(2**stage)
