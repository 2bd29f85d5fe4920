import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poa_jax import cli, flags, loading, messages
from poa_jax import config as configs
from poa_jax.checkpoints import Checkpoints
from poa_jax.elastic.space import SearchSpace, Subnet
from poa_jax.models import build
from poa_jax.models.vit import ViT
from poa_jax.pretraining.state import init_state

CONFIG = """from poa_jax.config import default


def get_config():
    c = default()
    c.model.image_size = 16
    c.model.patch_size = 8
    c.model.width = 96
    c.model.depth = 3
    c.model.head_dim = 32
    c.elastic.min_width = 64
    c.elastic.width_step = 32
    c.elastic.min_depth = 2
    c.data.local_size = 8
    c.eval.resize = 16
    return c
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    (folder / "tiny.py").write_text(CONFIG)
    config = configs.override(
        configs.load(folder / "tiny.py"),
        ["heads.prototypes=8", "heads.hidden=16", "heads.bottleneck=8"],
    )
    configs.save(config, folder / "run" / flags.CONFIG_FILE)
    start = functools.partial(init_state, build.backbone(config), build.heads(config), 16, seed=0)
    state = jax.jit(start)()
    with Checkpoints(folder / "run") as checkpoints:
        checkpoints.save(5, state, {})
    return folder / "run"


@pytest.fixture
def run(first_run, tmp_path):
    """The folder of a run: its configuration and a checkpoint."""
    return shutil.copytree(first_run, tmp_path / "run")


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch):
    """A command sets up logging for its process, which here is that of all tests."""
    monkeypatch.setattr(messages, "show", lambda: None)


def fails(*argv):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in argv])
    assert stopped.value.code == 2


def test_rows_say_what_each_sub_network_is_and_costs():
    small, large = Subnet(64, (2,)), Subnet(96, (3,))
    space = SearchSpace((small, large), (4, 1), {"small": small, "tiny": small})
    model = ViT(image_size=16, patch_size=8, width=96, depth=3, head_dim=32)
    # Width 64: a block has 12·64² weights, 13·64 biases, norms and scales (4 + 2)·64.
    block = 12 * 64**2 + (3 + 1 + 4 + 1) * 64 + 6 * 64
    rest = 3 * 8 * 8 * 64 + 64 + (1 + 5) * 64 + 2 * 64
    macs = 4 * 192 * 64 + 2 * (5 * 12 * 64**2 + 2 * 5 * 5 * 64)
    assert cli.subnet_rows(space, model, 16)[0] == (
        "w64-d2",
        "small, tiny",
        "64",
        "2",
        f"{2 * block + rest:,}",
        f"{macs:,}",
        "4",
    )
    assert cli.subnet_rows(space, model, 16)[1][:4] == ("w96-d3", "", "96", "3")


def test_columns_of_a_table_line_up(capsys):
    cli.print_table(("name", "", "size"), [("a", "long", "7"), ("bcdef", "", "1,000")])
    assert capsys.readouterr().out == (
        "name          size\na      long      7\nbcdef        1,000\n"
    )


def test_subnets_lists_the_space_of_a_config_file(config_file, capsys):
    assert cli.main(["subnets", "--config", str(config_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(cli.COLUMNS)
    assert [line.split()[0] for line in lines[1:]] == ["w64-d2", "w64-d3", "w96-d2", "w96-d3"]


def test_macs_follow_the_image_size_and_parameters_do_not(config_file, capsys):
    found = []
    for size in ("16", "32"):
        cli.main(["subnets", "--config", str(config_file), "--image-size", size])
        found.append([line.split()[-4:-1] for line in capsys.readouterr().out.splitlines()[1:]])
    for (_, params_16, macs_16), (_, params_32, macs_32) in zip(*found, strict=True):
        assert params_16 == params_32
        assert int(macs_32.replace(",", "")) > 3 * int(macs_16.replace(",", ""))


def test_an_image_size_that_does_not_fit_the_patches_is_told(config_file, capsys):
    fails("subnets", "--config", config_file, "--image-size", 20)
    assert capsys.readouterr().err == (
        "error: --image-size 20: an image of 20×20 pixels is not a multiple of the patch size 8\n"
    )


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("subnet",), "invalid choice: 'subnet'"),
        (("subnets",), "one of the arguments --workdir --config is required"),
        (("subnets", "--workdir", "no-run"), "no folder at no-run"),
        (("subnets", "--config", "none.py"), "no config file at none.py"),
        (("extract", "--workdir", "r", "--subnet", "s", "--uot", "d"), "did you mean '--out'?"),
        (("extract", "--workdir", "no-run", "--subnet", "small"), "no folder at no-run"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_status_2(argv, sentence, capsys):
    fails(*argv)
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_extract_writes_backbones_that_work_alone(run, tmp_path, capsys):
    out = tmp_path / "small"
    argv = ["extract", "--workdir", run, "--subnet", "smallest,w96-d2", "--out", out]
    assert cli.main([str(word) for word in argv]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(out / "w64-d2"), str(out / "w96-d2")]
    net = loading.load_supernet(run)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    for line in lines:
        backbone = loading.load(line.split()[0])
        assert f"{backbone.num_params:,} parameters" in line
        want = net.apply(images, subnet=backbone.subnet)
        np.testing.assert_allclose(backbone(images).cls, want.cls, rtol=0, atol=1e-5)


def test_extract_writes_into_the_run_unless_told_otherwise(run, capsys):
    cli.main(["extract", "--workdir", str(run), "--subnet", "intact"])
    assert (run / "subnets" / "w96-d3" / "config.json").is_file()
    # Again: the folder is replaced.
    cli.main(["extract", "--workdir", str(run), "--subnet", "intact"])
    assert [path.name for path in (run / "subnets").iterdir()] == ["w96-d3"]
    capsys.readouterr()


def test_an_unknown_sub_network_names_the_nearest_and_nothing_is_written(run, capsys):
    fails("extract", "--workdir", run, "--subnet", "w64-d2,w65-d3")
    shown = capsys.readouterr().err
    assert shown.startswith("error: no sub-network 'w65-d3' in this space")
    assert "did you mean 'w64-d3'?" in shown
    assert not (run / "subnets").exists()


def test_a_folder_that_holds_something_else_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "mine" / "w64-d2").mkdir(parents=True)
    (tmp_path / "mine" / "w64-d2" / "thesis.tex").write_text("years of work")
    fails("extract", "--workdir", run, "--subnet", "w64-d2", "--out", tmp_path / "mine")
    assert "exists and is not a static backbone" in capsys.readouterr().err
    assert (tmp_path / "mine" / "w64-d2" / "thesis.tex").is_file()


def test_a_run_without_a_checkpoint_is_told(config_file, tmp_path, capsys):
    configs.save(configs.load(config_file), tmp_path / "new" / flags.CONFIG_FILE)
    assert cli.main(["subnets", "--workdir", str(tmp_path / "new")]) == 0
    fails("extract", "--workdir", tmp_path / "new", "--subnet", "smallest")
    assert "error: no checkpoint in" in capsys.readouterr().err


def test_a_static_backbone_is_no_run(run, capsys):
    cli.main(["extract", "--workdir", str(run), "--subnet", "smallest"])
    fails("subnets", "--workdir", run / "subnets" / "w64-d2")
    assert "expected the configuration of a run" in capsys.readouterr().err
