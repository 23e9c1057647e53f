"""Few-shot accuracy while a run goes on: what is measured, when, and that it changes nothing."""

import numpy as np
import pytest

from tests.commands import records
from vitrail.evaluation.features import extract
from vitrail.evaluation.fewshot import Ridge
from vitrail.kit.errors import Error
from vitrail.recipes.run import train
from vitrail.training.fewshots import open_few_shots
from vitrail.weights.folder import load_model

RNG = np.random.default_rng(0)


def pictures(count: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Noise of a brightness of its class's own."""
    labels = np.arange(count) % classes
    images = RNG.integers(0, 60, (count, 28, 28, 3)) + labels[:, None, None, None] * 60
    return images.astype(np.uint8), labels


def test_a_run_without_labels_is_watched_by_few_shot_accuracy(tmp_path):
    other, words = pictures(90), {"model": "vit_mu_patch7_28", "steps": 6, "batch_size": 8}
    words |= {"recipe": "masked_patch", "set": {"eval_every": 6}}
    data = pictures(48)
    run = train(data, out=tmp_path / "run", fewshot=other, fewshot_every=2, **words)
    looks = records(run.folder, "fewshot")
    assert [look["step"] for look in looks] == [2, 4, 6]
    model, shots = load_model(run.folder), open_few_shots(other)
    train_x, test_x = (extract(model, s, cache=False) for s in (shots.train, shots.test))
    # All images of a class at once are a bound that 10 of 15 come close to here.
    ridge = Ridge().fit(train_x.values, train_x.labels)
    bound = (np.asarray(ridge.predict(test_x.values)) == test_x.labels).mean()
    assert looks[-1]["shot_10"] == pytest.approx(bound, abs=0.1)
    assert looks[-1]["shot_10"] > 0.6 > 1 / 3
    assert "few-shot, 10" in (run.folder / "report.html").read_text()
    plain = train(data, out=tmp_path / "plain", **words)
    a, b = ((one.folder / "model.safetensors").read_bytes() for one in (run, plain))
    assert a == b


def test_the_shots_are_of_every_class_and_never_of_the_test_images():
    found = open_few_shots(pictures(300), shots=(2, 1))
    assert found.shots == (1, 2)
    assert np.bincount(found.train.labels).tolist() == [6, 6, 6]
    assert len(found.test) == 150
    assert not {*found.train.keys} & {*found.test.keys}


def test_too_few_images_of_a_class_are_said():
    with pytest.raises(Error, match="10 shots need so many images of every class, and one has 4"):
        open_few_shots(pictures(24))
