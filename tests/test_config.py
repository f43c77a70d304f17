"""Settings and recipes: what is accepted, what is refused, and with which words."""

import json

import pytest

from ldae_fast.config import Config, SettingError, check, from_dict, idle, set_values, to_json
from ldae_fast.recipes import ROWS, SIZES, build_config, saved_config


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("side", [32, 64, 96, 256])
def test_every_recipe_builds_at_every_scale(row, side):
    config = build_config(row, side)
    assert config.data.image_size == side
    assert from_dict(json.loads(to_json(config))) == config


def test_rows_are_the_papers():
    """Section 4, one statement a row: what changes against the row before."""
    rows = {name: build_config(name, 256) for name in ROWS}
    assert (rows["row7"].noise.schedule, rows["row7"].objective.predict) == ("linear", "noise")
    assert rows["row8"].objective.predict == "clean"
    assert rows["row8"].objective.level_weight == "gamma_squared"
    assert rows["row9"].noise.schedule == "unscaled"
    assert (rows["row9"].objective.input, rows["row10"].objective.input) == ("latent", "image")
    assert (rows["row10"].objective.target, rows["row11"].objective.target) == (
        "latent",
        "reconstruction",
    )
    assert rows["row12"].objective.target == "image"
    assert rows["row13"].noise.schedule == "single"
    assert rows["ldae-aug"].data.augment == "random-resized-crop"
    assert rows["row12"].tokenizer.d == 32
    assert rows["row12"].optimizer.batch * rows["row12"].optimizer.base_lr / 256 == pytest.approx(
        8e-4
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model.dept": "3"}, "unknown setting 'model.dept'; did you mean model.depth?"),
        ({"zzz": "3"}, "unknown setting 'zzz'"),
        ({"model.depth": "three"}, "model.depth must be a whole number; got 'three'"),
        ({"model.depth": "2.5"}, "model.depth must be a whole number; got '2.5'"),
        ({"model.depth": True}, "model.depth must be a whole number; got True"),
        ({"optimizer.base_lr": "nan"}, "optimizer.base_lr must be a number; got 'nan'"),
        ({"optimizer.base_lr": "inf"}, "optimizer.base_lr must be a number; got 'inf'"),
        ({"model.gates": "yes"}, "model.gates must be true or false; got 'yes'"),
        ({"noise.schedule": "cosine"}, "noise.schedule must be one of ddpm, linear"),
        ({"tokenizer.d": "49"}, "tokenizer.d must be at most 48.*got 49"),
        ({"tokenizer.d": "0"}, "tokenizer.d must be 1 or more; got 0"),
        ({"data.image_size": "30"}, r"must be a multiple of model.patch \(4\); got 30"),
        ({"model.heads": "5"}, "model.width must be a multiple of model.heads"),
        ({"model.patch": "0"}, "model.patch must be 1 or more; got 0"),
        ({"evaluate.cut": "7"}, "evaluate.cut must be 0 to 6"),
        ({"evaluate.t": "-1"}, "evaluate.t must be 0 to noise.levels"),
        ({"objective.predict": "noise"}, "objective.predict noise needs objective.target latent"),
        ({"optimizer.accumulate": "3"}, "optimizer.accumulate must divide optimizer.batch"),
        (
            {"optimizer.accumulate": "2", "speed.compile": "graph"},
            "speed.compile graph keeps one step's gradients",
        ),
        ({"finetune.accumulate": "3"}, "finetune.accumulate must divide finetune.batch"),
        ({"optimizer.warmup": "1.5"}, "optimizer.warmup must be 0 to 1"),
        ({"optimizer.ema": "1"}, "must be at least 0 and below 1"),
        ({"data.image_size": "65552"}, "data.image_size must be at most 65,536; got 65,552"),
        ({"speed.workers": "1025"}, "speed.workers must be at most 1,024; got 1025"),
        ({"seed": "-1"}, "seed must not be negative"),
        ({"seed": str(2**64)}, r"seed must be below 2\^64; got 18446744073709551616"),
        ({"tokenizer.patches": "1"}, "tokenizer.patches must be 2 or more; got 1"),
        ({"evaluate.base_lr": "-1"}, "evaluate.base_lr must not be negative; got -1.0"),
        ({"tokenizer.kind": "conv-vae"}, "conv-vae needs objective.input latent .*; got image and"),
        ({"tokenizer.kind": "conv-vae", "model.patch": "1", "tokenizer.d": "3"},
         "model.patch must be 2, 4, 8 or 16 for tokenizer.kind conv-vae; got 1"),
        ({"tokenizer.kind": "conv-vae", "tokenizer.d": "6"}, "tokenizer.d must be a multiple of 4"),
        ({"tokenizer.kind": "vae"}, "tokenizer.kind must be one of pca, pixel, patch-ae"),
        ({"tokenizer.adversarial_start": "2"}, "tokenizer.adversarial_start must be 0 to 1; got 2"),
        ({"objective.label_dropout": "1.1"}, "objective.label_dropout must be 0 to 1; got 1.1"),
        ({"tokenizer.channels": "6", "tokenizer.kind": "conv-vae"},
         "tokenizer.channels must be a multiple of 4; got 6"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_in_one_sentence(values, words):
    with pytest.raises(SettingError, match=words) as caught:
        build_config("ldae", 32, "tiny", values)
    assert "\n" not in str(caught.value)


def test_a_given_tokenizer_leaves_its_own_settings_idle():
    names = [f"tokenizer.{name}" for name in vars(Config().tokenizer)]
    config = build_config("row4", 32, "", {"tokenizer.file": "some.safetensors"})
    counting = set(names) - set(idle(config, names))
    assert counting == {"tokenizer.kind", "tokenizer.d", "tokenizer.file"}
    config = build_config("row4", 32)
    assert set(idle(config, names)) == {
        "tokenizer.classifier_steps", "tokenizer.adversarial_start", "tokenizer.vgg"
    }  # fmt: skip


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(SettingError, match=r"unknown recipe 'row22'.*did you mean row2\?"):
        build_config("row22", 32)
    with pytest.raises(SettingError, match="unknown --size 'XL'"):
        build_config("ldae", 32, "XL")


def test_text_becomes_the_settings_type():
    config = build_config(
        "ldae", 32, "", {"model.gates": "false", "optimizer.base_lr": "2e-3", "seed": "7"}
    )
    assert (config.model.gates, config.optimizer.base_lr, config.seed) == (False, 2e-3, 7)
    assert build_config("ldae", 32, "", {"seed": str(2**64 - 1)}).seed == 2**64 - 1


def test_sizes_hold_together():
    for size in SIZES:
        assert check(build_config("ldae", 256, size))


@pytest.mark.parametrize("saved", [[], {"model": 3}, {"model": {"depth": None}}, {"seed": "x"}])
def test_hostile_config_is_refused(saved):
    with pytest.raises(SettingError):
        from_dict(saved)


def test_unknown_group_in_a_saved_config_is_refused():
    with pytest.raises(SettingError, match=r"nothing\.x"):
        from_dict({"nothing": {"x": 1}})


def test_what_a_saved_config_lacks_is_its_recipes():
    large = {"data": {"image_size": 256}}
    for name in ROWS:
        assert saved_config({"recipe": name} | large) == build_config(name, 256)
    changed = saved_config({"recipe": "row7", "model": {"patch": 8}, "tokenizer": {"d": 100}})
    assert changed == build_config("row7", 32, "", {"model.patch": 8, "tokenizer.d": 100})
    with pytest.raises(SettingError, match=r"unknown recipe 'row77'"):
        saved_config({"recipe": "row77"})
    with pytest.raises(SettingError, match=r"data.image_size must be a whole number; got 'wide'"):
        saved_config({"data": {"image_size": "wide"}})


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        Config().seed = 3
    config = Config()
    assert set_values(config, {"seed": 3}).seed == 3
    assert config.seed == 0
