"""The benchmarks' work is what they say it is, and their JSON says where it came from."""

import json
import sys

import pytest

from benchmarks import record, step
from poa_jax import config_check
from poa_jax.models import build


@pytest.mark.parametrize("bounds", list(step.BOUNDS.values()))
def test_the_step_benchmark_times_the_stated_work(bounds):
    config = step.work(bounds, drop_path=0.0, remat="lean")
    config_check.check(config)
    space = build.space(config)
    assert all(any(s.width == w and s.depths == (d,) for s in space) for w, d in step.NETWORKS)
    assert space.intact.width == 384
    assert space.intact.depths == (12,)
    batch = step.random_batch(config)
    assert batch["global_crops"].shape == (8, 2, 64, 64, 3)
    assert batch["local_crops"].shape == (8, 4, 32, 32, 3)
    assert batch["masks"].shape == (8, 2, 64)
    assert batch["masks"].any()


def test_a_benchmark_file_names_machine_versions_and_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step", "--rounds", "1"])
    record.write(tmp_path / "b.json", [{"network": "all", "median_s": 1.0}], "step")
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["command"] == "python -m benchmarks.step --rounds 1"
    assert found["results"] == [{"network": "all", "median_s": 1.0}]
    assert found["machine"]["cores"] >= 1
    assert {"jax", "jaxlib", "numpy", "python"} <= set(found["versions"])
    assert "b.json" in capsys.readouterr().out
    assert record.peak_memory_mib() > 10
