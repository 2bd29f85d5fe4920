"""Time of one whole update on a fixed piece of work: `python -m benchmarks.step [--family NAME]`.

Teacher, intact and elastic student, optimiser and moving average, float32, patch loss on, images of
64 pixels, 4 local crops of 32, batch 8, two heads of 1024 and 2048 prototypes (hidden 2048,
bottleneck 256), for a fixed sequence of sub-networks; once with exact slicing (a width bound each)
and once with pure masking. Each way runs in a process of its own, so its peak memory is its own.

    vit     width 192..384, depth 6..12, head size 64, patch 8; twelve networks, as training draws
    swin    width 32..64, stage 3 of 2..6 blocks, window 4, patch 4; smallest, middle, largest
    resnet  inner width 16..32, stages 2 and 3 of 1..2 and 1..4 blocks; smallest, middle, largest

GMACs are those of the update: teacher forward, both students forward and backward (counted as twice
the forward), all crops, without the heads. The last column is time / GMACs over that of the largest
network in the list: 1 means that time follows arithmetic.
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
from poa_jax.host_memory import keep_freed_memory
from poa_jax.models import build
from poa_jax.pretraining import loop, parallel
from poa_jax.pretraining.schedules import Hyper
from poa_jax.pretraining.state import init_state, make_draw, stack_draws

NETWORKS = {
    "vit": (
        "w192-d6", "w256-d12", "w256-d7", "w256-d6", "w192-d9", "w384-d7",
        "w320-d7", "w192-d9", "w320-d11", "w256-d11", "w320-d10", "w320-d12",
    ),
    "swin": ("w32-d2.2.2.2", "w48-d2.2.4.2", "w64-d2.2.6.2"),
    "resnet": ("w16-d2.1.1.2", "w24-d2.2.2.2", "w32-d2.2.4.2"),
}  # fmt: skip
BOUNDS = {"sliced": "each", "masked": "max"}


def work(family: str, bounds: str, drop_path: float, remat: str):
    """Return the configuration of the work."""
    c = default(family)
    c.model.image_size, c.data.local_size, c.data.local_crops = 64, 32, 4
    c.model.remat = remat
    c.elastic.width_bounds = bounds
    c.heads.prototypes = (1024, 2048)
    c.train.batch_size, c.masks.group = 8, 8
    if family == "vit":
        c.model.patch_size, c.model.width, c.model.depth, c.model.head_dim = 8, 384, 12, 64
        c.elastic.min_width, c.elastic.width_step, c.elastic.min_depth = 192, 64, 6
    elif family == "swin":
        c.model.width, c.model.depths, c.model.window = 64, (2, 2, 6, 2), 4
        c.elastic.min_width, c.elastic.min_depths = 32, (2, 2, 2, 2)
    else:
        c.model.width, c.model.depths, c.model.stem, c.model.groups = 32, (2, 2, 4, 2), 32, 8
        c.elastic.min_width, c.elastic.width_step, c.elastic.min_depths = 16, 8, (2, 1, 1, 2)
    if family != "resnet":
        c.model.drop_path = drop_path
    return c


def update_macs(config, recipe, net: Subnet) -> int:
    """Return the multiply-adds of an update that draws `net`, without those of the heads."""

    def crops(model) -> int:
        sizes = [(2, config.model.image_size), (config.data.local_crops, config.data.local_size)]
        return sum(count * model.cost(size).macs for count, size in sizes)

    whole = recipe.backbone
    teacher = 2 * whole.cost(config.model.image_size).macs
    students = crops(whole) + crops(whole.resized(net.width, net.depths))
    return config.train.batch_size * (teacher + 3 * students)


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


def measure(
    family: str, way: str, rounds: int, drop_path: float, remat: str
) -> list[dict[str, Any]]:
    """Time every network `rounds` times, in turn; return one record each and a summary."""
    keep_freed_memory()
    config = work(family, BOUNDS[way], drop_path, remat)
    space = build.space(config)
    mesh = parallel.make_mesh(1)
    recipe = loop.make_recipe(config, 1, space)
    make = jax.jit(lambda: init_state(recipe.backbone, recipe.heads, config.model.image_size, 0))
    state = parallel.replicated(mesh, make())
    step = loop.compile_update(config, recipe, state.params, mesh)
    numbers = loop.as_arrays(Hyper(1e-4, 1e-4, 0.04, 0.996, 0.05, True))
    batch = parallel.sharded(mesh, random_batch(config))
    key = jax.random.key(0)
    nets = [space.parse(name) for name in NETWORKS[family]]
    depths = recipe.backbone.max_depths
    draws = [
        parallel.sharded(mesh, stack_draws([make_draw(net, recipe.bounds, depths)])) for net in nets
    ]
    start = time.perf_counter()
    compiled = step.lower(state, batch, draws[0], numbers, key).compile()
    compile_s = time.perf_counter() - start
    state, metrics = compiled(state, batch, draws[0], numbers, key)
    jax.block_until_ready(metrics)
    times: list[list[float]] = [[] for _ in nets]
    cpu_times: list[list[float]] = [[] for _ in nets]
    for _ in range(rounds):
        for i, draw in enumerate(draws):
            start, cpu = time.perf_counter(), time.process_time()
            state, metrics = compiled(state, batch, draw, numbers, key)
            jax.block_until_ready((state, metrics))
            times[i].append(time.perf_counter() - start)
            cpu_times[i].append(time.process_time() - cpu)
    drop_path = 0.0 if family == "resnet" else drop_path  # ResNets have none
    common = {"family": family, "way": way, "drop_path": drop_path, "remat": remat}
    common["rounds"] = rounds
    records = [
        common
        | {"network": str(net), "macs": update_macs(config, recipe, net)}
        | _statistics(t, cpu)
        for net, t, cpu in zip(nets, times, cpu_times, strict=True)
    ]
    largest = max(records, key=lambda r: r["macs"])
    for r in records:
        r["time_per_mac"] = r["median_s"] / r["macs"] * largest["macs"] / largest["median_s"]
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
    parser.add_argument("--family", choices=sorted(NETWORKS), default="vit")
    parser.add_argument("--rounds", type=int, default=5, help="times each network is run")
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--remat", default="lean", help="see poa_jax.models.remat")
    parser.add_argument("--ways", nargs="+", choices=sorted(BOUNDS), default=["sliced", "masked"])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--one", choices=sorted(BOUNDS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        found = measure(
            options.family, options.one, options.rounds, options.drop_path, options.remat
        )
        print(json.dumps(found))
        return
    results = []
    for way in options.ways:
        command = [sys.executable, "-m", "benchmarks.step", "--one", way]
        command += ["--rounds", str(options.rounds), "--drop-path", str(options.drop_path)]
        command += ["--remat", options.remat, "--family", options.family]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        show(found)
        results += found
    record.write(options.json, results, "step")


def show(records: list[dict[str, Any]]) -> None:
    """Print the table of one way."""
    first = records[0]
    print(
        f"{first['family']}, {first['way']}, drop path {first['drop_path']}, remat {first['remat']}"
    )
    for r in records:
        ratio = f"{r['macs'] / 1e9:7.2f} GMACs, {r['time_per_mac']:.2f}" if "macs" in r else ""
        print(
            f"  {r['network']:>13}  median {r['median_s']:.3f} s  min {r['min_s']:.3f} s  "
            f"cpu {r['cpu_s']:.3f} s  {ratio}".rstrip()
        )
    last = records[-1]
    print(
        f"  compile {last['compile_s']:.1f} s, peak memory {last['peak_memory_mib']:.0f} MiB, "
        f"temporaries {last['temporary_mib']:.0f} MiB"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
