"""Few-shot accuracy while pre-training: measured right, and nothing is changed by it."""

import json

import numpy as np
import pytest
import torch

from tests.commands import call, records
from vitrail.data.sources import ArraySource
from vitrail.evaluation.features import extract
from vitrail.evaluation.fewshot import fewshot
from vitrail.recipes.run import train
from vitrail.weights.folder import load_model


def shapes(n: int, seed: int) -> ArraySource:
    """Two classes told apart by where it is light."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 90, (n, 28, 28, 3), np.uint8)
    labels = np.arange(n) % 2
    images[labels == 0, :14] += 120
    images[labels == 1, 14:] += 120
    return ArraySource(images, labels, ["top", "bottom"])


def run(out, **words):
    return train(
        shapes(64, 0),
        "vit_nano_patch7_28",
        out=out,
        recipe="masked_patch",
        steps=6,
        batch_size=16,
        val_fraction=0.2,
        set={"model.depth": 1, "model.width": 24, "model.heads": 2, "model.mlp_width": 24},
        **words,
    )


def test_it_is_the_protocol_on_the_averaged_weights(tmp_path):
    watched = shapes(40, 1)
    run(tmp_path / "watched", watch=watched, watch_every=4)
    told = records(tmp_path / "watched", "fewshot")
    assert [record["step"] for record in told] == [4, 6]
    model = load_model(tmp_path / "watched")
    rest, test = watched.split(0.2, seed=0)
    x, y = (extract(model, source, cache=False) for source in (rest, test))
    expected = fewshot(x.values, x.labels, y.values, y.labels, shots=(1, 5, 10), seeds=3)
    for shot, mean in zip(expected.shots, expected.mean, strict=True):
        assert told[-1][f"{shot}-shot"] == pytest.approx(float(mean))


def test_a_watched_run_is_the_same_run(tmp_path):
    run(tmp_path / "plain")
    run(tmp_path / "watched", watch=shapes(40, 1), watch_every=2)
    one, other = (load_model(tmp_path / name).state_dict() for name in ("plain", "watched"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    config = json.loads((tmp_path / "watched/config.json").read_text())
    assert config["vitrail"]["recipe"]["name"] == "masked_patch"


def test_mistakes(tmp_path):
    words = ("train", "demo:fashion", "--model", "vit_nano_patch7_28", "--steps", "2")
    words = (*words, "--out", tmp_path / "x")
    assert "no such folder" in call(*words, "--watch", tmp_path / "none", status=2)[1]
    assert (
        "at the most" in call(*words, "--watch", "demo:fashion", "--watch-every", "-1", status=2)[1]
    )
    assert not (tmp_path / "x").exists()
