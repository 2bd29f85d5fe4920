"""Reference arrays, and how names and layouts of the official state dict become our params tree.

official (torch)                          ours
Linear weight (out, in)                   kernel (in, out)
Conv weight (out, in, kh, kw)             kernel (kh, kw, in, out)
qkv weight (3D, D), bias (3D)             kernel (D, 3, D), bias (3, D)
SwiGLU w12 weight (2F, D), bias (2F)      kernel (D, 2, F), bias (2, F)
norm weight, bias                         scale, bias
weight_v (K, width), weight_g (K, 1)      v (width, K), g (K)
blocks.0.x, blocks.1.x, …                 blocks/x with a leading axis
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    """Return every array of tests/golden/<name>.npz by its key; float16 becomes float32 (lossless).

    The dict is shared between callers: do not change it.
    """
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    return {k: a.astype(np.float32) if a.dtype == np.float16 else a for k, a in arrays.items()}


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose key starts with `prefix`, without it."""
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def vit_backbone(flat: Mapping[str, np.ndarray]) -> dict:
    """Return our backbone params from an official ViT state dict (keys as `blocks.0.ls1.gamma`)."""
    return _tree(flat, backbone_path)


def heads(flat: Mapping[str, np.ndarray]) -> dict:
    """Return our heads params from an official head state dict (keys as `mlp0.0.linear.bias`)."""
    return _tree(flat, head_path)


def params(flat: Mapping[str, np.ndarray]) -> dict:
    """Return `{"backbone": …, "heads": …}` from keys `backbone.*` and `dino_head.*`."""
    return {
        "backbone": vit_backbone(under(flat, "backbone.")),
        "heads": heads(under(flat, "dino_head.")),
    }


def backbone_path(name: str) -> tuple[str, int | None]:
    """Return (path below `backbone/`, block or None) of an official ViT parameter."""
    name = re.sub(r"\.(linear|norm)\.(weight|bias)$", r".\2", name)  # the elastic layers' wrappers
    if name in ("norm.weight", "norm.bias"):
        return f"norm/{'bias' if name == 'norm.bias' else 'scale'}", None
    block = None
    if found := re.match(r"blocks\.(\d+)\.", name):
        block = int(found[1])
        name = "blocks." + name[found.end() :]
    name = name.replace("patch_embed.proj", "patch_embed")
    weight = "scale" if re.search(r"norm\d\.weight$", name) else "kernel"
    return name.replace("weight", weight).replace(".", "/"), block


def head_path(name: str) -> tuple[str, None]:
    """Return (path below `heads/`, None) of an official head parameter."""
    if found := re.fullmatch(r"last_layer(\d+)\.weight_([gv])", name):
        return f"head_{found[1]}/last_layer/{found[2]}", None
    head, layer, leaf = re.fullmatch(r"mlp(\d+)\.(\d+)\.(?:linear\.)?(\w+)", name).groups()
    leaf = "kernel" if leaf == "weight" else leaf
    return f"head_{head}/fc{int(layer) // 2 + 1}/{leaf}", None


def layout(path: str, a: np.ndarray) -> np.ndarray:
    """Return one official parameter in the layout of ours at `path` (without the block axis)."""
    parts = {"qkv": 3, "w12": 2}
    split = next((n for key, n in parts.items() if f"/{key}/" in path), None)
    if path.endswith("/g"):
        return a[:, 0]
    if path.endswith("/v"):
        return a.T
    if path.endswith("/kernel") and a.ndim == 4:
        return a.transpose(2, 3, 1, 0)
    if path.endswith("/kernel"):
        return a.T.reshape(a.shape[1], split, -1) if split else a.T
    return a.reshape(split, -1) if split else a


def _tree(flat: Mapping[str, np.ndarray], to_path) -> dict:
    leaves: dict[str, np.ndarray | dict[int, np.ndarray]] = {}
    for name, array in flat.items():
        path, block = to_path(name)
        array = layout(path, np.asarray(array))
        if block is None:
            leaves[path] = np.ascontiguousarray(array)
        else:
            leaves.setdefault(path, {})[block] = array
    stacked = {
        path: np.stack([leaf[i] for i in range(len(leaf))]) if isinstance(leaf, dict) else leaf
        for path, leaf in leaves.items()
    }
    return unflatten_dict(stacked, sep="/")
