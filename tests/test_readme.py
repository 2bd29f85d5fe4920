"""Every command and every Python snippet of README.md is run: here with tiny sizes, or by CI."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from PIL import Image

from poa_jax import flags as command_line

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What makes the demo's configuration small; its sub-networks keep their names. Masking compiles one
# width instead of all.
TINY = {
    "elastic.width_bounds": "max",
    "train.steps": 2,
    "train.batch_size": 8,
    "heads.prototypes": "8,16",
    "heads.hidden": 16,
    "heads.bottleneck": 8,
    "schedule.epoch_steps": 1,
    "schedule.patch_masking_start_epoch": 1,
    "masks.group": 4,
    "data.local_crops": 1,
}
# The folder's larger images would compile the update once more.
SIZES_OF_DEMO = {"model.image_size": 28, "data.local_size": 14, "eval.resize": 28}
# The published recipe has other sizes, and data that no test has.
PUBLISHED = tiny_run.VALUES | {"elastic.min_width": 32, "elastic.min_depth": 6}
SMALL_SET = ["--config.data.source=arrays:few.npz"]


def flags(values):
    return [f"--config.{key}={value}" for key, value in values.items()]


RUN_HERE = {
    "python train.py --config configs/demo_vit.py --workdir runs/demo": flags(TINY),
    "python eval.py --workdir runs/demo --task knn --subnets all --baselines": SMALL_SET,
    "poa-jax subnets --workdir runs/demo": [],
    "poa-jax extract --workdir runs/demo --subnet smallest,intact": [],
    "poa-jax data check photos/train": [],
    "poa-jax data preview --config configs/demo_vit.py --config.data.source=folder:photos": [
        "--images",
        "2",
    ],
    "python train.py --config configs/demo_vit.py --workdir runs/mine "
    "--config.data.source=folder:photos --config.model.image_size=56 "
    "--config.data.local_size=28 --config.eval.resize=64": flags(TINY | SIZES_OF_DEMO),
    "python eval.py --workdir runs/mine --task knn --subnets all": ["--subnets", "smallest"],
    "python train.py --config configs/vit_l16_imagenet.py --workdir runs/vit_l16": [
        *flags(PUBLISHED),
        *SMALL_SET,
    ],
}
RUN_BY_CI = {
    "make demo": "make demo",
    "make test": "make lint test",
    "make demo FAMILY=swin WORKDIR=runs/demo_swin": "make demo FAMILY=$family",
    "make demo FAMILY=resnet WORKDIR=runs/demo_resnet": "make demo FAMILY=$family",
    "pip install '.[tpu]'": "'.[tpu]'",
    "pip install '.[cuda]'": "'.[cuda]'",
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with what the commands name: the scripts, the configurations, some images."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "eval.py", "configs"):
        (folder / name).symlink_to(ROOT / name)
    tiny_run.write_images(folder / "few.npz")
    for split, count in (("train", 16), ("test", 4)):
        pixels, labels = tiny_run.arrays(count)
        for i, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            place = folder / "photos" / split / f"class {label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{i}.png")
    return folder


# Runs command lines one after another in one process, which saves importing JAX for each.
DRIVER = """
import json, runpy, sys
from poa_jax import cli
for argv in json.load(open(sys.argv[1])):
    print(json.dumps(argv), flush=True)
    sys.argv = argv[1:] if argv[0] == "python" else argv
    if argv[0] == "python":
        runpy.run_path(argv[1], run_name="__main__")
    else:
        cli.main(argv[1:])
"""


def run_all(lines, folder):
    """Run commands as their users do, on one device; returns what each printed."""
    (folder / "commands.json").write_text(json.dumps(lines))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "commands.json"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",  # compiles faster
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    found, printed = [], done.stdout
    for line in lines:
        before, _, printed = printed.partition(json.dumps(line) + "\n")
        found.append(before)
    return [*found[1:], printed]


@pytest.fixture(scope="module")
def outputs(clone):
    """What the commands of the README print, its snippet, and its first command again."""
    commands = [command for command in COMMANDS if command in RUN_HERE]
    lines = [[*shlex.split(command), *RUN_HERE[command]] for command in commands]
    (snippet,) = blocks("python")
    (clone / "snippet.py").write_text(snippet)
    printed = run_all([*lines, ["python", "snippet.py"], lines[0]], clone)
    return dict(zip([*commands, "snippet", "again"], printed, strict=True))


def test_every_command_of_the_readme_is_run_here_or_by_ci():
    assert sorted(COMMANDS) == sorted([*RUN_HERE, *RUN_BY_CI])
    ci = (ROOT / ".ci" / "run").read_text()
    for command, there in RUN_BY_CI.items():
        assert there in ci, command


@pytest.mark.parametrize("command", [c for c in COMMANDS if "train.py" in c])
def test_the_values_in_a_command_fit_each_other(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = shlex.split(command)[2:]
    found = command_line.parse(argv, program="train.py", description="")
    assert found.config.train.steps > 2
    if "photos" in command:
        assert found.config.model.image_size == 56


def test_the_commands_do_what_the_readme_says(outputs, clone):
    demo = "python train.py --config configs/demo_vit.py --workdir runs/demo"
    assert "finished step 2; the run is in runs/demo" in outputs[demo]
    # Again, as `make demo` does after an interruption: nothing is left to do, and that is no error.
    assert "finished step 2" in outputs["again"]
    subnets = outputs["poa-jax subnets --workdir runs/demo"].splitlines()[1:]
    table = outputs["python eval.py --workdir runs/demo --task knn --subnets all --baselines"]
    for line in subnets:
        assert f"| {line.split()[0]} |" in table
    for name in (subnets[0].split()[0], subnets[-1].split()[0]):
        assert (clone / "runs" / "demo" / "subnets" / name / "weights.npz").is_file()
    assert "16 images, 16 readable, 0 not" in outputs["poa-jax data check photos/train"]
    assert (clone / "preview" / "preview-00.png").is_file()
    assert (clone / "runs" / "mine" / "eval" / "knn.json").is_file()
    assert (clone / "runs" / "vit_l16" / "checkpoints" / "2").is_dir()


def test_the_python_of_the_readme_runs(outputs):
    first, second = outputs["snippet"].splitlines()
    names = [
        line.split()[0] for line in outputs["poa-jax subnets --workdir runs/demo"].splitlines()
    ]
    assert first == f"{len(names) - 1} networks, from {names[1]} to {names[-1]}"
    assert second.startswith(names[1])


def test_names_and_files_in_the_text_exist(outputs):
    for name in re.findall(r"`(w\d+-d\d+)`", README) + re.findall(r'"(w\d+-d\d+)"', README):
        assert name in outputs["poa-jax subnets --workdir runs/demo"], name
    tree = README.partition("## Where things are")[2].partition("```")[2].partition("```")[0]
    for line in tree.strip().splitlines():
        inside = "poa_jax" if line.startswith("  ") else "."
        for name in re.split(r"\s{2,}", line.strip())[: 2 if line.startswith("train") else 1]:
            assert (ROOT / inside / name).exists(), name


def test_the_readme_shows_the_table_and_the_picture_of_a_demo():
    shown = README.partition("<!-- demo")[2].partition("<!-- end of demo -->")[0]
    rows = re.findall(r"^\| w\d+-d\d+ \|.*\|$", shown, re.MULTILINE)
    assert len(rows) >= 2
    assert all(row.count("%") == 3 for row in rows)
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", shown)
    with Image.open(ROOT / picture) as image:
        assert np.asarray(image.convert("L")).std() > 5


@pytest.fixture(scope="module")
def update_readme():
    spec = importlib.util.spec_from_file_location("update", ROOT / "scripts" / "update_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_readme_replaces_what_is_between_the_markers(update_readme, tmp_path, monkeypatch):
    for name in ("knn.md", "knn.png"):
        (tmp_path / "run" / "eval").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "eval" / name).write_text(f"content of {name}\n")
    (tmp_path / "run" / "eval" / "knn.json").write_text(
        '{"checkpoint": {"step": 9}, "data": {"queries": {"images": 4}, "bank": {"images": 16}}}'
    )
    page = f"before\n{update_readme.START}\nold\n{update_readme.END}\nafter\n"
    (tmp_path / "README.md").write_text(page)
    monkeypatch.setattr(update_readme, "ROOT", tmp_path)
    update_readme.main(tmp_path / "run")
    found = (tmp_path / "README.md").read_text()
    assert found.startswith(f"before\n{update_readme.START}\nAfter 9 steps: 4 test images")
    assert found.endswith(f"(docs/demo.png)\n{update_readme.END}\nafter\n")
    assert "content of knn.md" in found
    assert "old" not in found
    assert (tmp_path / "docs" / "demo.png").read_text() == "content of knn.png\n"
    with pytest.raises(SystemExit, match="run `make demo` first"):
        update_readme.main(tmp_path)
