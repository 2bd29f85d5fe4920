"""Put the table and the picture of a finished demo into README.md: `make readme`.

The text between the two markers is replaced; the picture goes to docs/demo.png.
"""

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- demo: written by make readme -->", "<!-- end of demo -->"


def section(evaluation: Path) -> str:
    """Return the Markdown that shows an evaluation: a sentence, the table, the picture."""
    found = json.loads((evaluation / "knn.json").read_text(encoding="utf-8"))
    data = found["data"]
    return (
        f"After {found['checkpoint']['step']} steps: {data['queries']['images']} test images, each "
        f"classified by its nearest neighbours among {data['bank']['images']} training images.\n\n"
        f"{(evaluation / 'knn.md').read_text(encoding='utf-8')}\n"
        "![k-NN accuracy over multiply-adds for every sub-network](docs/demo.png)\n"
    )


def replace_section(readme: str, text: str) -> str:
    """Return `readme` with `text` between its markers; ValueError if it has no such pair."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md has no lines {START} and {END}")
    return f"{before}{START}\n{text}{END}{after}"


def main(workdir: str) -> None:
    """Rewrite README.md and docs/demo.png from the evaluation in `workdir`."""
    evaluation = Path(workdir) / "eval"
    for name in ("knn.json", "knn.md", "knn.png"):
        if not (evaluation / name).is_file():
            raise SystemExit(f"error: no {evaluation / name}; run `make demo` first")
    readme = ROOT / "README.md"
    text = replace_section(readme.read_text(encoding="utf-8"), section(evaluation))
    (ROOT / "docs").mkdir(exist_ok=True)
    shutil.copyfile(evaluation / "knn.png", ROOT / "docs" / "demo.png")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
