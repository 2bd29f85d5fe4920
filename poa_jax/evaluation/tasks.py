"""What `eval.py` can be asked for, and what it may change of a run's configuration."""

import ml_collections

from poa_jax import config as configs
from poa_jax import errors

TASKS = ("knn",)
FREE = ("eval.", "data.source", "data.workers", "data.prefetch", "data.max_bad_fraction")


def check(task: str) -> None:
    """Raise ValueError for a task that does not exist; names the nearest."""
    if task not in TASKS:
        raise ValueError(errors.unknown("task", task, TASKS))


def check_overrides(config: ml_collections.ConfigDict, of_run: ml_collections.ConfigDict) -> None:
    """Raise ValueError if `config` differs from that of the run in what the run has fixed."""
    ran = dict(configs.leaves(of_run.to_dict()))
    for key, value in configs.leaves(config.to_dict()):
        if value != ran[key] and not key.startswith(FREE):
            raise ValueError(
                f"{key} is {ran[key]} in this run and cannot be {value} here; an evaluation can "
                "change eval.* and data.source"
            )
