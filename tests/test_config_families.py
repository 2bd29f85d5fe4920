"""Configurations of the three families: published values, keys of one's own, sizes that fit."""

import math

import numpy as np
import pytest
from golden_params import load

from poa_jax import config as configs
from poa_jax import config_check, config_families
from poa_jax.data.masking import MaskRecipe
from poa_jax.elastic.width import Width
from poa_jax.models import build
from poa_jax.pretraining.schedules import Schedules

FILES = {
    "vit": "configs/vit_l16_imagenet.py",
    "swin": "configs/swin_b_imagenet.py",
    "resnet": "configs/resnet152_imagenet.py",
}
families = pytest.mark.parametrize("family", config_families.FAMILIES)


@families
def test_the_published_file_is_the_published_default_but_for_precision_and_data(family):
    published = dict(configs.leaves(configs.load(FILES[family]).to_dict()))
    default = dict(configs.leaves(configs.default(family).to_dict()))
    changed = {key for key, value in published.items() if value != default[key]}
    assert changed == {
        "data.source",
        "data.workers",
        "data.blur_inverted",
        "model.dtype",
        "model.remat",
        "masks.group",
        "train.checkpoint_every",
    }


@families
def test_published_configurations_run_on_the_papers_32_devices(family):
    config = configs.load(FILES[family])
    config_check.check(config, device_count=32)
    assert config.train.batch_size == 32 * config.masks.group
    for file in (FILES[family], f"configs/demo_{family}.py"):
        config = configs.load(file)
        config_check.check(config)
        assert MaskRecipe.from_config(config).grid == build.backbone(config).mask_grid


def test_published_schedules_end_at_the_values_of_the_paper():
    ends = {
        "vit": (6.17e-4, 0.3587, 0.99899),
        "swin": (1.82e-4, 0.391, 0.99971),
        "resnet": (2e-5, 0.4, 0.9999),
    }
    peaks = {"vit": 0.005, "swin": 0.00566, "resnet": 0.00447}
    for family, (lr, decay, momentum) in ends.items():
        config = configs.load(FILES[family])
        schedules = Schedules.from_config(config)
        last = schedules.at(config.train.steps - 1)
        assert last.lr == pytest.approx(lr, rel=3e-3)
        assert last.weight_decay == pytest.approx(decay, rel=1e-3)
        assert last.teacher_momentum == pytest.approx(momentum, abs=1e-5)
        warm = int(config.schedule.warmup_epochs * config.schedule.epoch_steps)
        assert schedules.at(warm).lr == pytest.approx(peaks[family], rel=2e-3)


def test_spaces_have_the_published_networks_in_official_order():
    expected = {"vit": (143, 573, "scale3"), "swin": (39, 89, "scale2"), "resnet": (465, 699, "")}
    for family, (networks, pool, _) in expected.items():
        space = build.space(configs.default(family))
        assert len(space) == networks
        assert len(space.candidates) == pool
    space = build.space(configs.default("swin"))
    rows = load("networks")["swin_published/scale2/networks"]
    assert [(s.width, s.depths[2]) for s in space.candidates] == [tuple(r) for r in rows.tolist()]
    wide = configs.override(configs.default("swin"), ["model.width=192"])
    assert len(build.space(wide)) == 91
    space = build.space(configs.default("resnet"))
    names = [name for name in load("networks") if name.startswith("resnet_published")]
    rows = load("networks")[next(n for n in names if n.endswith("/networks"))]
    found = [[s.width * 2**i for i in range(4)] + list(s.depths) for s in space.candidates]
    np.testing.assert_array_equal(found, rows)


def test_aliases_are_the_networks_of_the_paper():
    swin, resnet = (build.space(configs.default(f)) for f in ("swin", "resnet"))
    assert str(swin.parse("tiny")) == "w96-d2.2.6.2"
    assert str(swin.parse("small")) == "w96-d2.2.18.2"
    assert str(swin.parse("base")) == "w128-d2.2.18.2"
    assert str(resnet.parse("r50")) == "w64-d3.4.6.3"
    assert str(resnet.parse("r101")) == "w64-d3.4.23.3"
    assert str(resnet.parse("r152")) == "w64-d3.8.36.3"
    with pytest.raises(ValueError, match=r"did you mean 'w64-d3\.4\.6\.3'"):
        resnet.parse("w64-d3.4.5.3")


@families
def test_heads_take_the_features_of_the_family(family):
    config = configs.default(family)
    widths = {"vit": 1024, "swin": 1024, "resnet": 2048}
    assert build.heads(config).width == widths[family]
    body = build.backbone(config)
    assert build.family(body) == family
    narrow = {"vit": 384, "swin": 768, "resnet": 2048}
    least = config.elastic.min_width
    assert body.feature_width(Width(least)) == Width(narrow[family])
    assert math.prod(body.mask_grid) == 196


@pytest.mark.parametrize(
    ("family", "override", "sentence"),
    [
        ("swin", "model.depth=6", "model.depth has no meaning for model.family swin; did you mean"),
        ("vit", "model.depths=2,2,6,2", "model.depths has no meaning for model.family vit"),
        ("resnet", "model.window=4", "model.window has no meaning for model.family resnet"),
        ("resnet", "model.drop_path=0.1", "model.drop_path has no meaning for model.family resnet"),
        ("swin", "model.depths=2,2,18", "takes 4 whole numbers"),
        ("swin", "elastic.min_depths=2,2,20,2", "20 of stage 3 is above model.depths 18"),
        ("resnet", "elastic.depth_step=4", "4 of stage 2|does not lead from elastic.min_depths 6"),
        ("resnet", "model.groups=48", "not a multiple of model.groups 48; the nearest is"),
        ("swin", "model.width=120", "model.width 120 is not a multiple of model.head_dim 16"),
        ("swin", "model.image_size=208", "not a multiple of 32 pixels, the stride of the last map"),
        ("swin", "data.local_size=98", "data.local_size 98 is not a multiple of 4 pixels"),
        ("swin", "data.local_size=24", "smaller than one window of model.window 7 patches; expect"),
        ("resnet", "model.image_size=100", "the nearest is 96 or 128"),
        ("resnet", "elastic.min_width=80", "not a multiple of model.groups 32"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(family, override, sentence):
    with pytest.raises(ValueError, match=sentence):
        config_check.check(configs.override(configs.default(family), [override]))


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resnet'"):
        configs.default("resnt")
