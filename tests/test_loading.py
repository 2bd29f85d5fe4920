import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from jax.sharding import NamedSharding, PartitionSpec

import poa_jax
from poa_jax import loading
from poa_jax.checkpoints import Checkpoints
from poa_jax.models import build
from poa_jax.pretraining.state import init_state


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    return tiny_run.make(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(first_run, tmp_path):
    """A workdir with one checkpoint, free to be damaged."""
    return shutil.copytree(first_run, tmp_path / "run")


@pytest.fixture(scope="module")
def net(first_run):
    return poa_jax.load(first_run)


@pytest.fixture(scope="module")
def images(net):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    return net.normalise(pixels)


@pytest.fixture
def small(net, tmp_path):
    """The folder of a static backbone."""
    return poa_jax.save(net.extract("w16-d2"), tmp_path / "small")


@functools.cache
def start(seed):
    """What a run of `seed` starts from."""
    c = tiny_run.config()
    modules = build.backbone(c), build.heads(c)
    return jax.jit(lambda: init_state(*modules, c.model.image_size, seed))()


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_a_workdir_holds_the_teacher_of_its_newest_checkpoint(net):
    assert isinstance(net, poa_jax.Supernet)
    assert net.step == tiny_run.STEP
    assert net.space.intact == poa_jax.Subnet(32, (6,))
    assert same(net.params, start(tiny_run.TEACHER_SEED).teacher["backbone"])


def test_a_checkpoint_of_a_run_is_loaded_by_its_folder(run, net):
    found = poa_jax.load(run / "checkpoints" / "7")
    assert same(found.params, net.params)
    assert found.step == 7
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*checkpoints/8"):
        loading.load_supernet(run, 8)


@pytest.mark.parametrize("name", ["w16-d2", "w32-d4", "smallest", "intact"])
def test_extracted_saved_and_loaded_it_computes_what_the_supernet_does(net, images, tmp_path, name):
    cut = net.extract(name)
    expected = net.apply(images, subnet=name)
    out = cut(images)
    assert out.cls.shape == (3, cut.subnet.width)
    assert out.patches.shape == (3, 4, cut.subnet.width)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), out, expected)
    again = poa_jax.load(poa_jax.save(cut, tmp_path / "small"))
    assert same(again.params, cut.params)
    assert same(again(images), out)
    assert (again.model, again.subnet, again.mean, again.std) == (
        cut.model,
        cut.subnet,
        cut.mean,
        cut.std,
    )
    assert again.num_params == net.cost(name).params
    assert again.macs() == net.cost(name).macs


def test_hidden_patches_change_what_both_compute_alike(net, images):
    masks = jnp.zeros((3, 4), bool).at[:, 1].set(True)
    out = net.extract("w16-d3")(images, masks)
    expected = net.apply(images, "w16-d3", masks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), out, expected)
    assert not np.allclose(out.cls, net.extract("w16-d3")(images).cls, atol=1e-4)


def test_an_unknown_sub_network_names_the_nearest(net, images):
    for use in (net.extract, net.cost, lambda name: net.apply(images, name)):
        with pytest.raises(ValueError, match=r"no sub-network 'w17-d9' .* did you mean 'w16-d6'"):
            use("w17-d9")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (np.zeros((16, 16, 3), np.float32), r"expected images of shape \(B, H, W, 3\)"),
        (np.zeros((2, 16, 16, 1), np.float32), r"got \(2, 16, 16, 1\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"got uint8; call normalise\(\)"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(net, wrong, sentence):
    for use in (net.apply, net.extract("smallest")):
        with pytest.raises(ValueError, match=sentence):
            use(wrong)


def test_missing_and_empty_folders_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder at .*missing, expected a workdir"):
        poa_jax.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json: it is neither"):
        poa_jax.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="no folder at"):
        poa_jax.load(tmp_path / "file")


def test_a_run_without_a_checkpoint_is_told(run):
    shutil.rmtree(run / "checkpoints" / "7")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; train first"):
        poa_jax.load(run)


def test_a_damaged_checkpoint_is_one_sentence(run):
    for path in (run / "checkpoints" / "7" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"the checkpoint .*7 cannot be read: its file state/"):
        poa_jax.load(run)


def test_a_checkpoint_of_another_architecture_is_told(run):
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"depth": 6', '"depth": 8'))
    with pytest.raises(ValueError, match=r"7 is one of another architecture: 'teacher/backbone/"):
        poa_jax.load(run)


def test_a_configuration_that_is_not_json_is_told(run):
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not a saved configuration"):
        poa_jax.load(run)


def edit(change):
    def damage(folder):
        about = json.loads((folder / "config.json").read_text())
        change(about)
        (folder / "config.json").write_text(json.dumps(about))

    return damage


def rewrite(change):
    def damage(folder):
        with np.load(folder / "weights.npz") as stored:
            arrays = dict(stored)
        change(arrays)
        np.savez(folder / "weights.npz", **arrays)

    return damage


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def halve(folder):
    path = folder / "weights.npz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
    path = folder / "weights.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "weights missing": (lambda f: (f / "weights.npz").unlink(), "has no weights.npz"),
    "weights truncated": (halve, "weights.npz cannot be read"),
    "weights flipped": (flip, "weights.npz cannot be read"),
    "weights no npz": (write("weights.npz", "text"), "weights.npz cannot be read"),
    "weights objects": (
        rewrite(lambda a: a.update({"norm/bias": np.array([{}])})),
        "weights.npz cannot be read",
    ),
    "an array missing": (
        rewrite(lambda a: a.pop("norm/bias")),
        "does not fit .*: it has no 'norm/bias'",
    ),
    "an array too many": (
        rewrite(lambda a: a.update(more=np.zeros(3))),
        "it has 'more', which no such network has",
    ),
    "wrong shape": (
        rewrite(lambda a: a.update({"norm/bias": np.zeros(3, np.float32)})),
        r"has 'norm/bias' as float32 \(3,\), expected float32 \(16,\)",
    ),
    "wrong type": (
        rewrite(lambda a: a.update({"norm/bias": np.zeros(16)})),
        "has 'norm/bias' as float64",
    ),
    "config missing": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config no JSON": (write("config.json", '{"kind"'), "describes no static backbone"),
    "config a list": (write("config.json", "[]"), "describes no static backbone"),
    "another kind": (edit(lambda a: a.update(kind="other")), "describes no static backbone"),
    "no model": (edit(lambda a: a.pop("model")), "describes no static backbone"),
    "unknown field": (edit(lambda a: a["model"].update(x=1)), "describes no static backbone"),
    "wrong field": (edit(lambda a: a["model"].update(width="a")), "describes no static backbone"),
    "no sub-network": (edit(lambda a: a.update(subnet="tiny")), "describes no static backbone"),
    "other depth": (edit(lambda a: a["model"].update(depth=3)), "does not fit"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_static_backbone_is_one_sentence(small, damage, sentence):
    damage(small)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        poa_jax.load(small)


def test_a_save_replaces_an_earlier_one_and_nothing_else(net, small, tmp_path):
    poa_jax.save(net.extract("w32-d2"), small)
    assert poa_jax.load(small).subnet == poa_jax.Subnet(32, (2,))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    for path in (foreign, foreign / "thesis.tex"):
        with pytest.raises(FileExistsError, match="exists and is not a static backbone"):
            poa_jax.save(net.extract("w16-d2"), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "small"]
    assert (foreign / "thesis.tex").read_text() == "years of work"


def test_a_save_that_fails_leaves_the_folder_as_it_was(net, small, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        poa_jax.save(net.extract("w32-d2"), small)
    monkeypatch.undo()
    assert poa_jax.load(small).subnet == poa_jax.Subnet(16, (2,))
    # What is left of it does not stand in the way.
    poa_jax.save(net.extract("w32-d2"), small)
    assert sorted(p.name for p in small.parent.iterdir()) == ["small"]


def test_a_supernet_is_saved_by_its_workdir(net, tmp_path):
    with pytest.raises(TypeError, match="expected a static Backbone"):
        poa_jax.save(net, tmp_path / "net")


def test_the_newest_of_several_checkpoints_is_loaded_from_whatever_devices_saved_it(run, mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(lambda x: x + jnp.ones_like(x), start(tiny_run.TEACHER_SEED))
    state = jax.device_put(state, everywhere)
    with Checkpoints(run) as saved:
        saved.save(12, state, {})
    found = poa_jax.load(run)
    assert found.step == 12
    assert same(found.params, state.teacher["backbone"])
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(found.params))
