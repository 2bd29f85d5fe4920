"""A whole pre-training run: data in, checkpoints and metrics out, resumable at any moment.

Everything random is a function of (seed, step): crops, masks, sub-networks, dropped samples. So a
run that was killed and started again does the same updates as one that never stopped.
"""

import dataclasses
import signal
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from poa_jax import checkpoints, config_check
from poa_jax import config as configs
from poa_jax.data.crops import normalise
from poa_jax.data.masking import MaskRecipe
from poa_jax.data.pipeline import TrainPipeline
from poa_jax.data.sources import Source, open_source
from poa_jax.elastic.space import SearchSpace
from poa_jax.elastic.space import draw as draw_subnet
from poa_jax.models import build
from poa_jax.pretraining import parallel
from poa_jax.pretraining.host_memory import keep_freed_memory
from poa_jax.pretraining.losses import Weights
from poa_jax.pretraining.metrics import MetricsWriter, ProgressLine
from poa_jax.pretraining.optimizer import make_groups, vit_rules
from poa_jax.pretraining.schedules import Hyper, Schedules
from poa_jax.pretraining.state import Draw, TrainState, init_state, make_draw, stack_draws
from poa_jax.pretraining.step import Recipe, update

# Keys that may differ from those a workdir was started with: they change no number of the run.
FREE_KEYS = ("train.checkpoint_every", "train.keep_checkpoints", "train.log_every")
FREE_SECTIONS = ("eval.", "parallel.", "data.workers", "data.prefetch", "data.max_bad_fraction")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: updates done.
      stopped: True if SIGTERM ended it before its last step.
      metrics: of the last update logged.
    """

    step: int
    stopped: bool
    metrics: Mapping[str, float]


def make_recipe(config: ml_collections.ConfigDict, devices: int, space: SearchSpace) -> Recipe:
    """Return what is fixed for a run of `config` on `devices` devices."""
    per_device = config.train.batch_size // devices
    masks = MaskRecipe.from_config(config)
    return Recipe(
        backbone=build.backbone(config),
        heads=build.heads(config),
        bounds=build.bounds(config, space.widths),
        widths=space.widths,
        max_masked=per_device // masks.group * masks.max_masked,
        weights=Weights.from_config(config),
        targets=config.loss.targets,
        sinkhorn_iterations=config.loss.sinkhorn_iterations,
        centre_momentum=config.loss.centre_momentum,
        betas=tuple(config.optimizer.betas),
        clip=config.optimizer.clip,
    )


def train(
    config: ml_collections.ConfigDict, workdir: str | Path, source: Source | None = None
) -> Outcome:
    """Pre-train by `config` in `workdir`, going on from its newest checkpoint if it has one.

    Args:
      config: a complete configuration.
      workdir: folder of the run; made if missing.
      source: images; default is what `data.source` names.

    Raises:
      ValueError: for a configuration that cannot run, a workdir of another run, a loss that is
        not finite, or too many unreadable images.
      FileNotFoundError: for missing images.
    """
    keep_freed_memory()
    mesh = parallel.make_mesh()
    check(config, mesh.size)
    workdir = Path(workdir)
    _check_same_run(config, workdir / checkpoints.CONFIG)
    source = open_source(config.data.source, config.data.split) if source is None else source
    pipeline = TrainPipeline.from_config(config, source, jax.process_index(), jax.process_count())
    workdir.mkdir(parents=True, exist_ok=True)
    configs.save(config, workdir / checkpoints.CONFIG)
    with checkpoints.Checkpoints(workdir, config.train.keep_checkpoints) as saved:
        return _run(config, workdir, mesh, pipeline, saved)


def check(config: ml_collections.ConfigDict, devices: int) -> None:
    """Refuse a configuration that cannot run on `devices` devices; see `config_check.check`."""
    config_check.check(config, devices)
    batch, unit = config.train.batch_size, devices * config.masks.group
    if batch % unit:
        raise ValueError(
            f"train.batch_size {batch} cannot be divided over {devices} devices in mask groups of "
            f"{config.masks.group} images; the nearest that can is "
            f"{max(1, round(batch / unit)) * unit}"
        )


def _check_same_run(config: ml_collections.ConfigDict, saved_config: Path) -> None:
    if not saved_config.is_file():
        return
    old = dict(configs.leaves(configs.restore(saved_config).to_dict()))
    new = dict(configs.leaves(config.to_dict()))
    changed = [
        f"{key} (was {old[key]}, now {value})"
        for key, value in new.items()
        if value != old[key] and key not in FREE_KEYS and not key.startswith(FREE_SECTIONS)
    ]
    if changed:
        raise ValueError(
            f"{saved_config.parent} holds a run with another configuration: "
            f"{'; '.join(changed)}; go on with the same values, or choose another --workdir"
        )


def _run(config, workdir, mesh, pipeline, saved) -> Outcome:
    space = build.space(config)
    recipe = make_recipe(config, mesh.size, space)
    state, step = _initial_state(config, recipe, mesh, pipeline, saved)
    step_fn = compile_update(config, recipe, state.params, mesh)
    draws = DrawSequence(config, space, recipe, mesh.size)
    schedules = Schedules.from_config(config)
    key = jax.random.key(config.seed + 1)
    total = config.train.steps
    pending = _Pending()
    writer = MetricsWriter(workdir, resume_step=step)
    progress = ProgressLine(total, config.train.batch_size, step=step)
    stopped = False
    with _sigterm() as stop, writer:
        for number, batch, info in pipeline.iterate(step, total):
            inputs = parallel.sharded(mesh, (batch, draws.at(number)))
            numbers = as_arrays(schedules.at(number))
            state, metrics = step_fn(state, *inputs, numbers, jax.random.fold_in(key, number))
            step = number + 1
            metrics |= {"lr": numbers.lr, "images/unreadable": np.float32(info.num_bad)}
            # Read the metrics of the update before this one: reading waits for the device.
            pending.report(writer, progress, config.train.log_every, total)
            pending.put(step, metrics)
            stopped = stop.is_set
            if step % config.train.checkpoint_every == 0 or step == total or stopped:
                # Before the save, so that a state whose loss was not finite is never saved.
                pending.report(writer, progress, config.train.log_every, total)
                saved.save(step, state, {"data": pipeline.get_state(), "step": step})
            if stopped:
                break
    progress.close()
    saved.wait()
    if stopped:
        logging.info("stopped by SIGTERM after step %d; the same command goes on from there", step)
    return Outcome(step, stopped and step < total, pending.last)


def _initial_state(config, recipe, mesh, pipeline, saved) -> tuple[TrainState, int]:
    make = jax.jit(
        lambda: init_state(recipe.backbone, recipe.heads, config.model.image_size, config.seed)
    )
    state = parallel.replicated(mesh, make())
    restored = saved.restore_newest(state)
    if restored is None:
        return state, 0
    state, meta = restored
    step = pipeline.set_state(meta["data"])
    logging.info("going on from step %d", step)
    return state, step


def compile_update(config, recipe: Recipe, params: Any, mesh) -> Any:
    """Return the jitted update (state, batch, draws, hyper, key) → (state, metrics)."""
    rules = vit_rules(
        recipe.backbone.depth, config.optimizer.layer_decay, config.optimizer.patch_embed_lr
    )
    groups = make_groups(params, rules)
    mean, std = tuple(config.data.mean), tuple(config.data.std)

    def on_device(state, batch, draw, hyper, key):
        crops = {
            name: normalise(batch[name], mean, std) for name in ("global_crops", "local_crops")
        }
        batch = crops | {"masks": batch["masks"]}
        return update(recipe, groups, state, batch, draw, hyper, key, parallel.AXIS)

    return parallel.parallel_update(on_device, mesh)


class DrawSequence:
    """The sub-networks of each step, one for each local device.

    "per_device": every device draws from a stream of its own (the paper); "shared": all run the
    network of stream 0.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        space: SearchSpace,
        recipe: Recipe,
        devices: int,
    ) -> None:
        local = devices // jax.process_count()
        first = local * jax.process_index()
        shared = config.elastic.draw == "shared"
        self._streams = [0 if shared else first + i for i in range(local)]
        self._seed, self._pool, self._recipe = config.seed, space.pool, recipe

    def at(self, step: int) -> Draw:
        """Return the draws of a step, stacked over local devices."""
        subnets = [draw_subnet(self._pool, self._seed, s, step) for s in self._streams]
        depths = self._recipe.backbone.max_depths
        return stack_draws([make_draw(s, self._recipe.bounds, depths) for s in subnets])


def as_arrays(hyper: Hyper) -> Hyper:
    """Return the numbers of a step as float32 scalars, so that each step has the same types."""
    return jax.tree.map(lambda x: np.bool_(x) if isinstance(x, bool) else np.float32(x), hyper)


class _Pending:
    """Metrics of the latest update, still on the device."""

    def __init__(self) -> None:
        self._waiting: tuple[int, Mapping[str, Any]] | None = None
        self.last: dict[str, float] = {}

    def put(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._waiting = step, metrics

    def report(self, writer: MetricsWriter, progress: ProgressLine, every: int, total: int) -> None:
        """Fetch what is waiting, stop on a loss that is not finite, log and show it."""
        if self._waiting is None:
            return
        step, metrics = self._waiting
        self._waiting = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not np.isfinite(values["loss/total"]):
            writer.write(step, values)
            raise ValueError(
                f"the loss of step {step} is {values['loss/total']}; the run stops, and its last "
                "checkpoint is from before. Try a smaller optimizer.base_lr or a larger batch"
            )
        self.last = values
        progress.update(step, {k: v for k, v in values.items() if k.startswith("loss/")})
        if step % every == 0 or step == total:
            writer.write(step, values)


@contextmanager
def _sigterm() -> Iterator[types.SimpleNamespace]:
    """Note a SIGTERM instead of dying of it; the loop looks at `is_set` after every update."""
    flag = types.SimpleNamespace(is_set=False)

    def note(*_: object) -> None:
        flag.is_set = True

    try:
        before = signal.signal(signal.SIGTERM, note)
    except ValueError:  # not the main thread: the caller owns the signals
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
