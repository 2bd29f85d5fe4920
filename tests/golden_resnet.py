"""How names and layouts of the official ResNet's state dict become our params tree.

official (torch)                          ours
conv1.weight, norm1.weight, norm1.bias    conv1/kernel, norm1/scale, norm1/bias
mask_token (1, C, 1, 1)                   mask_token (1, C)
layer1.layers.0.conv1.conv.weight         stage1/first/conv1/kernel
layer1.layers.0.downsample.0.weight       stage1/first/downsample/kernel
layer1.layers.0.downsample.1.weight       stage1/first/downsample_norm/scale
layer1.layers.2.norm3.bias                entry 1 of stage1/rest/norm3/bias

Layouts of kernels as in `golden_params.py`.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import unflatten_dict
from golden_params import layout


def backbone_path(name: str) -> tuple[str, int | None]:
    """Return (path below `backbone/`, entry of the stack or None) of an official parameter."""
    if name == "mask_token":
        return name, None
    entry, prefix = None, ""
    if found := re.match(r"layer(\d)\.layers\.(\d+)\.", name):
        stage, block = int(found[1]), int(found[2])
        entry = block - 1 if block else None
        prefix = f"stage{stage}/{'rest' if block else 'first'}/"
        name = name[found.end() :]
    name = name.replace("downsample.0", "downsample").replace("downsample.1", "downsample_norm")
    layer, leaf = name.replace(".conv.weight", ".weight").split(".")
    if leaf == "weight":
        leaf = "scale" if "norm" in layer else "kernel"
    return f"{prefix}{layer}/{leaf}", entry


def resnet_layout(path: str, a: np.ndarray) -> np.ndarray:
    """Return one official parameter in the layout of ours at `path` (without the block axis)."""
    return a.reshape(1, -1) if path == "mask_token" else layout(path, a)


def resnet_backbone(flat: Mapping[str, np.ndarray]) -> dict:
    """Return our backbone params from an official state dict in which no stage has one block."""
    leaves: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, array in flat.items():
        path, entry = backbone_path(name)
        array = np.ascontiguousarray(resnet_layout(path, np.asarray(array)))
        if entry is None:
            leaves[path] = array
        else:
            stacks.setdefault(path, {})[entry] = array
    stacked = {path: np.stack([s[i] for i in range(len(s))]) for path, s in stacks.items()}
    return unflatten_dict(leaves | stacked, sep="/")
