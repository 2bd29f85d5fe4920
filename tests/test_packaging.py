import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from poa_jax import config
from poa_jax.models import build

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED_BY_MAKE = ("demo", "test")


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirements():
    extras = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(extras[name] for name in INSTALLED_BY_MAKE)]
    return [Requirement(text) for texts in lists for text in texts]


def test_constraints_hold_names_and_versions_and_nothing_else():
    for line in pins():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; python_version .*)?", line), (
            line
        )


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_what_make_installs_is_held_at_a_version_inside_its_range(requirement):
    versions = dict(line.split(" ;")[0].split("==") for line in pins())
    held = {canonicalize_name(name): version for name, version in versions.items()}
    version = held[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version), f"{requirement} but {version}"


def test_the_package_names_its_python_and_its_jax():
    assert PROJECT["requires-python"] == ">=3.11"
    jax = next(r for r in requirements() if r.name == "jax")
    assert {str(part) for part in jax.specifier} == {">=0.10.2", "<0.12"}


def make(*arguments, **variables):
    environment = {**os.environ, **variables}
    # Under `make test` a second make would announce the folders it enters and leaves.
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_demo_trains_extracts_and_evaluates_with_the_flags_it_is_given(tmp_path):
    done = make(
        "-n",
        "demo",
        f"VENV={tmp_path}",
        "DEMO_FLAGS=--config.train.steps=20",
        "EVAL_FLAGS=--subnets intact",
    )
    assert done.returncode == 0, done.stderr
    train, extract, evaluate = done.stdout.splitlines()[-3:]
    assert "train.py --config configs/demo_vit.py --workdir runs/demo" in train
    assert train.endswith("--config.train.steps=20")
    assert "poa-jax extract --workdir runs/demo --subnet" in extract
    assert "eval.py --workdir runs/demo --task knn --subnets all --baselines" in evaluate
    assert evaluate.endswith("--subnets intact")


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_the_demo_cuts_out_three_sizes_that_exist(tmp_path, family):
    done = make("-n", "demo", f"VENV={tmp_path}", f"FAMILY={family}")
    (names,) = re.findall(r"--subnet (\S+)", done.stdout)
    space = build.space(config.load(ROOT / "configs" / f"demo_{family}.py"))
    small, middle, large = space.parse_many(names)
    assert (small, large) == (space.smallest, space.intact)
    assert small.width < middle.width < large.width
    assert sum(small.depths) < sum(middle.depths) < sum(large.depths)


def test_help_lists_the_targets():
    shown = make("help").stdout
    for target in ("demo", "test", "lint", "readme", "clean"):
        assert f"make {target} " in shown
    assert "PYTHON" not in shown


def test_an_old_python_ends_in_one_sentence_and_makes_no_environment(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    done = make("test", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "error: poa_jax needs Python 3.11 or newer, but" in done.stderr
    assert "is Python 3.9.2; choose one with make PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_python_ends_in_one_sentence(tmp_path):
    done = make("test", "PYTHON=no-such-python", f"VENV={tmp_path / 'venv'}")
    assert "error: no no-such-python here; poa_jax needs Python 3.11 or newer" in done.stderr


def test_importing_the_command_starts_no_device():
    # So `--help` and a wrong flag answer at once. JAX refuses this setting once a device is there.
    script = "import jax, poa_jax.cli; jax.config.update('jax_num_cpu_devices', 3)"
    script += "; print(jax.device_count())"
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("3", "")
