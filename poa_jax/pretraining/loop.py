"""A whole pre-training run: data in, checkpoints and metrics out, resumable at any moment.

Everything random is a function of (seed, step): crops, masks, sub-networks, dropped samples. So a
run that was killed and started again does the same updates as one that never stopped.
"""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from poa_jax import checkpoints, config_check
from poa_jax import config as configs
from poa_jax.data import placement
from poa_jax.data.feed import Feed
from poa_jax.data.masking import MaskRecipe
from poa_jax.data.pipeline import TrainPipeline
from poa_jax.data.sources import Source, open_source
from poa_jax.elastic.space import SearchSpace
from poa_jax.host_memory import keep_freed_memory
from poa_jax.messages import LOGGER
from poa_jax.models import build
from poa_jax.pretraining import parallel
from poa_jax.pretraining import workdir as folder
from poa_jax.pretraining.draws import DrawSequence
from poa_jax.pretraining.losses import Weights
from poa_jax.pretraining.metrics import MetricsWriter, ProgressLine
from poa_jax.pretraining.optimizer import make_groups
from poa_jax.pretraining.param_rules import rules_for
from poa_jax.pretraining.schedules import Hyper, Schedules
from poa_jax.pretraining.state import TrainState, init_state
from poa_jax.pretraining.step import Recipe, update


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      step: updates done.
      stopped: True if SIGTERM ended it before its last step.
      metrics: of the last update; empty if there was none to do.
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
    workdir = Path(workdir)
    mesh = parallel.make_mesh()
    check(config, mesh.size)
    folder.check_folder(workdir)
    if checkpoints.has_any(workdir):
        folder.check_same_run(config, workdir / checkpoints.CONFIG)
    source = open_source(config.data.source, config.data.split) if source is None else source
    config = with_fingerprint(config, source)
    pipeline = TrainPipeline.from_config(config, source, jax.process_index(), jax.process_count())
    workdir.mkdir(parents=True, exist_ok=True)
    leads = jax.process_index() == 0
    with (
        folder.only_process(workdir) if leads else nullcontext(),
        folder.disk_errors(workdir),
        stopping() as must_stop,
    ):
        if leads:
            configs.save(config, workdir / checkpoints.CONFIG)
        with checkpoints.Checkpoints(workdir, config.train.keep_checkpoints) as saved:
            return _run(config, workdir, mesh, pipeline, saved, must_stop)


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


def with_fingerprint(
    config: ml_collections.ConfigDict, source: Source
) -> ml_collections.ConfigDict:
    """Return `config` with the fingerprint of its images, which becomes part of the run's record.

    Raises:
      ValueError: if it names another one.
    """
    wanted, found = config.data.fingerprint, source.fingerprint
    if wanted not in ("", found):
        raise ValueError(
            f"data.fingerprint is {wanted}, but the images of {config.data.source} have {found}: "
            "they are not the same images in the same order"
        )
    return configs.override(config, [f"data.fingerprint={found}"])


def _run(config, workdir, mesh, pipeline, saved, must_stop) -> Outcome:
    space = build.space(config)
    recipe = make_recipe(config, mesh.size, space)
    state, step = _initial_state(config, recipe, mesh, pipeline, saved)
    total = config.train.steps
    if step == total:
        LOGGER.info("the run in %s already did its %d steps", workdir, total)
        return Outcome(step, False, {})
    step_fn = compile_update(config, recipe, state.params, mesh)
    draws = DrawSequence(config, space, recipe, mesh.size)
    schedules = Schedules.from_config(config)
    key = jax.random.key(config.seed + 1)
    report = Report(config, workdir, step)
    stopped = must_stop(step)
    cut = placement.cutter(config, pipeline.source, mesh, parallel.AXIS)
    feed = Feed(
        pipeline.iterate(step, step if stopped else total),
        lambda batch: parallel.sharded(mesh, batch),
    )
    metrics = None
    with report, feed:
        while (item := feed.take(metrics)) is not None:
            number, batch, info, waited = item
            draw = parallel.sharded(mesh, draws.at(number))
            numbers = as_arrays(schedules.at(number))
            # Not in the feed's thread: all processes must start programs in the same order.
            batch = cut(batch)
            state, metrics = step_fn(state, batch, draw, numbers, jax.random.fold_in(key, number))
            step = number + 1
            told = {"lr": numbers.lr, "images/unreadable": info.num_bad, "data_wait": waited}
            report.put(step, metrics | told)
            stopped = must_stop(step)
            if step % config.train.checkpoint_every == 0 or step == total or stopped:
                # Before the save, so that a state whose loss was not finite is never saved.
                report.flush()
                saved.save(step, state, {"data": pipeline.get_state(step), "step": step})
            if stopped:
                break
    saved.wait()
    if stopped:
        LOGGER.info("stopped by SIGTERM after step %d; the same command goes on from there", step)
    return Outcome(step, stopped and step < total, report.last)


def _initial_state(config, recipe, mesh, pipeline, saved) -> tuple[TrainState, int]:
    everywhere = NamedSharding(mesh, PartitionSpec())
    make = jax.jit(
        lambda: init_state(recipe.backbone, recipe.heads, config.model.image_size, config.seed),
        out_shardings=everywhere,
    )
    # Shapes are enough to restore; parameters are drawn only for a run that begins.
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), jax.eval_shape(make)
    )
    restored = saved.restore_newest(like)
    if restored is None:
        return make(), 0
    state, meta = restored
    step = pipeline.set_state(meta["data"])
    LOGGER.info("going on from step %d", step)
    return state, step


def compile_update(config, recipe: Recipe, params: Any, mesh) -> Any:
    """Return the jitted update (state, batch, draws, hyper, key) → (state, metrics)."""
    rules = rules_for(
        recipe.backbone, config.optimizer.layer_decay, config.optimizer.patch_embed_lr
    )
    groups = make_groups(params, rules)
    prepare = placement.device_part(config)
    # One device has nothing to average: a collective would only copy every gradient.
    axis = parallel.AXIS if mesh.size > 1 else None

    def on_device(state, batch, draw, hyper, key):
        return update(recipe, groups, state, prepare(batch), draw, hyper, key, axis)

    return parallel.parallel_update(on_device, mesh)


def as_arrays(hyper: Hyper) -> Hyper:
    """Return the numbers of a step as float32 scalars, so that each step has the same types."""
    return jax.tree.map(lambda x: np.bool_(x) if isinstance(x, bool) else np.float32(x), hyper)


class Report:
    """What a run tells of itself: `metrics.jsonl`, TensorBoard, the progress line.

    Metrics are read one update late, because reading waits for the device. Only the first process
    writes; all of them stop on a number that is not finite.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, step: int) -> None:
        self._every, self._total = config.train.log_every, config.train.steps
        self._waiting: tuple[int, Mapping[str, Any]] | None = None
        self._writer, self._progress = None, None
        self.last: dict[str, float] = {}
        if jax.process_index() == 0:
            self._writer = MetricsWriter(workdir, resume_step=step)
            self._progress = ProgressLine(self._total, config.train.batch_size, step=step)

    def put(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the metrics of an update, and report those of the one before."""
        self.flush()
        self._waiting = step, metrics

    def flush(self) -> None:
        """Report what is waiting.

        Raises:
          ValueError: if the loss or a gradient is not finite.
        """
        if self._waiting is None:
            return
        step, metrics = self._waiting
        self._waiting = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name in sorted(values) if not np.isfinite(values[name])]
        if self._writer and (step % self._every == 0 or step == self._total or bad):
            self._writer.write(step, values)
        if bad:
            name = "loss/total" if "loss/total" in bad else bad[0]
            raise ValueError(
                f"{name} of step {step} is {values[name]}; the run stops, and its last checkpoint "
                "is from before. Try a smaller optimizer.base_lr or a larger batch"
            )
        self.last = values
        if self._progress:
            losses = {k: v for k, v in values.items() if k.startswith("loss/")}
            self._progress.update(step, losses)

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._progress.close()
            self._writer.close()


@contextmanager
def stopping() -> Iterator[Callable[[int], bool]]:
    """Yield must_stop(step): whether a SIGTERM came, asked after every update.

    Processes of one run must agree on the step, so with several of them jax.distributed, which
    watches for the signal itself, is asked.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    came = threading.Event()
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    except ValueError:  # not the main thread: the caller owns the signals
        yield lambda step: False
        return
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
