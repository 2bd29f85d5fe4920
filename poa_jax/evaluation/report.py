"""An evaluation as people read it: a table in Markdown, and accuracy over cost as a picture."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Report = Mapping[str, Any]


def table(report: Report) -> str:
    """Return the k-NN results as a Markdown table, smallest network first."""
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

    Each file appears whole or not at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {".json": json.dumps(report, indent=2), ".md": table(report)}
    paths = []
    for suffix, text in texts.items():
        path = folder / f"{name}{suffix}"
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, path)
        paths.append(path)
    picture = folder / f"{name}.png"
    if draw(report, picture):
        paths.append(picture)
    return paths


def draw(report: Report, path: Path) -> bool:
    """Draw accuracy over MACs, a line for each width; False where matplotlib is missing."""
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
    axes.set_xlabel("multiply-adds for one image (millions)")
    axes.set_ylabel("k-NN accuracy (%)")
    axes.set_title(f"{len(results)} sub-networks of one run, step {report['step']}")
    axes.grid(alpha=0.3)
    axes.legend()
    unfinished = path.with_name(path.name + ".unfinished")
    figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)
    return True
