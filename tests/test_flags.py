import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from poa_jax import config as configs
from poa_jax import errors, flags
from poa_jax.evaluation import knn

CONFIG = "from poa_jax.config import default\n\n\ndef get_config():\n    return default()\n"


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "demo.py"
    path.write_text(CONFIG)
    return str(path)


def parse(*argv, **options):
    return flags.parse(argv, program="train.py", description="Train.", **options)


def test_the_line_gives_the_configuration_the_workdir_and_the_other_options(config_file, tmp_path):
    config, workdir, options = parse(
        f"--config={config_file}",
        "--workdir",
        str(tmp_path / "run"),
        "--config.train.steps=5",
        "--config.heads.prototypes",
        "64,128",
        "--limit",
        "3",
        add_options=lambda parser: parser.add_argument("--limit", type=int),
    )
    assert (config.train.steps, config.heads.prototypes) == (5, (64, 128))
    assert workdir == tmp_path / "run"
    assert options.limit == 3
    assert config.is_locked
    assert not workdir.exists()


def test_the_configuration_is_checked_after_the_overrides(config_file):
    with pytest.raises(ValueError, match=r"train\.steps must be at least 1"):
        parse("--config", config_file, "--workdir", "run", "--config.train.steps=0")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--workdir", "run"], "error: the following arguments are required: --config"),
        (["--config", "x.py", "--wokdir", "run"], "required: --workdir"),
        (["--config", "x.py", "--workdir", "run", "--wrokdir", "r"], "did you mean '--workdir'?"),
        (["--config", "x.py", "--workdir", "run", "extra"], "unexpected argument 'extra'"),
        (["--config", "x.py", "--workdir", "run", "--config.seed"], "expected --config.seed=VALUE"),
        (["--config.seed", "--workdir", "run"], "--config.seed has no value"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_status_2(argv, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*argv)
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.count("\n") == 1


def test_help_tells_how_to_change_a_key(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    assert "--config.train.steps=100" in capsys.readouterr().out


def test_a_workdir_gives_back_the_configuration_of_its_run(tmp_path):
    configs.save(
        configs.override(configs.default(), ["train.steps=9"]), tmp_path / flags.CONFIG_FILE
    )
    found = parse(
        "--workdir", str(tmp_path), "--config.eval.batch_size=4", config_from_workdir=True
    )
    assert (found.config.train.steps, found.config.eval.batch_size) == (9, 4)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"):
        flags.of_workdir(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json, expected the workdir"):
        flags.of_workdir(tmp_path)


def run(script, *argv, **variables):
    return subprocess.run(
        [sys.executable, "-c", script, *argv],
        capture_output=True,
        text=True,
        env={"PATH": "", **variables},
        check=False,
    )


SCRIPT = textwrap.dedent(
    """
    import sys
    from poa_jax import errors, flags
    with errors.user_errors():
        flags.parse(sys.argv[1:], program="train.py", description="Train.")
    """
)


def test_a_command_ends_in_one_sentence_without_a_traceback(config_file):
    done = run(SCRIPT, "--config", config_file, "--workdir", "run", "--config.train.stepz=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == ("error: unknown config key 'train.stepz'; did you mean 'train.steps'?\n")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    script = "from poa_jax import errors\nwith errors.user_errors(): print('line\\n' * 99999)"
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" | head -n 1', sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_the_traceback_can_be_asked_for(config_file):
    line = ("--config", config_file, "--workdir", "run", "--config.train.stepz=3")
    done = run(SCRIPT, *line, POA_JAX_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@errors.user_errors()
def missing_file():
    Path("no/such/file").read_text()


def test_a_path_that_does_not_exist_is_a_users_mistake(capsys):
    with pytest.raises(SystemExit) as stopped:
        missing_file()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: no/such/file: no such file or directory\n"


@pytest.mark.parametrize(
    "bug",
    [
        lambda: int("seven"),
        lambda: jax.numpy.zeros(3).reshape(2, 2),
        lambda: jax.jit(lambda x: x.reshape(2, 2))(jax.numpy.zeros(3)),
        lambda: knn.best({}),  # raised by `min`, called in this package
    ],
)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises((ValueError, TypeError)), errors.user_errors():
        bug()


def test_a_mistake_found_while_jax_traces_is_still_the_users(capsys):
    def traced(x):
        configs.override(configs.default(), ["train.stepz=1"])
        return x

    with pytest.raises(SystemExit), errors.user_errors():
        jax.jit(traced)(1.0)
    assert "did you mean 'train.steps'?" in capsys.readouterr().err


def test_a_long_list_of_choices_names_only_the_nearest():
    assert errors.unknown("width", "10", ["11", "12"]) == (
        "unknown width '10', expected one of 11, 12; did you mean '12'?"
    )
    assert errors.unknown("width", "x", ["11", "12"], listed=1) == "unknown width 'x'"
