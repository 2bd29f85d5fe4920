import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from PIL import Image

from poa_jax import config as configs
from poa_jax import loading, messages
from poa_jax.evaluation import sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def command():
    """The `main` of eval.py, a script beside the package."""
    spec = importlib.util.spec_from_file_location("eval_command", ROOT / "eval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.write_images(tmp_path_factory.mktemp("data") / "set.npz")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, data):
    return tiny_run.make(tmp_path_factory.mktemp("first") / "run", data__source=data)


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch):
    """A command sets up logging for its process, which here is that of all tests."""
    monkeypatch.setattr(messages, "show", lambda: None)


@pytest.fixture
def run(first_run, tmp_path):
    return shutil.copytree(first_run, tmp_path / "run")


@pytest.fixture
def fails(command, capsys):
    def error_of(*argv):
        with pytest.raises(SystemExit) as stopped:
            command([str(word) for word in argv])
        assert stopped.value.code == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert shown.count("\n") == 1
        return shown

    return error_of


def test_one_command_measures_every_sub_network(command, run, capsys):
    command(["--workdir", str(run), "--task", "knn", "--subnets", "all", "--baselines"])
    found = json.loads((run / "eval" / "knn.json").read_text())
    net = loading.load_supernet(run)
    assert [r["name"] for r in found["results"]] == [str(s) for s in net.space]
    assert found["checkpoint"]["step"] == tiny_run.STEP
    assert found["checkpoint"]["sha256"] == sweep.sha256(net.params)
    assert found["pixels"] > 0
    assert [r["untrained"] for r in found["results"]] != [r["knn"] for r in found["results"]]
    shown = capsys.readouterr().out
    assert (run / "eval" / "knn.md").read_text() in shown
    last = shown.splitlines()[-1]
    assert last.startswith("written: ")
    assert last.endswith(str(run / "eval" / "knn.png"))
    with Image.open(run / "eval" / "knn.png") as picture:
        assert np.asarray(picture).std() > 5


def test_untrained_means_the_parameters_the_run_started_from(command, run, data):
    config = tiny_run.config(data__source=data, seed=tiny_run.TEACHER_SEED)
    configs.save(config, run / "config.json")
    command(["--workdir", str(run), "--task", "knn", "--subnets", "w16-d3,intact", "--baselines"])
    found = json.loads((run / "eval" / "knn.json").read_text())["results"]
    assert [r["untrained"] for r in found] == [r["knn"] for r in found]


def test_names_aliases_and_other_values_can_be_chosen(command, run):
    argv = ["--workdir", str(run), "--task", "knn", "--subnets", "smallest,w32-d4"]
    command([*argv, "--config.eval.neighbours=5", "--split", "test"])
    found = json.loads((run / "eval" / "knn.json").read_text())
    assert [(r["name"], r["best_k"]) for r in found["results"]] == [("w16-d2", 5), ("w32-d4", 5)]
    assert "pixels" not in found


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (("--task", "kn"), "unknown task 'kn', expected one of knn; did you mean 'knn'?"),
        (("--subnets", "w16-d9"), "did you mean 'w16-d6'?"),
        (("--subnets", "smalest"), "did you mean 'smallest'?"),
        (("--subnet", "all"), "did you mean '--subnets'?"),
        (("--split", "val"), "unknown split"),
        (("--config.eval.neigbours=3",), "did you mean 'eval.neighbours'?"),
        (("--config.eval.neighbours=0",), "eval.neighbours must be at least 1"),
        (("--config.model.depth=5",), "model.depth is 6 in this run and cannot be 5 here"),
        (("--config.data.source=folder:nowhere",), "image folder nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(fails, run, changed, sentence):
    given = {"--task": "knn", "--workdir": str(run)}
    given |= dict([changed]) if len(changed) == 2 else {}
    argv = [word for pair in given.items() for word in pair]
    shown = fails(*argv, *(changed if len(changed) == 1 else ()))
    assert sentence in shown
    assert not (run / "eval").exists()


def test_a_folder_that_is_no_run_and_a_run_without_a_checkpoint_are_told(fails, tmp_path):
    assert "no folder at" in fails("--workdir", tmp_path / "none", "--task", "knn")
    configs.save(tiny_run.config(), tmp_path / "new" / "config.json")
    shown = fails("--workdir", tmp_path / "new", "--task", "knn")
    assert "no checkpoint in" in shown
    assert "train first, or name another workdir" in shown


def test_the_shell_sees_the_sentence_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "eval.py", "--workdir", tmp_path, "--task", "knnn"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path} holds no config.json, expected the workdir of a run that train.py "
        "started\n"
    )
