"""What explanations find on a model that has learned: `benchmarks/explanations.py`, small."""

import numpy as np
import pytest
import torch

import vitrail
from vitrail.data.sources import open_source
from vitrail.inspection.relevance import explain, predicted
from vitrail.inspection.scores import (
    curves,
    paired_difference,
    patch_of,
    patch_order,
    random_curves,
)


@pytest.mark.slow
def test_relevance_beats_random_patches(tmp_path):
    vitrail.train(
        "demo:fashion",
        model="vit_nano_patch7_28",
        out=tmp_path / "run",
        steps=300,
        batch_size=64,
        set={"optim.lr": 1e-3, "model.pool": "token"},
    )
    model, test = vitrail.load_model(tmp_path / "run"), open_source("demo:fashion", split="test")
    numbers = np.linspace(0, len(test) - 1, 100).round().astype(int).tolist()
    images = torch.stack([model.preprocessing(test.example(i).image) for i in numbers])
    classes = predicted(model, images)
    truth = torch.tensor([int(test.labels[i]) for i in numbers])
    assert (classes == truth).float().mean() > 0.6  # it has learned something to explain
    patch = patch_of(model, (28, 28))
    order = patch_order(explain(model, images, "relevance", classes), patch)
    for mode, baseline in (("deletion", "grey"), ("deletion", "black"), ("insertion", "black")):
        words = {"baseline": baseline, "targets": classes}
        found = curves(model, images, order, patch, mode, **words)
        chance = random_curves(model, images, patch, mode, draws=3, **words)
        difference = paired_difference(found.areas, chance.curves.areas)
        if mode == "deletion":
            assert difference.high < 0, (baseline, difference)
        else:
            assert difference.low > 0, (baseline, difference)
