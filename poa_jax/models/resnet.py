"""The ResNet with GroupNorm, written as an ordinary network; it becomes elastic by cutting.

Only the inner width of the bottlenecks shrinks (paper 3.2): `width` in stage 1, doubled from stage
to stage. Block outputs, and so the features, keep their width. Any block but a stage's first can be
left out. Crops of different sizes go through the blocks together, as a tuple of maps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from poa_jax.elastic.conv import Conv, GroupNorm, check_groups, max_pool
from poa_jax.elastic.cost import Cost, vector
from poa_jax.elastic.extract import pick_blocks
from poa_jax.elastic.layers import Cut
from poa_jax.elastic.width import Width
from poa_jax.models.bottleneck import Bottleneck, conv_cost
from poa_jax.models.remat import rematerialise
from poa_jax.models.sweep import Plan, Stage, walk
from poa_jax.models.upsampling import hide, nearest_upsample

Params = Mapping[str, Any]
Maps = tuple[jax.Array, ...]  # (B, H, W, C) of each crop size

STAGES = 4
STEM_STRIDE = 4
TOTAL_STRIDE = 32


class ResNet(nn.Module):
    """A ResNet of four stages whose blocks after the first, `rest`, are stacked.

    Attributes:
      image_size: pixels of a global crop, a multiple of 32. Others: any multiple of 4 unmasked.
      width: inner width of the blocks of stage 1.
      depths: blocks of each stage.
      stem: channels of the first convolution.
      groups: of every GroupNorm; must divide all widths.
      out_width: output channels of stage 1; None is twice `width`. A resized network keeps it.
      mask_scale: patch tokens along a side for each position of the last map; 1, 2, 4 or 8.
      dtype: type of the arithmetic.
      remat: "none", "full", "lean", or the name of a `jax.checkpoint` policy.
    """

    image_size: int
    width: int
    depths: tuple[int, ...]
    stem: int = 64
    groups: int = 32
    out_width: int | None = None
    mask_scale: int = 2
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    def __post_init__(self) -> None:
        if len(self.depths) != STAGES or min(self.depths) < 1:
            depths = ".".join(map(str, self.depths))
            raise ValueError(
                f"a ResNet has {STAGES} stages of at least one block each, for example 3.4.6.3; "
                f"got depths of {depths}"
            )
        if self.mask_scale not in (1, 2, 4, 8):
            raise ValueError(f"a mask scale of {self.mask_scale} is not one of 1, 2, 4, 8")
        _check_side(self.image_size, TOTAL_STRIDE)
        # Later stages double the widths of the first.
        for width in (self.stem, self.width, self.stage_out(0)):
            check_groups(width, self.groups)
        super().__post_init__()

    def stage_out(self, stage: int) -> int:
        """Output channels of a stage, counted from 0."""
        return (2 * self.width if self.out_width is None else self.out_width) * 2**stage

    def _block(self, stage: int, first: bool) -> Bottleneck:
        inner, out = self.width * 2**stage, self.stage_out(stage)
        stride = 2 if first and stage else 1
        return Bottleneck(inner, out, self.groups, stride, first, self.dtype, parent=None)

    def setup(self) -> None:
        """Create the parameters."""
        self.conv1 = Conv(self.stem, 7, 2, self.dtype)
        self.norm1 = GroupNorm(self.groups, dtype=self.dtype)
        self.mask_token = self.param("mask_token", nn.initializers.zeros, (1, self.stem))
        self.stages = tuple(
            self.param(f"stage{stage + 1}", self._init_stage, stage) for stage in range(STAGES)
        )

    def _init_stage(self, key: jax.Array, stage: int) -> dict[str, Any]:
        own, others = jax.random.split(key)
        channels = self.stage_out(stage - 1) if stage else self.stem
        entry, later = self._block(stage, True), self._block(stage, False)
        params = {"first": entry.init(own, self._position(channels))["params"]}
        if self.depths[stage] == 1:
            return params
        init = lambda k: later.init(k, self._position(self.stage_out(stage)))["params"]  # noqa: E731
        keys = jax.random.split(others, self.depths[stage] - 1)
        return {**params, "rest": jax.vmap(init)(keys)}

    def _position(self, channels: int) -> jax.Array:
        return jnp.zeros((1, 1, 1, channels), self.dtype)

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
          masks: for each batch None or (B, N) booleans over a grid of H / 32 · `mask_scale` rows,
            True where the mask token replaces what the stem made of that cell.
          width: None, or the traced inner width of stage 1 in a masked run.
          keep: None, or for each stage (L,) booleans; a block that is False is skipped and costs
            nothing. A stage's first block always runs.
          key: not used: these networks have no stochastic depth.
          with_stages: also return the maps after every stage.

        Returns:
          For each batch a dict: `prenorm` (B, positions, D) of the last map (there is no final
          norm), `cls` (B, D) its mean and `patches` (B, N, D) its positions repeated to the grid of
          a mask. With `with_stages` also `stages`, four maps (B, H, W, C), and `multistage`, the
          means of the last three, concatenated.
        """
        del key
        maps = tuple(self._stem(x, m) for x, m in zip(images, masks, strict=True))
        found = []
        for stage in range(STAGES):
            runs = None if keep is None else keep[stage]
            maps = self._run_stage(stage, maps, _inner(width, stage), runs)
            found.append(maps)
        out = [self._features(x) for x in maps]
        if with_stages:
            views = zip(*found, strict=True)
            out = [o | _stage_features(maps) for o, maps in zip(out, views, strict=True)]
        return out

    def sweep(self, images_BHWC: jax.Array, plan: Plan, width: Width | None = None) -> jax.Array:
        """Return the class features (S, B, D) of the sub-networks of `plan`; see `sweep.walk`."""

        def at(stage: int) -> Stage:
            inner = _inner(width, stage)

            def run(index: jax.Array, x: jax.Array) -> jax.Array:
                if self.depths[stage] == 1:
                    return x
                rest = self.stages[stage]["rest"]
                params = jax.tree.map(lambda leaf: leaf[jnp.maximum(index - 1, 0)], rest)
                later = lambda x: self._rest_block(stage, params, (x,), inner)[0]  # noqa: E731
                # Block 0 ran on entering, where the map changed its shape.
                return jax.lax.cond(index > 0, later, lambda x: x, x)

            return Stage(lambda x: self._first(stage, (x,), inner)[0], run, self.depths[stage])

        x = self._stem(images_BHWC, None)
        return walk([at(stage) for stage in range(STAGES)], lambda x: x.mean((1, 2)), plan, x)

    def check_image(self, h: int, w: int) -> None:
        """Raise ValueError for an image that this network cannot encode."""
        for side in (h, w):
            _check_side(side, STEM_STRIDE)

    def _stem(self, images_BHWC: jax.Array, masks_BN: jax.Array | None) -> jax.Array:
        """Return (B, H / 4, W / 4, stem), what is masked replaced."""
        for side in images_BHWC.shape[1:3]:
            _check_side(side, STEM_STRIDE if masks_BN is None else TOTAL_STRIDE)
        x_BHWC = max_pool(nn.relu(self.norm1(self.conv1(images_BHWC))))
        stride = TOTAL_STRIDE // STEM_STRIDE // self.mask_scale
        return hide(x_BHWC, masks_BN, self.mask_token[0], stride, STEM_STRIDE)

    def _run_stage(
        self, stage: int, maps: Maps, width: Width | None, keep: jax.Array | None
    ) -> Maps:
        maps = self._first(stage, maps, width)
        if self.depths[stage] == 1:
            return maps

        def body(maps: Maps, layer: tuple) -> tuple[Maps, None]:
            params, runs = layer
            if runs is None:
                return self._rest_block(stage, params, maps, width), None
            run = lambda maps: self._rest_block(stage, params, maps, width)  # noqa: E731
            return jax.lax.cond(runs, run, lambda maps: maps, maps), None

        runs = None if keep is None else keep[1:]
        return jax.lax.scan(body, maps, (self.stages[stage]["rest"], runs))[0]

    def _first(self, stage: int, maps: Maps, width: Width | None) -> Maps:
        """Run the first block of a stage; `width` is the stage's inner width."""
        return self._run_block(self._block(stage, True), self.stages[stage]["first"], maps, width)

    def _rest_block(self, stage: int, params: Params, maps: Maps, width: Width | None) -> Maps:
        """Run a later block of a stage on `params`, one entry of the stack `rest`."""
        return self._run_block(self._block(stage, False), params, maps, width)

    def _run_block(
        self, block: Bottleneck, params: Params, maps: Maps, width: Width | None
    ) -> Maps:
        def run(maps: Maps, params: Params) -> Maps:
            return tuple(block.apply({"params": params}, x, width) for x in maps)

        return rematerialise(run, self.remat)(maps, params)

    def _features(self, x_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Return the features of one last map."""
        b, *_, d = x_BHWC.shape
        patches = nearest_upsample(x_BHWC, self.mask_scale).reshape(b, -1, d)
        return {"cls": x_BHWC.mean((1, 2)), "patches": patches, "prenorm": x_BHWC.reshape(b, -1, d)}

    def cuts(self, width: Width) -> dict[str, Any]:
        """Say how every parameter shrinks to `width`: the slicing rule of the whole network."""
        rules = {
            "conv1": {"kernel": Cut()},
            "norm1": {"scale": Cut(), "bias": Cut()},
            "mask_token": Cut(),
        }
        for stage in range(STAGES):
            inner = width.scaled(2**stage), self.width * 2**stage
            own = {"first": Bottleneck.cuts(*inner, True)}
            if self.depths[stage] > 1:
                own["rest"] = Bottleneck.cuts(*inner, False)
            rules[f"stage{stage + 1}"] = own
        return rules

    def feature_width(self, width: Width) -> Width:
        """Return the width of `cls` and `patches`: the same whatever the inner width is."""
        del width
        return Width(self.stage_out(STAGES - 1))

    def resized(self, width: int, depths: tuple[int, ...] | None = None) -> "ResNet":
        """Return the ordinary ResNet that computes on parameters cut to `width` (and `depths`)."""
        depths = self.depths if depths is None else depths
        return self.clone(width=width, depths=depths, out_width=self.stage_out(0))

    def pick(self, params: Params, kept: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
        """Keep the named blocks of each stage.

        Raises:
          ValueError: if a stage would lose its first block.
        """
        picked = dict(params)
        for name, blocks in zip((f"stage{s + 1}" for s in range(STAGES)), kept, strict=True):
            if not blocks or blocks[0] != 0:
                raise ValueError(
                    f"{name} cannot lose its first block, which changes the map's size"
                )
            later = tuple(block - 1 for block in blocks[1:])
            rest = {"rest": pick_blocks(params[name]["rest"], later)} if later else {}
            picked[name] = {"first": params[name]["first"], **rest}
        return picked

    @property
    def max_depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return self.depths

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of a mask of a global crop."""
        side = self.image_size // TOTAL_STRIDE * self.mask_scale
        return side, side

    def cost(self, image_size: int) -> Cost:
        """Count parameters (without the mask token) and multiply-adds for one square image."""
        side = -(-image_size // 2)
        total, channels = conv_cost(7, 3, self.stem, side) + vector(self.stem, 2), self.stem
        side = -(-side // 2)
        for stage, depth in enumerate(self.depths):
            entry, later = self._block(stage, True), self._block(stage, False)
            total += entry.cost(channels, side)
            side, channels = -(-side // entry.stride), entry.out
            total += (depth - 1) * later.cost(channels, side)
        return total


def _inner(width: Width | None, stage: int) -> Width | None:
    return None if width is None else width.scaled(2**stage)


def _check_side(side: int, step: int) -> None:
    if side % step or side < 1:
        below = side // step * step
        nearest = f"{below} or {below + step}" if below > 0 else str(step)
        why = "of an image" if step == STEM_STRIDE else "of a global or masked image"
        raise ValueError(
            f"a side {why} of {side} pixels is not a multiple of {step}, expected {nearest}"
        )


def _stage_features(maps: Maps) -> dict[str, Any]:
    means = [x.mean((1, 2)) for x in maps[1:]]
    return {"stages": maps, "multistage": jnp.concatenate(means, axis=-1)}
