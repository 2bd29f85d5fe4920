"""What configurations of the three families do not share: values, keys, sizes that must fit."""

from collections.abc import Mapping

from poa_jax import errors

FAMILIES = ("vit", "swin", "resnet")

# Keys that not every family uses.
OF = {
    "model.patch_size": ("vit", "swin"),
    "model.depth": ("vit",),
    "model.depths": ("swin", "resnet"),
    "model.head_dim": ("vit", "swin"),
    "model.mlp_ratio": ("vit", "swin"),
    "model.mlp": ("vit",),
    "model.layer_scale": ("vit",),
    "model.drop_path": ("vit", "swin"),
    "model.drop_path_uniform": ("vit",),
    "model.window": ("swin",),
    "model.official_patch_norm": ("swin",),
    "model.stem": ("resnet",),
    "model.groups": ("resnet",),
    "elastic.min_depth": ("vit",),
    "elastic.min_depths": ("swin", "resnet"),
    "optimizer.patch_embed_lr": ("vit", "swin"),
}

_SWIN = {
    "model.family": "swin",
    "model.patch_size": 4,
    "model.width": 128,
    "model.head_dim": 16,
    "elastic.min_width": 96,
    "elastic.width_step": 16,
    "elastic.scale": 2,
    "schedule.epoch_steps": 625,
    "schedule.warmup_epochs": 30.0,
    "schedule.cut": 0.9,
    "masks.ratio": (0.1, 0.3),
    "train.steps": 346 * 625,
    "train.batch_size": 2048,
}
_RESNET = {
    "model.family": "resnet",
    "model.width": 128,
    "model.depths": (3, 8, 36, 3),
    "elastic.min_width": 64,
    "elastic.width_step": 32,
    "elastic.min_depths": (3, 4, 6, 3),
    "elastic.scale": 2,
    "elastic.weight_widths": False,
    "schedule.epoch_steps": 1000,
    "schedule.warmup_epochs": 30.0,
    "schedule.cut": 1.0,
    "optimizer.layer_decay": 0.95,
    "masks.ratio": (0.1, 0.3),
    "train.steps": 692_000,
    "train.batch_size": 1280,
}
_PUBLISHED: dict[str, dict[str, object]] = {"vit": {}, "swin": _SWIN, "resnet": _RESNET}


def check_name(family: object) -> None:
    """Raise ValueError for a family that does not exist; names the nearest."""
    if family not in FAMILIES:
        raise ValueError(errors.unknown("value of model.family:", family, FAMILIES))


def published(family: str) -> dict[str, object]:
    """Return "section.key": value where a family's recipe differs from the ViT's (table 2.8)."""
    return dict(_PUBLISHED[family])


def mask_patch(values: Mapping[str, object]) -> int:
    """Return the pixels of the squares that masks hide, along a side.

    ViT: its patches. Swin, ResNet: half the stride of the last map, 16 pixels as published.
    """
    family = values["model.family"]
    if family == "vit":
        return values["model.patch_size"]
    return 4 * values["model.patch_size"] if family == "swin" else 16


def check_keys(values: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Raise ValueError for a key that was set but that the family does not use.

    `defaults` are those of the family.
    """
    family = values["model.family"]
    for key, families in OF.items():
        if family not in families and values[key] != defaults[key]:
            instead = {"model.depth": "model.depths", "elastic.min_depth": "elastic.min_depths"}
            instead |= {plural: single for single, plural in instead.items()}
            hint = f"; did you mean {instead[key]}?" if key in instead else ""
            raise ValueError(f"config key {key} has no meaning for model.family {family}{hint}")


def check_depths(values: Mapping[str, object]) -> None:
    """Raise ValueError for depths from which no space can be made."""
    step = values["elastic.depth_step"]
    if values["model.family"] == "vit":
        pairs = [("", values["elastic.min_depth"], values["model.depth"])]
        low, high = "elastic.min_depth", "model.depth"
    else:
        low, high = "elastic.min_depths", "model.depths"
        each = zip(values[low], values[high], strict=True)
        pairs = [(f" of stage {i}", a, b) for i, (a, b) in enumerate(each, 1)]
    for stage, least, most in pairs:
        if least > most:
            raise ValueError(
                f"{low} {least}{stage} is above {high} {most}, "
                "which is that of the largest sub-network"
            )
        if (most - least) % step:
            raise ValueError(
                f"elastic.depth_step {step} does not lead from {low} {least} "
                f"to {high} {most}{stage} in whole steps"
            )


def width_unit(values: Mapping[str, object]) -> tuple[str, int]:
    """Return (key, value) of what every width must be a multiple of."""
    key = "model.groups" if values["model.family"] == "resnet" else "model.head_dim"
    return key, values[key]


def image_units(values: Mapping[str, object]) -> tuple[int, int, str]:
    """Return what image_size and local_size must be multiples of, and why."""
    if values["model.family"] == "vit":
        patch = values["model.patch_size"]
        return patch, patch, f"model.patch_size {patch}"
    # The last map, which masks are laid on, must hold the whole of a global crop.
    unit = 2 * mask_patch(values)
    return unit, unit // 8, f"{unit // 8} pixels, the stride of the first map"


def check_window(values: Mapping[str, object]) -> None:
    """Raise ValueError for crops smaller than an attention window."""
    if values["model.family"] != "swin":
        return
    least = values["model.window"] * values["model.patch_size"]
    for key in ("data.local_size", "model.image_size"):
        if values[key] < least:
            raise ValueError(
                f"{key} {values[key]} is smaller than one window of model.window "
                f"{values['model.window']} patches; expected {least} or more"
            )
