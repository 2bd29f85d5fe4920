"""Names and layouts of the official Swin state dict, as our params tree.

official (torch)                                     ours
stages.t.blocks.b.attn.w_msa.qkv.linear.weight       stage{t+1}/attn/qkv/kernel, stacked over b
stages.t.blocks.b.attn.w_msa.relative_position_…     stage{t+1}/attn/bias_table
stages.t.downsample.norm.norm.weight (4C)            merge{t+1}/norm/scale (4, C)
stages.t.downsample.reduction.linear.weight (2C, 4C) merge{t+1}/kernel (4, C, 2C)
norm3.norm.weight                                    norm/scale
norm0..2.norm.*                                      none: no pre-training reaches them
"""

import re
from collections.abc import Mapping

import golden_params
import numpy as np
from flax.traverse_util import unflatten_dict

UNUSED = re.compile(r"norm[012]\.norm\.|.*relative_position_index")


def backbone_path(name: str) -> tuple[str, int | None] | None:
    """Return (path below `backbone/`, block or None) of an official parameter; None if unused."""
    if UNUSED.match(name):
        return None
    name = name.replace(".linear.", ".").replace(".norm.weight", ".weight")
    name = re.sub(r"norm(\d?)\.norm\.(bias)", r"norm\1.\2", name)
    name = name.replace(".w_msa.", ".").replace("relative_position_bias_table", "bias_table")
    name = name.replace("ffn.", "mlp.").replace("norm3.", "norm.")
    name = name.replace("patch_embed.norm", "patch_norm").replace("patch_embed.proj", "patch_embed")
    name = name.replace("downsample.reduction.", "downsample.")
    block = None
    if found := re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name):
        block = int(found[2])
        name = f"stage{int(found[1]) + 1}." + name[found.end() :]
    name = re.sub(r"stages\.(\d)\.downsample", lambda m: f"merge{int(m[1]) + 1}", name)
    weight = "scale" if re.search(r"norm\d?\.weight$", name) else "kernel"
    return name.replace("weight", weight).replace(".", "/"), block


def layout(path: str, array: np.ndarray) -> np.ndarray:
    """Return one official parameter in our layout, without the block axis."""
    if path.startswith("merge"):
        rows = array.T if array.ndim == 2 else array
        return rows.reshape(4, rows.shape[0] // 4, *rows.shape[1:])
    return golden_params.layout(path, array)


def backbone(flat: Mapping[str, np.ndarray]) -> dict:
    """Return our backbone params from an official Swin state dict."""
    leaves: dict[str, dict] = {}
    for name, array in flat.items():
        if found := backbone_path(name):
            path, block = found
            leaves.setdefault(path, {})[block] = layout(path, np.asarray(array))
    stacked = {
        path: leaf[None] if None in leaf else np.stack([leaf[i] for i in range(len(leaf))])
        for path, leaf in leaves.items()
    }
    return unflatten_dict(stacked, sep="/")
