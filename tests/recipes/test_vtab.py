"""VTAB through the real command, on small archives in their publishers' layout."""

import json

import numpy as np
import pytest
import torch

import vitrail
from tests.commands import call
from tests.data.vtab.test_readers import cifar100_archive
from vitrail.data.loader import eval_batches
from vitrail.data.vtab import open_task
from vitrail.evaluation.accuracy import evaluate
from vitrail.weights.folder import load_model


def sprites(folder) -> None:
    """White squares as dSprites has them: where they lie along x decides the class."""
    folder.mkdir()
    n = 2000
    index = np.arange(n)
    classes = np.stack([0 * index, 0 * index, 0 * index, index % 40, index % 32, index % 7], 1)
    images = np.zeros((n, 64, 64), np.uint8)
    for i in range(n):
        left, top = 1 + classes[i, 4] * 54 // 31, 4 + 7 * classes[i, 5]
        images[i, top : top + 9, left : left + 9] = 1
    np.savez_compressed(
        folder / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        imgs=images,
        latents_classes=classes.astype(np.int64),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("vtab")
    sprites(root / "dsprites")
    cifar100_archive(root / "cifar100")
    (root / "dtd").mkdir()
    (root / "dtd/dtd-r1.0.1.tar.gz").write_bytes(b"\x1f\x8b cut short")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    vitrail.save_model(vitrail.create_model("vit_nano_patch7_28", num_classes=3), folder)
    return folder


def test_what_is_there_is_run_and_the_rest_is_named(root, model, tmp_path):
    names = ("dsprites_location", "cifar100", "dtd", "clevr_count")
    out, err = call("evaluate", model, "--vtab", root, "--vtab-tasks", *names, "--json")
    found = json.loads(out)
    assert [(task["name"], task["n"]) for task in found["tasks"]] == [
        ("cifar100", 120),
        ("dsprites_location", 200),
    ]
    places = found["tasks"][1]["top1"]
    assert places > 3 / 16  # fresh weights see where a square is, three times as often as by chance
    (failed,) = found["failed"]
    assert failed["name"] == "dtd"
    assert "cut short" in failed["reason"]
    (missing,) = found["missing"]
    assert missing["name"] == "clevr_count"
    assert "CLEVR_v1.0.zip" in missing["files"]
    assert missing["published"].startswith("https://")
    assert found["mean"] is None
    assert found["groups"]["structured"] is None
    said, err = call("evaluate", model, "--vtab", root, "--vtab-tasks", *names)
    assert "not whole" in said
    assert "missing: clevr_count: put CLEVR_v1.0.zip" in err
    assert "dtd cannot be read" in err


def test_means_are_over_whole_groups():
    from vitrail.data.vtab import TASKS
    from vitrail.recipes.vtab import VTAB, TaskResult

    every = tuple(TaskResult(task, 0.01 * k, 1) for k, task in enumerate(TASKS))
    whole = VTAB("linear", every, (), ())
    assert whole.mean == pytest.approx(0.09)  # unweighted over the 19
    assert whole.group("natural") == pytest.approx(0.03)
    broken = VTAB("linear", every[1:], (), ((TASKS[0], "x"),))
    assert broken.mean is None
    assert broken.group("natural") is None
    assert broken.group("specialised") == whole.group("specialised")


def test_fine_tuning_is_the_papers_and_goes_on(root, model, tmp_path):
    from vitrail.recipes.vtab import vtab

    small = {"model.image_size": 28, "duration": "2 steps", "batch_size": 4}
    words = {"protocol": "finetune", "out": tmp_path, "settings": small}
    result = vtab(str(model), root, tasks=["dsprites_location"], **words)
    recipe = json.loads((tmp_path / "dsprites_location/config.json").read_text())["vitrail"][
        "recipe"
    ]
    assert recipe["variant"] == "vtab"
    assert recipe["optim"]["name"] == "sgd"
    assert recipe["optim"]["weight_decay"] == 0
    # BiT's exceptions: neither mirrored nor cropped, since that would change the label.
    assert recipe["augment"]["flip"] == 0
    assert recipe["augment"]["crop"] == "none"
    tuned = load_model(tmp_path / "dsprites_location")
    assert tuned.num_classes == 16
    test = open_task(root, "dsprites_location")["test"]
    right = evaluate(tuned, eval_batches(test, tuned.preprocessing, 64), test.classes).top1
    assert result.results[0].top1 == right
    again = vtab(str(model), root, tasks=["dsprites_location"], **words)
    assert again.results[0].top1 == right


def test_the_papers_settings(root, model):
    """2,500 steps of 512 at 384 pixels, SGD at 0.01, on all of the 1,000 (appendix B.1.1)."""
    from vitrail.recipes.run import choose_recipe
    from vitrail.recipes.situation import Situation
    from vitrail.training.recipe import Model

    situation = Situation(
        model=Model(name="vit_base_patch16_224"), examples=1000, classes=10, variant="vtab"
    )
    recipe = choose_recipe("vit_finetune", situation, {})
    assert recipe.duration.steps(1000, recipe.batch_size) == 2500
    assert recipe.batch_size == 512
    assert recipe.model.image_size == 384
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.momentum) == ("sgd", 0.01, 0.9)
    assert recipe.optim.weight_decay == 0
    assert recipe.rates == ()


def test_mistakes(root, model, tmp_path):
    assert "leave" in call("evaluate", model, root, "--vtab", root, status=2)[1]
    assert "needs DATA" in call("evaluate", model, status=2)[1]
    assert "is no folder" in call("evaluate", model, "--vtab", tmp_path / "x", status=2)[1]
    assert "holds no task" in call("evaluate", model, "--vtab", tmp_path, status=2)[1]
    words = ("evaluate", model, "--vtab", root, "--vtab-protocol", "finetune")
    assert "give --out" in call(*words, status=2)[1]
    said = call("evaluate", model, "--vtab", root, "--vtab-tasks", "eurosta", status=2)[1]
    assert "did you mean 'eurosat'" in said
