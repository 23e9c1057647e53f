"""Temperatures of models that `train` made: fitted on one half, judged on the other."""

import numpy as np
import pytest
import torch

import vitrail
from vitrail.data.loader import eval_batches
from vitrail.data.sources import open_splits
from vitrail.evaluation.accuracy import evaluate
from vitrail.evaluation.calibration import calibration, fit


@pytest.mark.parametrize("seed", range(5))
def test_the_fitted_temperature_lowers_the_loss_on_held_out_images(seed, tmp_path):
    splits = open_splits("demo:fashion")
    picked = np.random.default_rng(seed).permutation(len(splits["train"]))[:150]
    some = splits["train"].subset(np.sort(picked))
    # 150 images learned by heart: a model that is far too sure of itself.
    run = vitrail.train(
        (some.arrays(np.arange(150)), [some.classes[k] for k in some.labels]),
        model="vit_nano_patch7_28",
        out=tmp_path / "run",
        steps=100,
        batch_size=32,
        val_fraction=0.1,
        seed=seed,
        set={"optim.lr": 3e-3, "model.depth": 2, "target.mixup": 0.0, "eval_every": 100},
    )
    model = vitrail.load_model(run.folder)
    test = splits["test"]
    found = evaluate(
        model, eval_batches(test, model.preprocessing, 250), test.classes, keep_logits=True
    )
    # Images are grouped by class: every second one is held out.
    here, there = slice(0, None, 2), slice(1, None, 2)
    fitted = fit(found.logits[here], found.labels[here])
    held_out = calibration(found.logits[there], found.labels[there], fitted.temperature)
    assert held_out.after.nll < held_out.before.nll - 0.1
    assert fitted.temperature > 1.3
    assert held_out.after.brier < held_out.before.brier
    assert held_out.after.ece < held_out.before.ece
    before, after = found.logits[there], found.logits[there] / fitted.temperature
    assert torch.equal(before.argmax(1), after.argmax(1))
