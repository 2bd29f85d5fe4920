"""The configuration of a run: every key, its default, its unit; and the way in and out of it.

Config files (`configs/*.py`) start from `default(family)` and change what differs. The values below
are the published ViT recipe where the paper gives one (arXiv 2408.01031, appendix A); what differs
in the other families is in `config_families`. `config_check.check` says what is wrong with a
configuration.
"""

import importlib.util
import json
import os
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

import ml_collections

from poa_jax import config_families, config_values, errors


def default(family: str = "vit") -> ml_collections.ConfigDict:
    """Return the full tree of keys with the published values of a family.

    Keys that only other families use (`config_families.OF`) keep the value that stands here.

    Raises:
      ValueError: for an unknown family; names the nearest.
    """
    config_families.check_name(family)
    c = ml_collections.ConfigDict()
    c.seed = 0

    c.model = ml_collections.ConfigDict()
    c.model.family = "vit"  # "vit", "swin" or "resnet"
    c.model.image_size = 224  # pixels of a global crop; for a ViT also the grid of its positions
    c.model.patch_size = 16
    # Of the widest sub-network, which is the intact one. ViT: embedding; Swin: channels of the
    # first stage; ResNet: inner width of the blocks of the first stage.
    c.model.width = 1024
    c.model.depth = 24  # blocks of a ViT
    c.model.depths = (2, 2, 18, 2)  # blocks of each stage of a Swin or ResNet
    c.model.head_dim = 64  # width of one attention head, the same in every sub-network
    c.model.mlp_ratio = 4.0
    c.model.mlp = "gelu"  # "gelu" or "swiglu"
    c.model.layer_scale = 1e-5  # initial value; 0 turns LayerScale off
    c.model.drop_path = 0.2  # a Swin's grows linearly from 0 over the blocks
    c.model.drop_path_uniform = True  # False: grows linearly in a ViT too
    c.model.window = 7  # side of an attention window in tokens
    c.model.official_patch_norm = False  # True: Swin's first norm runs over all channels, then cut
    c.model.stem = 64  # channels of a ResNet's first convolution
    c.model.groups = 32  # of a ResNet's group norms; must divide every width
    c.model.dtype = "float32"  # compute type; parameters, losses and targets stay float32
    c.model.remat = "none"  # name of a jax.checkpoint policy, "full" or "none"

    c.elastic = ml_collections.ConfigDict()
    c.elastic.min_width = 384
    c.elastic.width_step = 64
    c.elastic.min_depth = 12
    c.elastic.min_depths = (2, 2, 6, 2)  # of each stage of a Swin or ResNet
    c.elastic.depth_step = 1  # in every stage
    c.elastic.scale = 3  # the smallest network is drawn scale² times as often as the largest
    c.elastic.weight_widths = True  # False: only shallow networks are drawn more often, not narrow
    c.elastic.width_bounds = _any_type(
        "each"
    )  # "each": slices exactly; "max": masks; or a tuple of widths
    c.elastic.draw = "per_device"  # "per_device" (the paper) or "shared"

    c.heads = ml_collections.ConfigDict()
    c.heads.prototypes = (8192, 16384, 32768, 65536)
    c.heads.hidden = 2048
    c.heads.bottleneck = 256
    c.heads.layers = 3

    c.loss = ml_collections.ConfigDict()
    c.loss.intact_weight = 0.8  # λ: intact student λ, elastic student 1 − λ
    c.loss.cls = 1.0
    c.loss.patch = 1.0
    c.loss.koleo = 0.1
    c.loss.student_temperature = 0.1
    c.loss.targets = "sinkhorn"  # "sinkhorn" or "centring"
    c.loss.sinkhorn_iterations = 3
    c.loss.centre_momentum = 0.9

    c.schedule = ml_collections.ConfigDict()
    c.schedule.epoch_steps = 800  # steps in one "epoch" of the schedules below
    c.schedule.warmup_epochs = 10.0
    c.schedule.cut = 0.78  # cosines are laid out over steps / cut and cut at the last step
    c.schedule.teacher_temperature = (0.04, 0.07)
    c.schedule.teacher_temperature_warmup_epochs = 30.0
    c.schedule.teacher_momentum = (0.992, 0.9999)
    c.schedule.weight_decay = (0.04, 0.4)
    c.schedule.freeze_last_layer_epochs = 1.0
    c.schedule.patch_masking_start_epoch = 30.0

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.base_lr = 0.004  # × sqrt(batch / 1024)
    c.optimizer.min_lr = 2e-5
    c.optimizer.betas = (0.9, 0.999)
    c.optimizer.clip = 1.5  # largest gradient norm of each of backbone and heads; 0 turns it off
    c.optimizer.layer_decay = 0.9
    c.optimizer.patch_embed_lr = 0.2

    c.data = ml_collections.ConfigDict()
    c.data.source = "embedded"
    c.data.split = "train"
    c.data.fingerprint = ""  # of the images; written by training, which refuses others if it is set
    c.data.placement = "host"  # who makes crops: "host", "split" (colours: device) or "resident"
    c.data.resident_limit = 1024  # MiB of images that "resident" may keep on every device
    c.data.local_size = 96  # pixels
    c.data.local_crops = 8
    c.data.global_scale = (0.32, 1.0)  # share of the image's area
    c.data.local_scale = (0.05, 0.32)
    c.data.flip = 0.5
    c.data.jitter = 0.8  # probability of colour jitter
    c.data.jitter_strength = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    c.data.grayscale = 0.2
    c.data.blur = (1.0, 0.1, 0.5)  # global crop 1, global crop 2, local crops
    c.data.blur_inverted = False  # True: blur with 1 − p, as the official code does
    c.data.solarize = 0.2  # global crop 2 only
    c.data.resize = "fast"  # or "exact": Pillow's antialiased bicubic to the last bit, but slower
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)
    c.data.workers = 2  # make batches ahead of the training step; 0: made one by one
    c.data.worker_kind = "thread"  # "thread" or "process"
    c.data.prefetch = 4  # batches
    c.data.max_bad_fraction = 0.01  # unreadable images allowed, as a share of those read

    c.masks = ml_collections.ConfigDict()
    c.masks.probability = 0.5  # share of global crops that are masked
    c.masks.ratio = (0.1, 0.5)  # share of patches masked in such a crop
    c.masks.group = 8  # images that share one set of equally spaced ratios

    c.train = ml_collections.ConfigDict()
    c.train.steps = 276_800
    c.train.batch_size = 1600  # images, over all devices
    c.train.checkpoint_every = 1000  # steps
    c.train.keep_checkpoints = 2
    c.train.log_every = 10  # steps

    c.parallel = ml_collections.ConfigDict()
    c.parallel.engine = "shard_map"

    c.eval = ml_collections.ConfigDict()
    c.eval.resize = 256  # pixels of the shorter side, then a centre crop of model.image_size
    c.eval.batch_size = 256
    c.eval.neighbours = (10, 20, 100, 200)
    c.eval.temperature = 0.07
    for key, value in config_families.published(family).items():
        section, leaf = key.split(".")
        c[section][leaf] = value
    return c


def load(source: str | os.PathLike | ModuleType) -> ml_collections.ConfigDict:
    """Return what `get_config()` of a config file (or of an imported module) returns, locked.

    Raises FileNotFoundError for a missing file, and ValueError for one that is not Python, has no
    `get_config`, or fails while it runs (with the line at which it did).
    """
    module = source if isinstance(source, ModuleType) else _run_file(Path(source))
    name = getattr(module, "__file__", None) or module.__name__
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"config file {name} has no function get_config()")
    try:
        config = module.get_config()
    except Exception as error:
        raise ValueError(_failure(name, error)) from error
    if not isinstance(config, ml_collections.ConfigDict):
        kind = type(config).__name__
        raise ValueError(f"get_config() of {name} returned a {kind}, expected a ConfigDict")
    return config.lock()


def override(
    config: ml_collections.ConfigDict, assignments: Iterable[str]
) -> ml_collections.ConfigDict:
    """Return a copy of `config` with "key=value" strings applied, such as "train.steps=10".

    A value is read as the type its key has now; a tuple is written 1024,2048 or (1024, 2048).
    Raises ValueError for an unknown key (naming the nearest) and for a value of another type.
    """
    tree = config.to_dict()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"config override {assignment!r} has no value, expected key=value")
        section, leaf = _place(tree, key)
        section[leaf] = config_values.parse(key, text, section[leaf])
    return _as_config(tree)


def save(config: ml_collections.ConfigDict, path: str | os.PathLike) -> None:
    """Write `config` as JSON, whole or not at all; `restore` gives the same values back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    text = json.dumps(config.to_dict(), indent=2, allow_nan=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def restore(path: str | os.PathLike) -> ml_collections.ConfigDict:
    """Read a configuration that `save` wrote; keys added to the package since have their default.

    Raises FileNotFoundError for a missing file, and ValueError for one that is not JSON or has a
    key this version does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no saved configuration at {path}")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a saved configuration: {error}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is not a saved configuration: expected a JSON object")
    if "kind" in saved:
        raise ValueError(f"{path} describes a {saved['kind']}, expected the configuration of a run")
    tree = default().to_dict()
    for key, value in leaves(saved):
        try:
            section, leaf = _place(tree, key)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        section[leaf] = value
    return _as_config(tree)


def leaves(tree: Mapping, prefix: str = "") -> list[tuple[str, object]]:
    """List ("section.key", value) in order; a JSON list counts as the tuple it was saved from."""
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", tuple(value) if isinstance(value, list) else value))
    return found


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the sentence for a key that is none of `known`, with the nearest one."""
    known = list(known)
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return f"config key {key!r} is a section, expected one of its keys: {', '.join(inside)}"
    # A forgotten or mistaken section is a likelier slip than a name that looks alike elsewhere.
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    return errors.unknown("config key", key, known if len(same_leaf) != 1 else same_leaf, listed=0)


def _place(tree: dict, key: str) -> tuple[dict, str]:
    """Return the section of `tree` that holds `key` and the key's name there."""
    known = [name for name, _ in leaves(tree)]
    if key not in known:
        raise ValueError(unknown_key(key, known))
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree[parent]
    return tree, leaf


def _as_config(tree: dict) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(tree)
    for key in config_values.NAME_OR_WIDTHS & {name for name, _ in leaves(tree)}:
        section, leaf = key.split(".")
        with config.ignore_type():
            config[section][leaf] = _any_type(tree[section][leaf])
    return config.lock()


def _any_type(value: object) -> ml_collections.FieldReference:
    """Hold a value that may later be replaced by one of another type."""
    return ml_collections.FieldReference(value, field_type=object)


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    if path.suffix != ".py":
        raise ValueError(f"config file {path} is not a Python file (*.py)")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(_failure(str(path), error)) from error
    return module


def _missing(path: Path) -> str:
    beside = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
    close = errors.nearest(path.name, beside)
    hint = f"; did you mean {path.parent / close}?" if close else ""
    return f"no config file at {path}{hint}"


def _failure(name: str, error: Exception) -> str:
    """Say where in the user's config file an error arose, and what it was."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == Path(name).resolve()
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    where = f"config file {name}, line {line}" if line else f"config file {name}"
    return f"{where}: {type(error).__name__}: {error}"
