import dataclasses
import json

import numpy as np
import pytest

import vitrail
from vitrail.kit.errors import Error
from vitrail.recipes import RECIPES
from vitrail.recipes.run import train
from vitrail.recipes.situation import Situation
from vitrail.training.recipe import Duration, Model, Recipe, Schedule, with_settings


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (Duration(100), 100),
        (Duration(90, "epochs"), 112_603),  # 1,281,167 images at 1,024: facts of "better plain ViT"
        (Duration(300_000_000, "examples"), 292_969),
        (Duration(10, "percent"), 1_000),
    ],
)
def test_a_duration_in_steps(duration, steps):
    assert duration.steps(1_281_167, 1024, total=10_000) == steps


def test_none_is_a_word_where_the_model_wants_one():
    recipe = with_settings(Recipe(), {"model.position": "none", "model.layer_scale": "none"})
    model = vitrail.create_model("vit_mu_patch7_28", 2, 28, **recipe.model.config)
    assert model.config.position == "none"
    assert model.config.layer_scale is None


def test_percent_of_nothing_is_refused():
    with pytest.raises(Error, match="percentage of itself"):
        Duration(5, "percent").steps(100, 10)


def test_settings_reach_every_field_and_the_model():
    changed = with_settings(
        Recipe(),
        {
            "optim.name": "sgd",
            "optim.lr": "0.03",
            "optim.clip_norm": "none",
            "optim.betas": "[0.9, 0.95]",
            "schedule.warmup": "3 epochs",
            "duration": "7",
            "ema": "none",
            "compile": "true",
            "augment.flip": "0.5",
            "target.mixup": "0.2",
            "model.depth": "2",
            "model.pool": "mean",
            "model.layer_scale": "1e-4",
            "seed": "3",
        },
    )
    assert (changed.optim.name, changed.optim.lr, changed.optim.clip_norm) == ("sgd", 0.03, None)
    assert changed.optim.betas == (0.9, 0.95)
    assert changed.schedule.warmup == Duration(3, "epochs")
    assert changed.duration == Duration(7, "steps")
    assert (changed.ema, changed.compile, changed.seed) == (None, True, 3)
    assert changed.model.config == {"depth": 2, "pool": "mean", "layer_scale": 1e-4}
    assert changed.augment.flip == 0.5
    assert changed.target.mixup == 0.2


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("optim.lrr", "1", "did you mean 'lr'"),
        ("optm.lr", "1", "did you mean 'optim'"),
        ("optim.lr", "fast", "optim.lr cannot be 'fast'"),
        ("batch_size", "1.5", "batch_size cannot be 1.5"),
        ("batch_size", "0", "at least 1"),
        ("optim.name", "adamv", "did you mean 'adamw'"),
        ("schedule.warmup", "3 fortnights", "unknown unit 'fortnights'"),
        ("schedule.warmup", "soon", "write it as"),
        ("compile", "perhaps", "compile cannot be"),
        ("seed.x", "1", "seed has no parts"),
        ("ema", "1.5", "decay"),
    ],
)
def test_a_wrong_setting_names_what_and_how(name, value, sentence):
    with pytest.raises(Error, match=sentence):
        with_settings(Recipe(), {name: value})


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().optim.lr = 1.0  # type: ignore[misc]


def test_equal_recipes_have_equal_json():
    assert (
        Recipe(schedule=Schedule(kind="linear")).to_json()
        == with_settings(Recipe(), {"schedule.kind": "linear"}).to_json()
    )


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("examples", [20, 10_000, 1_281_167])
def test_every_recipe_fits_any_amount_of_data(name, examples):
    situation = Situation(model=Model(), examples=examples, classes=10)
    recipe = RECIPES[name](situation)
    assert recipe.name == name
    assert recipe.duration.steps(examples, recipe.batch_size) >= 1
    assert recipe.batch_size <= max(64, examples)  # no picture twice in a batch of a paper's


def test_short_runs_on_small_pictures_are_not_augmented():
    small = Model(name="vit_tiny_patch7_28", image_size=28)
    short, long = (
        RECIPES["scratch"](
            Situation(model=small, examples=10_000, classes=10, duration=Duration(n, "epochs"))
        )
        for n in (5, 60)
    )
    assert short.augment.nothing
    assert not long.augment.nothing
    assert short.target.label_smoothing == 0


def test_a_fit_goes_into_training_and_stays_with_the_model(tmp_path):
    """Letterbox: what was trained is what every verb opens, and timm reads it as its own."""
    images = np.zeros((12, 20, 40, 3), np.uint8)
    images[:6] = 255
    run = train(
        (images, np.repeat([0, 1], 6)),
        model="vit_mu_patch7_28",
        out=tmp_path,
        steps=1,
        batch_size=4,
        set={"fit": "letterbox", "model.depth": 1},
    )
    preprocessing = vitrail.load_model(run.folder).preprocessing
    assert (preprocessing.fit, preprocessing.crop) == ("letterbox", 1.0)
    about = json.loads((run.folder / "config.json").read_text())
    assert about["pretrained_cfg"]["crop_mode"] == "border"
    assert about["pretrained_cfg"]["crop_pct"] == 1.0
    with pytest.raises(Error, match="fit"):
        Recipe(fit="stretch")
