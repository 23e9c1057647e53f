"""Every recipe through the real `train`, as small as `tiny` makes it, and what each one says."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

import vitrail
from vitrail.kit.errors import Error
from vitrail.recipes import DEFAULT_MODELS, NEEDS_WEIGHTS, RECIPES
from vitrail.recipes.run import train
from vitrail.recipes.situation import Situation
from vitrail.recipes.tiny import tiny
from vitrail.training.optim import Rates
from vitrail.training.recipe import Duration, Model

CONTRACT = (
    *("vit_pretrain", "vit_finetune", "augreg", "better_plain", "deit", "deit_distill", "deit3"),
    *("cvt", "bit", "t2t", "pvt", "masked_patch", "mae"),
    *("finetune", "lora", "head_only", "head_then_all"),
)
VARIANTS = (
    *("deit_distill:soft", "deit3:imagenet21k", "deit3:finetune224", "bit:pretrain"),
    *("masked_patch:color4x4", "masked_patch:pixels", "finetune:mae"),
)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 72, 72, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def situation(name: str = "vit_base_patch16_224", **facts) -> Situation:
    return Situation(**{"model": Model(name=name), "examples": 1_281_167, "classes": 1000, **facts})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small model of these classes, to start from and to learn from."""
    out = tmp_path_factory.mktemp("trained") / "run"
    return train((IMAGES, LABELS), model="vit_tiny_patch16_224", out=out, tiny=True).folder


@pytest.mark.parametrize(
    "name", [*RECIPES, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)]
)
def test_every_recipe_runs_at_a_laptops_size(name, tmp_path, trained):
    base = name.partition(":")[0]
    words = {}
    if base in (*NEEDS_WEIGHTS, "vit_finetune") or name == "finetune:mae":
        words = {"weights": trained, "image_size": 64}
    if base == "vit_finetune":
        words["lr"] = 0.01  # the grid has tests of its own
    if base == "deit_distill":
        words = {"teacher": trained}
    run = train((IMAGES, LABELS), recipe=name, out=tmp_path / "run", tiny=True, **words)
    recipe = json.loads((run.folder / "config.json").read_text())["vitrail"]["recipe"]
    assert recipe["name"] == base
    assert run.steps == 4
    assert np.isfinite(run.metrics["val"]["loss"])
    opened = vitrail.load_model(run.folder)
    if recipe["masked"]["kind"] == "none":
        assert opened.labels == ["0", "1", "2", "3"]
    else:
        assert (opened.num_classes, opened.labels) == (0, None)
        again = train((IMAGES, LABELS), weights=run.folder, out=tmp_path / "tuned", tiny=True)
        assert again.top1 is not None


def test_an_encoder_goes_on_from_weights_that_have_a_head(tmp_path, trained):
    run = train((IMAGES, LABELS), recipe="mae", weights=trained, out=tmp_path / "run", tiny=True)
    assert vitrail.load_model(run.folder).num_classes == 0


def test_the_contracts_recipes_are_there_and_say_what_they_are():
    assert set(CONTRACT) <= set(RECIPES)
    for name, recipe in RECIPES.items():
        told = inspect.getdoc(recipe) or ""
        assert "Command: ``vitrail" in told, name
        assert "Expected:" in told, name
        if name not in ("scratch", "demo", "head_only", "head_then_all", "finetune"):
            assert "arXiv" in told, name
        command = re.search(r"``(vitrail.*?)``", told.replace("\n", " "))
        assert command is not None
        if name not in ("scratch", "finetune", "demo"):
            assert f"--recipe {name}" in command[1], name


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"demo"}))
def test_what_the_user_decides_stays_decided(name):
    facts = situation(
        DEFAULT_MODELS.get(name, "vit_base_patch16_224"),
        duration=Duration(7),
        batch_size=32,
        image_size=64,
    )
    recipe = RECIPES[name](facts)
    assert recipe.name == name
    assert recipe.duration == Duration(7)
    assert recipe.batch_size == 32
    assert recipe.model.image_size is None  # the model that was handed in has the size
    assert tiny(recipe).duration.unit == "steps"


@pytest.mark.parametrize(
    ("model", "variant", "lr", "decay", "dropout", "epochs", "curve"),
    [
        ("vit_base_patch16_224", "", 3e-3, 0.3, 0.1, 300, "cosine"),
        ("vit_large_patch16_224", "imagenet21k", 1e-3, 0.03, 0.1, 90, "linear"),
        ("vit_base_patch32_224", "jft", 8e-4, 0.1, 0.0, 7, "linear"),
        ("vit_large_patch32_224", "jft", 6e-4, 0.1, 0.0, 7, "linear"),
        ("vit_large_patch16_224", "jft", 4e-4, 0.1, 0.0, 14, "linear"),
        ("vit_huge_patch14_224", "jft", 3e-4, 0.1, 0.0, 14, "linear"),
        ("resnetv2_50x2_bit", "jft", 1e-3, 0.1, None, 7, "linear"),
        ("resnetv2_152x2_bit", "jft", 6e-4, 0.1, None, 7, "linear"),
        ("vit_large_r50_s32_224", "jft", 2e-4, 0.1, 0.0, 7, "linear"),
        ("vit_base_r50_s16_224", "jft", 8e-4, 0.1, 0.0, 7, "linear"),
    ],
)
def test_rows_of_the_vit_papers_table_3(model, variant, lr, decay, dropout, epochs, curve):
    examples = {"": 1_281_167, "imagenet21k": 14_197_122, "jft": 303_000_000}[variant]
    facts = situation(model, variant=variant, examples=examples)
    recipe = RECIPES["vit_pretrain"](facts)
    assert recipe.optim.lr == pytest.approx(lr)
    assert recipe.optim.weight_decay == decay
    assert recipe.model.config.get("dropout") == dropout
    assert recipe.duration == Duration(epochs, "epochs")
    assert recipe.schedule.kind == curve
    assert recipe.schedule.warmup == Duration(10_000)
    assert recipe.batch_size == 4096


@pytest.mark.parametrize(
    ("examples", "steps", "share", "rates"),
    [
        (3_680, 500, 0.1, (0.001, 0.003, 0.01, 0.03)),
        (50_000, 10_000, 0.02, (0.001, 0.003, 0.01, 0.03)),
        (1_281_167, 20_000, 0.01, (0.003, 0.01, 0.03, 0.06)),
    ],
)
def test_rows_of_its_table_4(examples, steps, share, rates):
    recipe = RECIPES["vit_finetune"](situation(examples=examples))
    assert recipe.duration == Duration(steps)
    assert (recipe.held_out, recipe.rates) == (share, rates)
    assert (recipe.optim.name, recipe.optim.weight_decay, recipe.optim.clip_norm) == ("sgd", 0, 1)
    assert recipe.model.image_size == 384
    assert recipe.ema is None
    assert not recipe.ema_warmup


def test_a_size_that_the_patch_divides():
    huge = situation("vit_huge_patch14_224")
    assert RECIPES["vit_finetune"](huge).model.image_size == 378


def test_augregs_levels_and_its_choice_by_model():
    from vitrail.recipes.vit import LEVELS

    assert list(LEVELS) == ["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]
    recipe = RECIPES["augreg"](situation(variant="strong1"))
    assert (recipe.augment.rand_layers, recipe.augment.rand_magnitude) == (2, 20)
    assert (recipe.target.mixup, recipe.target.loss) == (0.5, "sigmoid")
    assert recipe.target.head_bias == pytest.approx(-6.9, abs=0.01)
    assert RECIPES["augreg"](situation("vit_tiny_patch16_224")).variant == "light1"
    assert RECIPES["augreg"](situation("vit_small_patch32_224")).variant == "medium1"
    assert RECIPES["augreg"](situation(variant="none")).augment.rand_augment == "none"


def test_deit3_by_size():
    small, large = (
        RECIPES["deit3"](situation(f"deit3_{size}_patch16_224")) for size in ("small", "large")
    )
    assert (small.optim.name, small.optim.lr, large.optim.lr) == ("lamb", 4e-3, 3e-3)
    assert (small.model.image_size, large.model.image_size) == (224, 192)
    assert (small.model.config["drop_path"], large.model.config["drop_path"]) == (0.05, 0.45)
    assert (small.target.loss, small.target.label_smoothing) == ("bce", 0)


def test_bits_resolution_follows_the_pictures():
    little = RECIPES["bit"](situation("resnetv2_50x1_bit", pictures=(32, 32)))
    assert little.model.image_size == 128
    assert little.augment.area[0] ** 0.5 == pytest.approx(128 / 160)
    assert RECIPES["bit"](situation("resnetv2_50x1_bit", pictures=(96, 96))).model.image_size == 384
    largest = RECIPES["bit"](situation("resnetv2_152x4_bit", pictures=(500, 375)))
    assert largest.model.image_size == 480


def test_mistakes_are_answered_with_the_nearest_word(tmp_path):
    def told(**words) -> str:
        with pytest.raises(Error) as error:
            train((IMAGES, LABELS), out=tmp_path / "run", **words)
        assert not (tmp_path / "run").exists()
        return str(error.value)

    assert "did you mean 'deit3'" in told(recipe="deit33")
    assert "did you mean 'medium1'" in told(recipe="augreg:medum1")
    assert "has no variants" in told(recipe="deit:large")
    assert "give one by --weights" in told(recipe="lora")
    assert "name one by --teacher" in told(recipe="deit_distill", tiny=True)
    assert "leave --teacher out" in told(recipe="deit", teacher=tmp_path, tiny=True)
    assert "seeds must be at least 1" in told(seeds=0)


@pytest.mark.parametrize("name", ["vit_pretrain", "deit", "t2t", "mae", "masked_patch"])
def test_a_short_run_reaches_its_peak(name):
    recipe = RECIPES[name](situation(DEFAULT_MODELS[name], examples=1_000, duration=Duration(40)))
    rates = Rates(recipe, 1_000, 40)
    found = [rates(step) for step in range(40)]
    assert max(found) > 0.85 * recipe.optim.lr
    assert found[-1] < 0.1 * recipe.optim.lr
