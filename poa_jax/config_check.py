"""What can be wrong with a configuration: each mistake ends in one sentence before a run starts."""

import ml_collections

from poa_jax import config_families, config_values, errors
from poa_jax.config import default, leaves, unknown_key
from poa_jax.models import remat

CHOICES = {
    "data.placement": ("host", "split", "resident"),
    "data.resize": ("fast", "exact"),
    "data.worker_kind": ("thread", "process"),
    "model.family": config_families.FAMILIES,
    "model.mlp": ("gelu", "swiglu"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": remat.NAMES,
    "elastic.draw": ("per_device", "shared"),
    "loss.targets": ("sinkhorn", "centring"),
    "parallel.engine": ("shard_map",),
}

# Least allowed value of whole numbers.
LEAST = {
    "seed": 0,
    "model.image_size": 1,
    "model.patch_size": 1,
    "model.width": 1,
    "model.depth": 1,
    "model.depths": 1,
    "model.head_dim": 1,
    "model.window": 2,
    "model.stem": 1,
    "model.groups": 1,
    "elastic.min_width": 1,
    "elastic.width_step": 1,
    "elastic.min_depth": 1,
    "elastic.min_depths": 1,
    "elastic.depth_step": 1,
    "elastic.scale": 1,
    "heads.prototypes": 2,
    "heads.hidden": 1,
    "heads.bottleneck": 1,
    "heads.layers": 1,
    "loss.sinkhorn_iterations": 1,
    "schedule.epoch_steps": 1,
    "data.local_size": 1,
    "data.local_crops": 0,
    "data.workers": 0,
    "data.resident_limit": 1,
    "data.prefetch": 1,
    "masks.group": 1,
    "train.steps": 1,
    "train.batch_size": 1,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 1,
    "train.log_every": 1,
    "eval.resize": 1,
    "eval.batch_size": 1,
    "eval.neighbours": 1,
}

PROBABILITIES = (  # in [0, 1]; for a tuple, each of its values
    "loss.intact_weight",
    "loss.centre_momentum",
    "schedule.teacher_momentum",
    "data.global_scale",
    "data.local_scale",
    "data.flip",
    "data.jitter",
    "data.grayscale",
    "data.blur",
    "data.solarize",
    "data.max_bad_fraction",
    "masks.probability",
    "masks.ratio",
)

BELOW_ONE = ("model.drop_path", "optimizer.betas")  # in [0, 1)

POSITIVE = (
    "model.mlp_ratio",
    "loss.student_temperature",
    "schedule.cut",
    "schedule.teacher_temperature",
    "optimizer.layer_decay",
    "data.std",
    "eval.temperature",
)

NOT_NEGATIVE = (
    "model.layer_scale",
    "loss.cls",
    "loss.patch",
    "loss.koleo",
    "schedule.warmup_epochs",
    "schedule.teacher_temperature_warmup_epochs",
    "schedule.weight_decay",
    "schedule.freeze_last_layer_epochs",
    "schedule.patch_masking_start_epoch",
    "optimizer.base_lr",
    "optimizer.min_lr",
    "optimizer.clip",
    "optimizer.patch_embed_lr",
    "data.jitter_strength",
)


def check(config: ml_collections.ConfigDict, device_count: int = 1) -> None:
    """Raise ValueError with one sentence for the first mistake found in `config`.

    `device_count` is the number of devices over all processes that share a batch.
    """
    values = dict(leaves(config.to_dict()))
    _check_keys_and_types(values)
    _check_choices(values)
    family = values["model.family"]
    config_families.check_keys(values, dict(leaves(default(family).to_dict())))
    _check_ranges(values)
    _check_space(values)
    _check_sizes(values)
    _check_batch(values, device_count)


def _check_keys_and_types(values: dict) -> None:
    defaults = dict(leaves(default().to_dict()))
    for key, value in values.items():
        if key not in defaults:
            raise ValueError(unknown_key(key, defaults))
        if sentence := config_values.problem(key, value, defaults[key]):
            raise ValueError(sentence)
    for key in defaults:
        if key not in values:
            raise ValueError(f"config key {key} is missing; start from poa_jax.config.default()")


def _check_choices(values: dict) -> None:
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise ValueError(errors.unknown(f"value of {key}:", values[key], choices))


def _check_ranges(values: dict) -> None:
    def require(keys, holds, expected):
        for key in keys:
            value = values[key]
            if not all(holds(item) for item in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{key} must be {expected}, not {_shown(value)}")

    for key, least in LEAST.items():
        require([key], lambda item, least=least: item >= least, f"at least {least}")
    require(PROBABILITIES, lambda item: 0 <= item <= 1, "between 0 and 1")
    require(BELOW_ONE, lambda item: 0 <= item < 1, "at least 0 and below 1")
    require(POSITIVE, lambda item: item > 0, "above 0")
    require(NOT_NEGATIVE, lambda item: item >= 0, "0 or above")
    require(["schedule.cut", "optimizer.layer_decay"], lambda item: item <= 1, "at most 1")
    for key in ("data.global_scale", "data.local_scale", "masks.ratio"):
        if values[key][0] > values[key][1]:
            raise ValueError(f"{key} must be (least, most), not {_shown(values[key])}")
    for key in ("data.global_scale", "data.local_scale"):
        if values[key][1] == 0:
            raise ValueError(f"{key} must leave some of the image, not {_shown(values[key])}")


def _check_space(values: dict) -> None:
    """Which sub-networks there are: widths in whole heads or groups, depths in whole blocks."""
    name, unit = config_families.width_unit(values)
    for key in ("model.width", "elastic.min_width", "elastic.width_step"):
        _check_multiple(values, key, unit, f"{name} {unit}")
    if values["model.family"] == "resnet":
        _check_multiple(values, "model.stem", unit, f"{name} {unit}")
    low, high, step = (
        values[k] for k in ("elastic.min_width", "model.width", "elastic.width_step")
    )
    if low > high:
        raise ValueError(
            f"elastic.min_width {low} is above model.width {high}, "
            "which is that of the largest sub-network"
        )
    if (high - low) % step:
        raise ValueError(
            f"elastic.width_step {step} does not lead from elastic.min_width {low} "
            f"to model.width {high} in whole steps"
        )
    config_families.check_depths(values)
    _check_width_bounds(values)


def _check_width_bounds(values: dict) -> None:
    key, bounds = "elastic.width_bounds", values["elastic.width_bounds"]
    if isinstance(bounds, str):
        if bounds not in ("each", "max"):
            raise ValueError(errors.unknown(f"value of {key}:", bounds, ("each", "max")))
        return
    widths = _widths(values)
    for bound in bounds:
        if bound not in widths:
            close = min(widths, key=lambda width: abs(width - bound))
            raise ValueError(
                f"{key} has {bound}, which is the width of no sub-network; the nearest is {close}"
            )


def _widths(values: dict) -> range:
    step = values["elastic.width_step"]
    return range(values["elastic.min_width"], values["model.width"] + 1, step)


def _check_sizes(values: dict) -> None:
    global_unit, local_unit, named = config_families.image_units(values)
    if global_unit == local_unit:
        _check_multiple(values, "model.image_size", global_unit, named)
    else:
        what = f"{global_unit} pixels, the stride of the last map"
        _check_multiple(values, "model.image_size", global_unit, what)
    _check_multiple(values, "data.local_size", local_unit, named)
    config_families.check_window(values)
    if values["eval.resize"] < values["model.image_size"]:
        raise ValueError(
            f"eval.resize {values['eval.resize']} is below model.image_size "
            f"{values['model.image_size']}, which is cropped out of the resized image"
        )
    if values["model.family"] != "resnet" and values["model.mlp"] == "gelu":
        _check_hidden(values)


def _check_hidden(values: dict) -> None:
    for width in _widths(values):
        hidden = width * values["model.mlp_ratio"]
        if hidden != int(hidden):
            raise ValueError(
                f"model.mlp_ratio {values['model.mlp_ratio']} gives width {width} "
                f"a hidden layer of {hidden}, which is no whole number"
            )


def _check_batch(values: dict, device_count: int) -> None:
    _check_multiple(
        values, "train.batch_size", values["masks.group"], f"masks.group {values['masks.group']}"
    )
    if device_count > 1:
        _check_multiple(values, "train.batch_size", device_count, f"the {device_count} devices")
    per_device = values["train.batch_size"] // device_count
    if values["loss.koleo"] > 0 and per_device < 2:
        raise ValueError(
            "loss.koleo spreads the images of one device apart, but train.batch_size "
            f"{values['train.batch_size']} gives a device only {per_device}; "
            "expected 2 or more, or loss.koleo 0"
        )


def _check_multiple(values: dict, key: str, of: int, named: str) -> None:
    value = values[key]
    if value % of:
        below, above = value // of * of, (value // of + 1) * of
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(f"{key} {value} is not a multiple of {named}; the nearest is {near}")


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
