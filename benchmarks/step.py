"""Time of one whole update on a fixed piece of work: `python -m benchmarks.step [--json FILE]`.

Teacher, intact and elastic student, optimiser and moving average, float32: ViT width 192..384,
depth 6..12, head size 64, images of 64 pixels, patch 8, 4 local crops of 32, batch 8, two heads of
1024 and 2048 prototypes (hidden 2048, bottleneck 256), patch loss on, for a fixed sequence of
sub-networks; once with exact slicing (a width bound each) and once with pure masking. Each way
runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import record
from poa_jax.config import default
from poa_jax.elastic.space import Subnet
from poa_jax.models import build
from poa_jax.pretraining import loop, parallel
from poa_jax.pretraining.host_memory import keep_freed_memory
from poa_jax.pretraining.schedules import Hyper
from poa_jax.pretraining.state import init_state, make_draw, stack_draws

NETWORKS = (
    (192, 6), (256, 12), (256, 7), (256, 6), (192, 9), (384, 7),
    (320, 7), (192, 9), (320, 11), (256, 11), (320, 10), (320, 12),
)  # fmt: skip
BOUNDS = {"sliced": "each", "masked": "max"}


def work(bounds: str, drop_path: float, remat: str):
    """Return the configuration of the work."""
    c = default()
    c.model.image_size, c.model.patch_size = 64, 8
    c.model.width, c.model.depth, c.model.head_dim = 384, 12, 64
    c.model.drop_path, c.model.remat = drop_path, remat
    c.elastic.min_width, c.elastic.width_step, c.elastic.min_depth = 192, 64, 6
    c.elastic.width_bounds = bounds
    c.heads.prototypes = (1024, 2048)
    c.data.local_size, c.data.local_crops = 32, 4
    c.train.batch_size, c.masks.group = 8, 8
    return c


def random_batch(config, seed: int = 0) -> dict[str, np.ndarray]:
    """Return uint8 noise of the right shapes, with masks as the pipeline draws them."""
    from poa_jax.data.masking import MaskRecipe, group_masks

    rng = np.random.default_rng(seed)
    b, s, n = config.train.batch_size, config.model.image_size, config.data.local_crops
    m = MaskRecipe.from_config(config)
    masks = group_masks(rng, 2 * b, m.grid, m.probability, m.ratio)
    local = (b, n, config.data.local_size, config.data.local_size, 3)
    return {
        "global_crops": rng.integers(0, 256, (b, 2, s, s, 3), np.uint8),
        "local_crops": rng.integers(0, 256, local, np.uint8),
        "masks": masks.reshape(b, 2, -1),
    }


def measure(way: str, rounds: int, drop_path: float, remat: str) -> list[dict[str, Any]]:
    """Time every network `rounds` times, in turn; return one record each and a summary."""
    keep_freed_memory()
    config = work(BOUNDS[way], drop_path, remat)
    space = build.space(config)
    mesh = parallel.make_mesh(1)
    recipe = loop.make_recipe(config, 1, space)
    make = jax.jit(lambda: init_state(recipe.backbone, recipe.heads, 64, 0))
    state = parallel.replicated(mesh, make())
    step = loop.compile_update(config, recipe, state.params, mesh)
    numbers = loop.as_arrays(Hyper(1e-4, 1e-4, 0.04, 0.996, 0.05, True))
    batch = parallel.sharded(mesh, random_batch(config))
    key = jax.random.key(0)
    draws = {
        net: parallel.sharded(
            mesh,
            stack_draws([make_draw(Subnet(net[0], (net[1],)), recipe.bounds, (12,))]),
        )
        for net in NETWORKS
    }
    start = time.perf_counter()
    compiled = step.lower(state, batch, draws[NETWORKS[0]], numbers, key).compile()
    compile_s = time.perf_counter() - start
    state, metrics = compiled(state, batch, draws[NETWORKS[0]], numbers, key)
    jax.block_until_ready(metrics)
    times: list[list[float]] = [[] for _ in NETWORKS]
    cpu_times: list[list[float]] = [[] for _ in NETWORKS]
    for _ in range(rounds):
        for i, net in enumerate(NETWORKS):
            start, cpu = time.perf_counter(), time.process_time()
            state, metrics = compiled(state, batch, draws[net], numbers, key)
            jax.block_until_ready((state, metrics))
            times[i].append(time.perf_counter() - start)
            cpu_times[i].append(time.process_time() - cpu)
    common = {"way": way, "drop_path": drop_path, "remat": remat, "rounds": rounds}
    records = [
        common | {"network": str(Subnet(w, (d,)))} | _statistics(t, cpu)
        for (w, d), t, cpu in zip(NETWORKS, times, cpu_times, strict=True)
    ]
    summary = {
        "network": "all",
        **_statistics([x for t in times for x in t], [x for t in cpu_times for x in t]),
        "compile_s": compile_s,
        "peak_memory_mib": record.peak_memory_mib(),
        "temporary_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }
    return [*records, common | summary]


def _statistics(seconds: list[float], cpu_seconds: list[float]) -> dict[str, float]:
    """Wall clock, and processor time over all cores, which a busy neighbour disturbs less."""
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "cpu_s": statistics.median(cpu_seconds),
    }


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times each network is run")
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--remat", default="lean", help="see poa_jax.models.remat")
    parser.add_argument("--ways", nargs="+", choices=sorted(BOUNDS), default=["sliced", "masked"])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--one", choices=sorted(BOUNDS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        found = measure(options.one, options.rounds, options.drop_path, options.remat)
        print(json.dumps(found))
        return
    results = []
    for way in options.ways:
        command = [sys.executable, "-m", "benchmarks.step", "--one", way]
        command += ["--rounds", str(options.rounds), "--drop-path", str(options.drop_path)]
        command += ["--remat", options.remat]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        show(found)
        results += found
    record.write(options.json, results, "step")


def show(records: list[dict[str, Any]]) -> None:
    """Print the table of one way."""
    print(f"{records[0]['way']}, drop path {records[0]['drop_path']}, remat {records[0]['remat']}")
    for r in records:
        print(
            f"  {r['network']:>8}  median {r['median_s']:.3f} s  min {r['min_s']:.3f} s  "
            f"cpu {r['cpu_s']:.3f} s"
        )
    last = records[-1]
    print(
        f"  compile {last['compile_s']:.1f} s, peak memory {last['peak_memory_mib']:.0f} MiB, "
        f"temporaries {last['temporary_mib']:.0f} MiB"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
