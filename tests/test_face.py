"""The public face: what `import vitrail` gives, and what it does not cost."""

import json
import subprocess
import sys

import numpy as np
import pytest

import vitrail


def test_every_name_is_there():
    for name in vitrail.__all__:
        assert getattr(vitrail, name) is not None
        assert name in dir(vitrail)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vitrail.trian  # noqa: B018


def test_the_import_is_free():
    script = "import sys, vitrail; print('torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_errors_are_value_errors_with_their_names():
    assert issubclass(vitrail.Error, ValueError)
    assert issubclass(vitrail.WeightsError, vitrail.Error)
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=3)
    half = {name: t for name, t in model.state_dict().items() if "norm" not in name}
    with pytest.raises(vitrail.WeightsError) as raised:
        vitrail.load_weights(model, {**half, "nonsense": model.cls_token})
    assert "norm.weight" in raised.value.missing
    assert raised.value.unexpected == ["nonsense"]


def test_training_on_arrays_from_python(tmp_path):
    numbers = np.random.default_rng(0)
    labels = np.array(["dark", "light"] * 60)
    images = numbers.integers(0, 120, (120, 16, 16, 3), dtype=np.uint8)
    images[labels == "light"] += 130
    words = {"model": "vit_mu_patch8_16", "steps": 40, "batch_size": 16, "lr": 3e-3}
    run = vitrail.train((images, labels), out=tmp_path / "run", **words)
    assert run.top1 == 1.0
    assert run.steps == run.steps_this_run == 40
    json.dumps(run.to_json())
    classify = vitrail.Classifier(tmp_path / "run")
    (answer,) = classify(np.full((20, 30, 3), 240, np.uint8), top_k=1)
    assert answer[0][0] == "light"
    again = vitrail.train((images, labels), out=tmp_path / "run", **words)
    assert again.steps_this_run == 0


def test_best_weights_can_be_asked_for(tmp_path):
    numbers = np.random.default_rng(1)
    images = numbers.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(60) % 3  # nothing to be learned: the best look comes early or late by chance
    run = vitrail.train(
        (images, labels),
        model="vit_mu_patch8_16",
        out=tmp_path / "run",
        steps=60,
        batch_size=16,
        val_fraction=0.4,
        set={"eval_every": 2, "optim.lr": 3e-3},
    )
    section = json.loads((run.folder / "config.json").read_text())["vitrail"]
    best = vitrail.load_model(run.folder, which="best")
    final = vitrail.load_model(run.folder)
    differs = any(
        not np.array_equal(a.detach().numpy(), b.detach().numpy())
        for a, b in zip(best.parameters(), final.parameters(), strict=True)
    )
    assert differs == (section["best"]["step"] != 60)
    assert differs == (run.folder / "best.safetensors").exists()
