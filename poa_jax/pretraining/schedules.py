"""What changes from step to step: learning rates, weight decay, teacher momentum and temperature.

Plain float64 numbers computed on the host; a step receives them as traced scalars, so that nothing
recompiles. Cosines are laid out over `steps / cut` and cut at `steps` (arXiv 2408.01031,
appendix A: the published ViT run has cut = 0.78 and ends at 12 % of its peak, not at `min_lr`).
"""

import dataclasses
import math
from typing import Self

import jax
import ml_collections


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyper:
    """The numbers of one step; a pytree, so that it can be an argument of a jitted step."""

    lr: float
    last_layer_lr: float  # of the heads' last layers: 0 while they are frozen
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    patch_masking: bool  # whether global crops are masked and the patch loss is on


@dataclasses.dataclass(frozen=True)
class Schedules:
    """All schedules of a run; epochs may be fractions, pairs are (start, end).

    Raises ValueError for a step count below 1, a cut outside (0, 1] or negative epochs.
    """

    steps: int
    epoch_steps: int
    lr: float  # the peak, reached when warm-up ends
    min_lr: float = 2e-5
    warmup_epochs: float = 10.0
    cut: float = 1.0
    weight_decay: tuple[float, float] = (0.04, 0.4)
    teacher_momentum: tuple[float, float] = (0.992, 0.9999)
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    teacher_temperature_warmup_epochs: float = 30.0
    freeze_last_layer_epochs: float = 1.0
    patch_masking_start_epoch: float = 30.0

    def __post_init__(self) -> None:
        for name in ("steps", "epoch_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 < self.cut <= 1.0:
            raise ValueError(f"schedule.cut must be above 0 and at most 1, got {self.cut}")
        for field in dataclasses.fields(self):
            if "epoch" in field.name and getattr(self, field.name) < 0:
                value = getattr(self, field.name)
                raise ValueError(f"schedule.{field.name} must not be negative, got {value}")

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> Self:
        """Take every number from `config`; the peak rate is base_lr · sqrt(batch_size / 1024)."""
        c = config.schedule
        return cls(
            steps=config.train.steps,
            epoch_steps=c.epoch_steps,
            lr=config.optimizer.base_lr * math.sqrt(config.train.batch_size / 1024),
            min_lr=config.optimizer.min_lr,
            warmup_epochs=c.warmup_epochs,
            cut=c.cut,
            weight_decay=tuple(c.weight_decay),
            teacher_momentum=tuple(c.teacher_momentum),
            teacher_temperature=tuple(c.teacher_temperature),
            teacher_temperature_warmup_epochs=c.teacher_temperature_warmup_epochs,
            freeze_last_layer_epochs=c.freeze_last_layer_epochs,
            patch_masking_start_epoch=c.patch_masking_start_epoch,
        )

    def at(self, step: int) -> Hyper:
        """Return the numbers of `step` (0-based); from `steps` on, every schedule is at its end.

        Raises ValueError for a negative step.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        total, cut = self.steps, self.cut
        warmup = self._steps(self.warmup_epochs)
        lr = cosine(step, self.lr, self.min_lr, total=total, cut=cut, warmup=warmup)
        frozen = step < min(self._steps(self.freeze_last_layer_epochs), total)
        return Hyper(
            lr=lr,
            last_layer_lr=0.0 if frozen else lr,
            weight_decay=cosine(step, *self.weight_decay, total=total, cut=cut),
            teacher_momentum=cosine(step, *self.teacher_momentum, total=total, cut=cut),
            teacher_temperature=ramp(
                step,
                *self.teacher_temperature,
                steps=self._steps(self.teacher_temperature_warmup_epochs),
            ),
            patch_masking=step >= self._steps(self.patch_masking_start_epoch),
        )

    def _steps(self, epochs: float) -> int:
        return round(epochs * self.epoch_steps)


def cosine(
    step: int, start: float, end: float, *, total: int, cut: float = 1.0, warmup: int = 0
) -> float:
    """Return the value at `step`: 0 → `start` in `warmup` steps, then half a cosine to `end`.

    The cosine's n = int(total / cut) − warmup points are end + (start − end)(1 + cos(π i / n)) / 2;
    those from `total` on are never reached: there the value is `end`.
    """
    if step >= total:
        return end
    if step < warmup:
        return ramp(step, 0.0, start, steps=warmup)
    points = int(total / cut) - warmup
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * (step - warmup) / points))


def ramp(step: int, start: float, end: float, *, steps: int) -> float:
    """Return the value at `step` of `steps` equally spaced ones, both ends included; then `end`.

    A ramp of one step is its start, as in `numpy.linspace`.
    """
    if step >= steps:
        return end
    return start + (end - start) * step / max(steps - 1, 1)
