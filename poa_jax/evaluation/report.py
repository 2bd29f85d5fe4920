"""An evaluation as people read it: a table in Markdown, and accuracy over cost as a picture."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Report = Mapping[str, Any]


def table(report: Report) -> str:
    """Return the k-NN results as a Markdown table, in the order of the report."""
    baselines = "pixels" in report
    header = ["network", "parameters", "MACs", "k-NN", "k"]
    header += ["k-NN, untrained", "k-NN, raw pixels"] if baselines else []
    lines = [f"| {' | '.join(header)} |", f"|---{'|---:' * (len(header) - 1)}|"]
    for r in report["results"]:
        cells = [r["name"], f"{r['params']:,}", f"{r['macs']:,}"]
        cells += [f"{100 * r['knn']:.1f} %", str(r["best_k"])]
        if baselines:
            cells += [f"{100 * r['untrained']:.1f} %", f"{100 * report['pixels']:.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(report: Report, folder: str | os.PathLike, name: str = "knn") -> list[Path]:
    """Write `<name>.json` and `<name>.md`, and `<name>.png` where matplotlib is installed.

    Each file appears whole or not at all. Without matplotlib an older picture is removed, because
    it would show other numbers than the table beside it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {".json": json.dumps(report, indent=2, allow_nan=False), ".md": table(report)}
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"{name}{suffix}")
        _write_whole(paths[-1], lambda file, text=text: file.write_bytes(f"{text}\n".encode()))
    picture = folder / f"{name}.png"
    if draw(report, picture):
        paths.append(picture)
    else:
        picture.unlink(missing_ok=True)
    return paths


def draw(report: Report, path: Path) -> bool:
    """Draw accuracy over MACs as a PNG, a line a width; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    results = report["results"]
    for width in sorted({r["width"] for r in results}):
        rows = [r for r in results if r["width"] == width]
        macs = [r["macs"] / 1e6 for r in rows]
        (line,) = axes.plot(macs, [100 * r["knn"] for r in rows], "o-", label=f"width {width}")
        if "pixels" in report:
            untrained = [100 * r["untrained"] for r in rows]
            axes.plot(macs, untrained, "x:", color=line.get_color(), alpha=0.6)
    if "pixels" in report:
        axes.axhline(100 * report["pixels"], color="gray", linestyle="--", label="raw pixels")
        axes.plot([], [], "x:", color="gray", label="untrained")
    step = report["checkpoint"]["step"]
    axes.set_xlabel("multiply-adds for one image (millions)")
    axes.set_ylabel("k-NN accuracy (%)")
    axes.set_title(f"{len(results)} networks cut out of one run, step {step}")
    axes.grid(alpha=0.3)
    axes.legend()
    _write_whole(path, lambda file: figure.savefig(file, format="png"))
    return True


def _write_whole(path: Path, write_file: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename; a failure leaves what was there before."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        write_file(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
