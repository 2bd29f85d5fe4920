"""What every benchmark writes beside its numbers: machine, versions, command."""

import json
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """Say what the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    devices = sorted({d.device_kind for d in jax.devices()})
    return {"cpu": cpu, "cores": os.cpu_count(), "devices": devices, "system": platform.system()}


def peak_memory_mib() -> float:
    """Return the most memory this process ever had resident, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def write(path: str | os.PathLike | None, results: Sequence[Mapping[str, Any]], name: str) -> None:
    """Write `results` (flat records) as JSON, if a path was given."""
    if path is None:
        return
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    record = {
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "command": " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]]),
        "results": list(results),
    }
    Path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")
