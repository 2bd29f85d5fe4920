"""A run small enough for tests: a configuration, labelled images, a folder with a checkpoint."""

import functools
from pathlib import Path

import jax
import numpy as np

from poa_jax import config as configs
from poa_jax import loading
from poa_jax.checkpoints import CONFIG, Checkpoints
from poa_jax.data.sources import ArraySource
from poa_jax.models import build
from poa_jax.pretraining.state import init_state
from poa_jax.supernet import Supernet

CLASSES = 5
STEP = 7
TEACHER_SEED = 3
# 2 widths × 5 depths. LayerScale 1, so that every block changes the features.
VALUES = {
    "model.image_size": 16,
    "model.patch_size": 8,
    "model.width": 32,
    "model.depth": 6,
    "model.head_dim": 16,
    "model.layer_scale": 1.0,
    "elastic.min_width": 16,
    "elastic.width_step": 16,
    "elastic.min_depth": 2,
    "heads.prototypes": "8,16",
    "heads.hidden": 16,
    "heads.bottleneck": 8,
    "data.local_size": 8,
    "data.local_crops": 2,
    "data.workers": 1,
    "train.batch_size": 16,
    "train.steps": 2,
    "schedule.epoch_steps": 1,
    "schedule.warmup_epochs": 1,
    "schedule.patch_masking_start_epoch": 1,
    "masks.group": 4,
    "eval.resize": 16,
    "eval.batch_size": 16,
    "eval.neighbours": "3,10",
}


def config(**changed):
    """Return the tiny configuration; `train__steps=3` changes `train.steps`."""
    values = VALUES | {key.replace("__", "."): value for key, value in changed.items()}
    return configs.override(configs.default(), [f"{k}={v}" for k, v in values.items()])


def images(count: int, seed: int = 0, labelled: bool = True) -> ArraySource:
    """Return noisy pictures, a colour for each class, that some but not all neighbours match."""
    pixels, labels = arrays(count, seed)
    return ArraySource(pixels, labels if labelled else None)


def arrays(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 (n, 20, 16, 3) and labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    colours = np.random.default_rng(99).normal(128, 18, (CLASSES, 1, 1, 3))
    pixels = colours[labels] + rng.normal(0, 60, (count, 20, 16, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


def write_images(path: Path, train: int = 60, test: int = 25) -> str:
    """Write an .npz of images with a test split; returns its `data.source`."""
    train_images, train_labels = arrays(train, 1)
    test_images, test_labels = arrays(test, 2)
    np.savez(
        path,
        images=train_images,
        labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )
    return f"arrays:{path}"


@functools.cache
def supernet(seed: int = 0) -> Supernet:
    """Return the supernet of `config()` with random parameters."""
    return loading.untrained(config(), seed)


def make(folder: Path, **changed) -> Path:
    """Write the folder of a run; its teacher is what a run of seed `TEACHER_SEED` starts from."""
    c = config(**changed)
    configs.save(c, folder / CONFIG)
    modules = build.backbone(c), build.heads(c)
    state = jax.jit(lambda: init_state(*modules, c.model.image_size, TEACHER_SEED))()
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(STEP, state, {})
    return folder
