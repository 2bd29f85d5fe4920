import json
import types

import pytest

from poa_jax import config as configs
from poa_jax import config_check, config_values


def changed(*assignments):
    return configs.override(configs.default(), assignments)


def config_file(folder, body, name="mine.py"):
    path = folder / name
    path.write_text(f"from poa_jax.config import default\n\n\ndef get_config():\n{body}")
    return path


# Loading


def test_a_config_file_starts_from_the_defaults_and_changes_what_differs(tmp_path):
    body = "    c = default()\n    c.train.steps = 7\n    c.elastic.width_bounds = (512, 1024)\n"
    config = configs.load(config_file(tmp_path, body + "    return c\n"))
    assert config.train.steps == 7
    assert config.elastic.width_bounds == (512, 1024)
    assert config.model.width == 1024
    with pytest.raises(AttributeError, match="stepz"):
        config.train.stepz = 3


def test_an_imported_module_loads_like_a_file():
    module = types.ModuleType("mine")
    module.__file__ = "mine.py"
    module.get_config = configs.default
    assert configs.load(module).to_dict() == configs.default().to_dict()


def test_a_missing_config_file_names_the_nearest_one(tmp_path):
    config_file(tmp_path, "    return default()\n", "demo_vit.py")
    with pytest.raises(FileNotFoundError, match=r"no config file at .*did you mean .*demo_vit\.py"):
        configs.load(tmp_path / "demo_vti.py")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def get_config(:\n", r"broken\.py, line 1: SyntaxError"),
        ("\nimport no_such_package\n", r"broken\.py, line 2: ModuleNotFoundError"),
        ("x = 1\n", r"broken\.py has no function get_config"),
        ("def get_config():\n    return 3\n", r"returned a int, expected a ConfigDict"),
        (
            "from poa_jax.config import default\n"
            "def get_config():\n    c = default()\n    c.train.steps = 'ten'\n    return c\n",
            r"broken\.py, line 4: TypeError",
        ),
    ],
)
def test_a_broken_config_file_is_told_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        configs.load(path)


def test_a_file_that_is_not_python_is_no_config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a Python file"):
        configs.load(path)


# Overriding


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.steps=10", 10),
        ("train.steps=276_800", 276_800),
        ("model.drop_path=0", 0.0),
        ("optimizer.min_lr=1e-6", 1e-6),
        ("data.blur_inverted=true", True),
        ("data.blur_inverted=False", False),
        ("heads.prototypes=1024,2048", (1024, 2048)),
        ("heads.prototypes=(1024, 2048)", (1024, 2048)),
        ("heads.prototypes=1024", (1024,)),
        ("data.global_scale=0.5,1", (0.5, 1.0)),
        ("elastic.width_bounds=max", "max"),
        ("elastic.width_bounds=512,1024", (512, 1024)),
        ("data.source=folder:a=b", "folder:a=b"),
    ],
)
def test_a_value_is_read_as_the_type_of_its_key(assignment, value):
    key = assignment.partition("=")[0]
    found = dict(configs.leaves(changed(assignment).to_dict()))[key]
    assert found == value
    assert type(found) is type(value)


def test_overriding_leaves_the_given_configuration_alone():
    config = configs.default()
    assert configs.override(config, ["train.steps=3"]).train.steps == 3
    assert config.train.steps == 276_800


def test_a_name_may_be_overridden_by_widths_and_back():
    config = changed("elastic.width_bounds=512,1024")
    assert configs.override(config, ["elastic.width_bounds=each"]).elastic.width_bounds == "each"


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("train.stepz=3", r"unknown config key 'train\.stepz'; did you mean 'train\.steps'\?"),
        ("trian.batch_size=3", r"did you mean 'train\.batch_size'\?"),
        ("koleo=3", r"did you mean 'loss\.koleo'\?"),
        ("train=3", r"'train' is a section, expected one of its keys: .*train\.steps"),
        ("train.steps", r"'train\.steps' has no value, expected key=value"),
        ("train.steps=1.5", r"train\.steps takes a whole number, not '1\.5'"),
        ("model.drop_path=much", r"model\.drop_path takes a number, not 'much'"),
        ("data.blur_inverted=maybe", r"data\.blur_inverted takes true or false, not 'maybe'"),
        ("heads.prototypes=8.5,9", r"heads\.prototypes takes whole numbers, such as 8192"),
        ("heads.prototypes=__import__('os')", r"heads\.prototypes takes whole numbers"),
        ("optimizer.betas=", r"optimizer\.betas takes 2 numbers, such as 0\.9,0\.999, not ''"),
        ("elastic.width_bounds=1,x", r"elastic\.width_bounds takes a name or widths"),
    ],
)
def test_a_wrong_override_ends_in_one_sentence(assignment, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        changed(assignment)
    assert "\n" not in str(raised.value)


# Saving


def test_a_saved_configuration_comes_back_exactly(tmp_path):
    config = changed(
        "heads.prototypes=64", "elastic.width_bounds=512,1024", "optimizer.min_lr=3e-7"
    )
    path = tmp_path / "run" / "config.json"
    configs.save(config, path)
    back = configs.restore(path)
    for (key, value), (_, again) in zip(
        configs.leaves(config.to_dict()), configs.leaves(back.to_dict()), strict=True
    ):
        assert (type(again), again) == (type(value), value), key
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]


def test_a_key_added_since_a_configuration_was_saved_has_its_default(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"train": {"steps": 5}}))
    config = configs.restore(path)
    assert config.train.steps == 5
    assert config.model.to_dict() == configs.default().model.to_dict()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"train": {"stepz": 5}}', r"config\.json: unknown config key 'train\.stepz'; did you"),
        ('{"train": 5}', r"'train' is a section"),
        ('{"train": {"st', r"is not a saved configuration"),
        ('{"kind": "static backbone"}', r"describes a static backbone, expected .* of a run"),
        ("[1]", r"is not a saved configuration: expected a JSON object"),
    ],
)
def test_a_file_that_is_no_saved_configuration_is_told(tmp_path, text, sentence):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        configs.restore(path)


def test_restoring_from_nowhere_names_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved configuration at"):
        configs.restore(tmp_path / "config.json")


# Checking


def test_the_defaults_are_right():
    config_check.check(configs.default())
    config_check.check(configs.default(), device_count=32)


MISTAKES = [
    (
        "model.width=1000",
        r"model\.width 1000 is not a multiple of model\.head_dim 64; .* 960 or 1024",
    ),
    (
        "elastic.min_width=32",
        r"elastic\.min_width 32 is not a multiple of model\.head_dim 64; .* 64",
    ),
    ("elastic.width_step=32", r"elastic\.width_step 32 is not a multiple of model\.head_dim 64"),
    ("elastic.min_width=1088", r"elastic\.min_width 1088 is above model\.width 1024"),
    ("elastic.width_step=384", r"elastic\.width_step 384 does not lead from .* 384 to .* 1024"),
    ("model.depth=0", r"model\.depth must be at least 1, not 0"),
    ("elastic.min_depth=0", r"elastic\.min_depth must be at least 1, not 0"),
    ("elastic.min_depth=25", r"elastic\.min_depth 25 is above model\.depth 24"),
    ("elastic.depth_step=5", r"elastic\.depth_step 5 does not lead from .* 12 to .* 24"),
    ("elastic.width_bounds=echo", r"unknown value of elastic\.width_bounds: 'echo'.*'each'"),
    ("elastic.width_bounds=500,1024", r"has 500, which is the width of no sub-network; .* 512"),
    ("model.image_size=230", r"model\.image_size 230 is not a multiple of model\.patch_size 16"),
    ("data.local_size=100", r"data\.local_size 100 is not a multiple .* the nearest is 96 or 112"),
    ("eval.resize=200", r"eval\.resize 200 is below model\.image_size 224"),
    ("model.mlp_ratio=2.001", r"model\.mlp_ratio 2\.001 gives width .* which is no whole number"),
    ("data.flip=1.5", r"data\.flip must be between 0 and 1, not 1\.5"),
    ("data.blur=0.1,-0.1,0.5", r"data\.blur must be between 0 and 1, not 0\.1,-0\.1,0\.5"),
    ("masks.probability=-1", r"masks\.probability must be between 0 and 1, not -1\.0"),
    ("masks.ratio=0.5,0.1", r"masks\.ratio must be \(least, most\), not 0\.5,0\.1"),
    ("data.local_scale=0,0", r"data\.local_scale must leave some of the image"),
    ("model.drop_path=1", r"model\.drop_path must be at least 0 and below 1, not 1\.0"),
    ("loss.student_temperature=0", r"loss\.student_temperature must be above 0, not 0\.0"),
    ("optimizer.base_lr=-1", r"optimizer\.base_lr must be 0 or above, not -1\.0"),
    ("optimizer.layer_decay=1.5", r"optimizer\.layer_decay must be at most 1, not 1\.5"),
    ("data.std=1,0,1", r"data\.std must be above 0, not 1\.0,0\.0,1\.0"),
    ("data.std=1,1", r"data\.std takes 3 numbers, such as .*, not \(1\.0, 1\.0\)"),
    ("optimizer.clip=nan", r"optimizer\.clip takes a number, not nan"),
    ("model.mlp=swiglue", r"unknown value of model\.mlp: 'swiglue', .* did you mean 'swiglu'\?"),
    ("model.family=vitt", r"unknown value of model\.family: 'vitt', .* did you mean 'vit'\?"),
    ("model.dtype=float16", r"unknown value of model\.dtype: 'float16', .* 'bfloat16'\?"),
    ("model.remat=dots", r"unknown value of model\.remat: 'dots', .* 'dots_saveable'\?"),
    ("loss.targets=centering", r"unknown value of loss\.targets: .* did you mean 'centring'\?"),
    ("elastic.draw=per-device", r"unknown value of elastic\.draw: .* did you mean 'per_device'\?"),
    ("parallel.engine=shardmap", r"unknown value of parallel\.engine: .* 'shard_map'\?"),
    ("train.steps=0", r"train\.steps must be at least 1, not 0"),
    (
        "train.batch_size=1602",
        r"train\.batch_size 1602 is not a multiple of masks\.group 8; .* 1600 or",
    ),
    ("eval.neighbours=0,10", r"eval\.neighbours must be at least 1, not 0,10"),
]


@pytest.mark.parametrize(("assignment", "sentence"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_each_mistake_ends_in_one_sentence(assignment, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        config_check.check(changed(assignment))
    assert "\n" not in str(raised.value)


def test_the_batch_must_divide_by_the_devices():
    with pytest.raises(
        ValueError, match=r"1600 is not a multiple of the 7 devices; .* 1596 or 1603"
    ):
        config_check.check(configs.default(), device_count=7)


def test_koleo_needs_two_images_a_device():
    config = changed("train.batch_size=8")
    with pytest.raises(ValueError, match="gives a device only 1"):
        config_check.check(config, device_count=8)
    config_check.check(configs.override(config, ["loss.koleo=0"]), device_count=8)


def test_a_key_that_is_not_in_the_defaults_is_found_with_the_nearest():
    config = configs.default()
    config.schedule.warmup_epoch = 3.0
    with pytest.raises(
        ValueError, match=r"'schedule\.warmup_epoch'; did .*'schedule\.warmup_epochs'"
    ):
        config_check.check(config)


def test_a_key_that_was_removed_is_missed():
    config = configs.default()
    del config.loss["koleo"]
    with pytest.raises(ValueError, match=r"config key loss\.koleo is missing"):
        config_check.check(config)


def test_a_value_of_another_type_is_found():
    config = configs.default()
    with config.ignore_type():
        config.train.steps = "ten"
    with pytest.raises(ValueError, match=r"train\.steps takes a whole number, not 'ten'"):
        config_check.check(config)


@pytest.mark.parametrize("key", [key for key, _ in configs.leaves(configs.default().to_dict())])
def test_no_key_takes_a_value_of_another_type(key):
    default = dict(configs.leaves(configs.default().to_dict()))[key]
    wrong = (
        (1.5, "x") if isinstance(default, tuple) or key in config_values.NAME_OR_WIDTHS else None
    )
    assert f"config key {key} takes" in config_values.problem(key, wrong, default)
    assert config_values.problem(key, default, default) is None


def test_every_range_and_choice_names_a_key_that_exists():
    known = dict(configs.leaves(configs.default().to_dict()))
    named = [
        *config_check.CHOICES,
        *config_check.LEAST,
        *config_check.PROBABILITIES,
        *config_check.BELOW_ONE,
        *config_check.POSITIVE,
        *config_check.NOT_NEGATIVE,
        *config_values.NAME_OR_WIDTHS,
        *config_values.ANY_LENGTH,
    ]
    assert set(named) <= set(known)
    # Every number has a range, except the image mean, which may be any.
    numbers = {key for key, value in known.items() if not isinstance(value, bool | str)}
    assert numbers - set(named) == {"data.mean"}
