"""Images/s of the input pipeline: `python -m benchmarks.input_pipeline [--json FILE]`.

On generated JPEGs of 500 × 375 pixels, 2 crops of 224 and 8 of 96, batches of 16: the three values
of data.placement, beside the official recipe in torchvision with a torch DataLoader (extra
`bench`), in alternating rounds in one run. Everything is kept on --cores processor cores.

A rate is that of a run's later batches: the first ones were made while nobody waited for them.
`cpu_ms` is the processor time of one image in one thread, which a busy neighbour disturbs less.
Further tables: how far crops are from Pillow's antialiased bicubic; the time to open a folder of
10 000 files; the memory of the process over 2000 batches.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks import record, torchvision_reference
from poa_jax.config import default
from poa_jax.data import crops, resize
from poa_jax.data.crops import CropRecipe
from poa_jax.data.pipeline import TrainPipeline
from poa_jax.data.sources import ArraySource, open_source
from poa_jax.host_memory import keep_freed_memory

WIDTH, HEIGHT, QUALITY = 500, 375, 94
BATCH = 16
ACCELERATOR = 1000  # images/s that a training step may want
REFERENCE = "torchvision"
WAYS = (
    "host, processes",
    "host, threads",
    "host, processes, exact resize",
    "split, host part, processes",
    "split, with the device",
    "resident, with the device",
)


def picture(seed: int) -> np.ndarray:
    """Return a picture of noise whose octaves are about as strong as in photographs."""
    rng = np.random.default_rng(seed)
    total = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for n in (3, 6, 12, 24, 48, 96, 192):
        grid = rng.normal(size=(n, n * WIDTH // HEIGHT, 3)).astype(np.float32)
        total += cv2.resize(grid, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) * 60 / n**0.55
    total += rng.normal(0, 8, total.shape)  # the grain of a sensor
    return total.clip(0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Write so many JPEGs into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(picture(i)).save(path, quality=QUALITY)
    return paths


def settings(**data: Any) -> Any:
    """Return the recipe of the paper (blur 1.0, 0.1, 0.5), with changed `data.*` keys."""
    c = default()
    c.train.batch_size, c.data.prefetch = BATCH, 4
    c.data.update(data)
    return c


def host_batches(source: Any, config: Any, count: int) -> Iterator[Any]:
    """Yield batches of the pipeline, as they leave the host."""
    yield from TrainPipeline.from_config(config, source).iterate(0, count)


def device_batches(source: Any, config: Any, count: int) -> Iterator[Any]:
    """Yield batches when their crops are in the device's memory, ready for a network."""
    import jax

    from poa_jax.data import placement
    from poa_jax.data.feed import Feed

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = placement.cutter(config, source, mesh, "data")
    finish = jax.jit(placement.device_part(config))
    steps = TrainPipeline.from_config(config, source).iterate(0, count)
    made = None
    with Feed(steps, lambda batch: cut(jax.device_put(batch))) as feed:
        while (item := feed.take()) is not None:
            made, before = finish(item[1]), made
            if before is not None:  # one batch behind, so that host and device work side by side
                yield jax.block_until_ready(before)
        yield jax.block_until_ready(made)


def rate(batches: Iterator[Any], skip: int) -> float:
    """Return images/s after the first `skip` batches."""
    for _ in itertools.islice(batches, skip):
        pass
    start, count = time.perf_counter(), 0
    for _ in batches:
        count += 1
    return count * BATCH / (time.perf_counter() - start)


def ways(folder: Path, workers: int) -> dict[str, Callable]:
    """Return {name: function of a number of batches that yields them}."""
    source = open_source(f"folder:{folder}")
    in_memory = ArraySource(np.stack([source[i][0] for i in range(min(len(source), 64))]))

    def ours(make, of=source, **data):
        return lambda count: make(of, settings(workers=workers, **data), count)

    process = {"worker_kind": "process"}
    made = (
        ours(host_batches, **process),
        ours(host_batches),
        ours(host_batches, **process, resize="exact"),
        ours(host_batches, **process, placement="split"),
        ours(device_batches, **process, placement="split"),
        ours(device_batches, in_memory, placement="resident"),
    )
    return dict(zip(WAYS, made, strict=True))


def torchvision_rate(folder: Path, workers: int, batches: int, skip: int) -> float:
    """Return the reference's images/s, measured in a process without JAX."""
    command = [sys.executable, "-m", "benchmarks.torchvision_reference", str(folder)]
    command += ["--workers", str(workers), "--batches", str(batches), "--skip", str(skip)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def measure_rates(options: argparse.Namespace, folder: Path) -> list[dict]:
    """Run every way in turn, `--rounds` times; returns a record for each."""
    chosen = ways(folder, options.workers)
    if _has_torch():
        chosen = {REFERENCE: None} | chosen
    chosen = {name: make for name, make in chosen.items() if name.startswith(tuple(options.ways))}
    slow = {"split, with the device", "resident, with the device"}
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(options.rounds):
        for name, batches in chosen.items():
            count = options.batches // (4 if name in slow else 1)
            skip = max(2, min(8, count // 4))
            if name == REFERENCE:
                found = torchvision_rate(folder, options.workers, count, skip)
            else:
                found = rate(batches(count + skip), skip)
            rates[name].append(found)
    reference = statistics.median(rates[REFERENCE]) if REFERENCE in rates else None
    return [
        {
            "table": "rate",
            "way": name,
            "images_per_s": (middle := statistics.median(values)),
            "least": min(values),
            "most": max(values),
            "times_torchvision": middle / reference if reference else None,
            "images_per_s_and_core": middle / options.cores,
            "cores_for_accelerator": ACCELERATOR / (middle / options.cores),
        }
        for name, values in rates.items()
    ]


def measure_cpu(paths: list[Path], rounds: int) -> list[dict]:
    """Return the processor time of one image in one thread, ways in turn."""
    config, source = settings(), open_source(f"folder:{paths[0].parent}")
    exact = CropRecipe.from_config(settings(resize="exact"))
    fast = CropRecipe.from_config(config)

    def host(recipe, colours):
        return lambda i: crops.make_crops(np.random.default_rng(i), source[i][0], recipe, colours)

    chosen = {
        "decode": lambda i: source[i],
        "host": host(fast, True),
        "host, exact resize": host(exact, True),
        "split, host part": host(fast, False),
    }
    if _has_torch():
        torch, _ = torchvision_reference.import_torchvision()
        torch.set_num_threads(1)
        chosen["torchvision"] = torchvision_reference.Crops(paths, fast).__getitem__
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for i in range(-1, min(len(paths) - 1, 20 * rounds)):
        for name, make in chosen.items():
            start = time.process_time()
            make(abs(i))
            if i >= 0:  # the first one fills tables
                times[name].append(time.process_time() - start)
    mean = {name: statistics.mean(values) for name, values in times.items()}
    reference = mean.get("torchvision")
    return [
        {
            "table": "cpu",
            "way": name,
            "cpu_ms": 1e3 * value,
            "times_torchvision": reference / value if reference else None,
        }
        for name, value in mean.items()
    ]


def measure_error(paths: list[Path]) -> list[dict]:
    """Return the mean difference from Pillow's antialiased bicubic, in grey levels of 255."""
    recipe = CropRecipe.from_config(settings())
    own = {"fast": lambda box, size: resize.cut(box, 0, 0, *box.shape[:2], size, "fast")}
    others = {"area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC, "linear": cv2.INTER_LINEAR}
    for name, how in others.items():
        own[f"OpenCV {name}"] = lambda box, size, how=how: cv2.resize(
            box, (size, size), interpolation=how
        )
    errors: dict[tuple[str, int], list[float]] = {}
    for i, path in enumerate(paths[:40]):
        image = np.asarray(Image.open(path))
        for view in crops.draw_views(np.random.default_rng(i), recipe, HEIGHT, WIDTH):
            box = image[view.top : view.top + view.height, view.left : view.left + view.width]
            exact = resize.cut(box, 0, 0, *box.shape[:2], view.size).astype(np.float32)
            for name, make in own.items():
                difference = np.abs(make(box, view.size) - exact).mean()
                errors.setdefault((name, view.size), []).append(float(difference))
    return [
        {"table": "error", "way": name, "size": size, "mean_error": statistics.mean(values)}
        for (name, size), values in errors.items()
    ]


def measure_start(folder: Path, files: int = 10_000) -> dict:
    """Return the seconds to open a folder of so many (tiny) files and to fingerprint it."""
    for i in range(files):
        path = folder / f"class{i % 100:03}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (i % 7))
    start = time.perf_counter()
    source = open_source(f"folder:{folder}")
    print_once = source.fingerprint
    seconds = time.perf_counter() - start
    return {"table": "start", "files": len(source), "seconds": seconds, "fingerprint": print_once}


def measure_memory(paths: list[Path], batches: int) -> list[dict]:
    """Return the resident memory after parts of a run of so many small batches, in MB."""
    c = settings(workers=2, local_size=32, local_crops=2)
    c.model.image_size, c.train.batch_size, c.masks.group = 64, 4, 4
    source = open_source(f"folder:{paths[0].parent}")
    at = sorted({batches // 10, batches // 4, batches // 2, batches})
    found = []
    for step, _, _ in TrainPipeline.from_config(c, source).iterate(0, batches):
        if step + 1 in at:
            found.append({"table": "memory", "batches": step + 1, "mb": _resident_mb()})
    return found


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _has_torch() -> bool:
    try:
        torchvision_reference.import_torchvision()
    except ImportError:
        return False
    return True


def print_tables(results: list[dict], cores: int) -> None:
    """Print what was measured, a table for each question."""
    of = {name: [r for r in results if r["table"] == name] for name in TABLES}
    if of["rate"]:
        print(f"\n{cores} cores, images/s (least to most of the rounds)")
    for r in of["rate"]:
        times = f"{r['times_torchvision']:5.2f} × torchvision" if r["times_torchvision"] else ""
        print(
            f"  {r['way']:32}{r['images_per_s']:8.1f} ({r['least']:.1f} to {r['most']:.1f}) {times}"
            f"  {r['images_per_s_and_core']:6.1f} a core;"
            f" {r['cores_for_accelerator']:5.1f} cores for {ACCELERATOR} images/s"
        )
    if of["cpu"]:
        print("\nprocessor time of one image in one thread")
    for r in of["cpu"]:
        times = f"{r['times_torchvision']:5.2f} × torchvision" if r["times_torchvision"] else ""
        print(f"  {r['way']:32}{r['cpu_ms']:8.2f} ms {times}")
    if of["error"]:
        print("\nmean difference from Pillow's antialiased bicubic, of 255")
    for r in of["error"]:
        print(f"  {r['way']:32}{r['size']:5} pixels {r['mean_error']:6.2f}")
    for r in of["start"]:
        print(f"\na folder of {r['files']:,} files opens in {r['seconds']:.2f} s")
    if of["memory"]:
        steps = ", ".join(f"{r['mb']:.0f} MB after {r['batches']:,}" for r in of["memory"])
        print(f"\nmemory of the process over batches: {steps}")


TABLES = ("rate", "cpu", "error", "start", "memory")


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=400, help="JPEGs to generate")
    parser.add_argument("--rounds", type=int, default=3, help="times each way is run")
    parser.add_argument("--batches", type=int, default=40, help=f"of {BATCH} images, in a run")
    parser.add_argument("--memory-batches", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2, help="that everything shares")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=[""],
        metavar="START",
        help="of the names in the table of rates",
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(argv)
    for start in options.ways:
        if not any(name.startswith(start) for name in (REFERENCE, *WAYS)):
            parser.error(f"no way starts with {start!r}; there are: {'; '.join(WAYS)}")
    keep_freed_memory()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    cv2.setNumThreads(1)
    if not _has_torch() and {"rate", "cpu"} & set(options.tables):
        print(
            "torch and torchvision are not installed, so nothing is compared with them; install "
            "the extra: pip install 'poa_jax[bench]'"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        paths = write_pictures(folder, options.images)
        size = statistics.mean(path.stat().st_size for path in paths)
        print(f"{len(paths)} JPEGs of {WIDTH} × {HEIGHT}, {size / 1e3:.0f} kB each")
        results: list[dict] = []
        if "rate" in options.tables:
            results += measure_rates(options, folder)
        if "cpu" in options.tables:
            results += measure_cpu(paths, options.rounds)
        if "error" in options.tables:
            results += measure_error(paths)
        if "start" in options.tables:
            results.append(measure_start(Path(temporary) / "many"))
        if "memory" in options.tables:
            results += measure_memory(paths, options.memory_batches)
    print_tables(results, options.cores)
    if options.json:
        record.write(options.json, results, "input_pipeline")


if __name__ == "__main__":
    main(sys.argv[1:])
