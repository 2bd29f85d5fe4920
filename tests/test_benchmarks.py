"""The benchmarks' work is what they say it is, and their JSON says where it came from."""

import json
import sys

import pytest

from benchmarks import input_pipeline, record, step
from poa_jax import config_check
from poa_jax.models import build
from poa_jax.pretraining import loop


@pytest.mark.parametrize("bounds", list(step.BOUNDS.values()))
@pytest.mark.parametrize("family", step.NETWORKS)
def test_the_step_benchmark_times_the_stated_work(family, bounds):
    config = step.work(family, bounds, drop_path=0.0, remat="lean")
    config_check.check(config)
    space = build.space(config)
    nets = [space.parse(name) for name in step.NETWORKS[family]]
    if family == "vit":
        assert str(space.intact) == "w384-d12"
        masks = (8, 2, 64)
    else:
        assert (nets[0], nets[-1]) == (space.smallest, space.intact)
        masks = (8, 2, 16)
    macs = [step.update_macs(config, loop.make_recipe(config, 1, space), net) for net in nets]
    assert max(macs) > macs[0] == min(macs)
    batch = step.random_batch(config)
    assert batch["global_crops"].shape == (8, 2, 64, 64, 3)
    assert batch["local_crops"].shape == (8, 4, 32, 32, 3)
    assert batch["masks"].shape == masks
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


def test_the_input_benchmark_measures_on_pictures_it_makes(capsys, monkeypatch):
    monkeypatch.setattr(input_pipeline, "_has_torch", lambda: False)
    monkeypatch.setattr(input_pipeline, "measure_start", lambda _: pytest.fail("not asked for"))
    monkeypatch.setattr(input_pipeline, "BATCH", 8)
    monkeypatch.setattr(input_pipeline.os, "sched_setaffinity", lambda *_: None, raising=False)
    options = ["--images", "2", "--rounds", "1", "--batches", "2", "--memory-batches", "4"]
    ways = ["--ways", "host, threads", "--tables", "rate", "error", "memory"]
    input_pipeline.main([*options, *ways])
    out = capsys.readouterr().out
    assert "install the extra: pip install 'poa_jax[bench]'" in out
    assert "2 JPEGs of 500 × 375" in out
    assert "  host, threads  " in out
    assert "  fast  " in out
    assert "MB after 4" in out
    assert "torchvision  " not in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--tables", "speed"], "invalid choice: 'speed'"),
        (["--ways", "nonsense"], "no way starts with 'nonsense'; there are: host, processes;"),
    ],
)
def test_the_input_benchmark_refuses_what_it_does_not_have(argv, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        input_pipeline.main(argv)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err
