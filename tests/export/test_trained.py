"""The gate on a model that has learned something: what it lets through, what it refuses and why."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import vitrail
from tests.commands import call
from vitrail.data.sources import open_source
from vitrail.export import make, quantize
from vitrail.export.bundle import read_manifest, write_manifest
from vitrail.export.fold import fold
from vitrail.export.make import Wanted, make_bundle
from vitrail.export.merging import fold_merging
from vitrail.export.quantize import hurts, quantisable

pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")
DATA = "demo:fashion"
LEARNED = 0.6  # of the test images at least: chance is 0.1
CHECKED = ("--check", DATA, "--samples", 400)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A ViT that `train` made, and a torch and an OpenVINO bundle of it."""
    place = tmp_path_factory.mktemp("trained")
    call(
        *("train", DATA, "--model", "vit_mu_patch7_28", "--steps", 150, "--lr", 0.003),
        *("--batch-size", 64, "--out", place / "model", "--set", "model.depth=3"),
        *("model.pool=token", "model.position=learned", "model.width=48", "model.heads=3"),
    )
    for to in ("torch", "openvino"):
        call("export", place / "model", "--to", to, *CHECKED, "--out", place / to)
    return place


@pytest.fixture
def model(place):
    return vitrail.load_model(place / "model")


def gate_of(bundle):
    return json.loads((bundle / "bundle.json").read_text())["gate"]


def verified(place, bundle, status=0):
    words = ("verify", bundle, "--against", place / "model", *CHECKED, "--json")
    out, err = call(*words, status=status)
    return json.loads(out), err


def loosely_verified(place, bundle):
    """With ten points allowed."""
    words = ("verify", bundle, "--against", place / "model", *CHECKED, "--max-drop", 10)
    return json.loads(call(*words, "--json")[0])


@pytest.mark.parametrize("to", ["torch", "openvino"])
def test_verify_asks_the_gate_again(place, to):
    told, _ = verified(place, place / to)
    assert told["passed"] is True
    assert told["gate"]["reference_top1"] > LEARNED
    assert told["gate"]["agreement"] == 1
    before = gate_of(place / to)
    for name in ("reference_top1", "exported_top1", "max_logit_gap"):
        assert told["gate"][name] == pytest.approx(before[name], abs=1e-6)


def changed(place, to, folder, **fields):
    """A bundle whose manifest says something else, its own hash right for that."""
    bundle = shutil.copytree(place / to, folder / "changed")
    write_manifest(bundle, replace(read_manifest(bundle), **fields))
    return bundle


@pytest.mark.parametrize("to", ["torch", "openvino"])
def test_labels_in_another_order_lose_the_accuracy(place, tmp_path, to):
    labels = read_manifest(place / to).labels
    bundle = changed(place, to, tmp_path, labels=[*labels[1:], labels[0]])
    told, err = verified(place, bundle, status=3)
    assert told["gate"]["reference_top1"] > LEARNED
    assert told["gate"]["exported_top1"] < 0.2
    assert "what loses it is the order of the labels in bundle.json" in err


def test_another_resize_loses_the_accuracy(place, tmp_path):
    pre = read_manifest(place / "openvino").preprocessing
    bundle = changed(place, "openvino", tmp_path, preprocessing=pre.replace(crop=0.3))
    told, err = verified(place, bundle, status=3)
    assert told["gate"]["reference_top1"] > LEARNED > told["gate"]["exported_top1"]
    assert "what loses it is the preprocessing in bundle.json" in err


def test_a_wrong_mean_and_deviation_in_the_bundle(place, tmp_path):
    """In its description, where nothing computes with them, and in its graph."""
    pre = read_manifest(place / "openvino").preprocessing
    wrong = pre.replace(mean=(0.0,) * 3, std=(0.1,) * 3)
    _, err = verified(place, changed(place, "openvino", tmp_path, preprocessing=wrong), status=3)
    assert "bundle.json: preprocessing: mean [0.0, 0.0, 0.0] is" in err
    model = vitrail.load_model(place / "model")
    model.preprocessing = wrong
    vitrail.save_model(model, tmp_path / "other")
    call("export", tmp_path / "other", "--to", "openvino", "--no-check", "--out", tmp_path / "b")
    write_manifest(tmp_path / "b", replace(read_manifest(tmp_path / "b"), preprocessing=pre))
    told, err = verified(place, tmp_path / "b", status=3)
    assert told["gate"]["reference_top1"] > LEARNED
    assert told["gate"]["exported_top1"] < told["gate"]["reference_top1"] - 0.02
    assert "what loses it is model.xml" in err


def test_a_torch_bundle_of_other_weights_is_refused(place, model, tmp_path):
    with torch.no_grad():
        model.head.weight.mul_(-1)
    vitrail.save_model(model, tmp_path / "other")
    call("export", tmp_path / "other", "--to", "torch", "--no-check", "--out", tmp_path / "b")
    told, err = verified(place, tmp_path / "b", status=3)
    assert told["gate"]["reference_top1"] > LEARNED > told["gate"]["exported_top1"]
    assert "what loses it is model.safetensors" in err


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_int8_loses_at_most_half_a_point(place, tmp_path, to):
    words = ("--int8", "--check", DATA, "--samples", 2000)
    call("export", place / "model", "--to", to, *words, "--out", tmp_path / "b")
    gate = gate_of(tmp_path / "b")
    assert gate["n"] == 2000
    assert gate["reference_top1"] > LEARNED
    assert gate["reference_top1"] - gate["exported_top1"] <= 0.005
    assert gate["max_logit_gap"] > 0


def test_a_broken_quantisation_is_refused_by_its_name(model, tmp_path, monkeypatch):
    """Every scale of the activations is wrong, whichever layers are in int8."""
    plain = quantize.openvino_int8

    def broken(*args, **options):
        made = plain(*args, **options)
        for operation in made.get_ops():
            if operation.get_type_name() == "FakeQuantize":
                high = operation.input_value(4)
                wrong = openvino.opset13.multiply(high, np.float32(0.3))
                operation.input(4).replace_source_output(wrong.output(0))
        return made

    monkeypatch.setattr(quantize, "openvino_int8", broken)
    monkeypatch.setattr(make, "TRIES", make.TRIES[:2])
    source = open_source(DATA, "test")
    wanted = Wanted(to="openvino", precision="int8", source=source, samples=400)
    made = make_bundle(model, tmp_path / "b", wanted, say=lambda words: None)
    assert made.gate is not None
    _, before, after = made.gate.figures
    assert before > LEARNED
    assert after < before - 0.005
    assert not made.written
    assert not (tmp_path / "b").exists()
    assert "what loses most is int8" in made.gate.reasons[-1]
    names = [step.name for step in made.gate.steps]
    assert names == ["the model", "folding", "balancing", "the graph for openvino", "int8"]
    figures = [step.figure for step in made.gate.steps]
    assert figures[:4] == pytest.approx([before] * 4, abs=0.003)
    assert figures[4] == after


CULPRIT = "blocks.1.attn.proj"


@torch.no_grad()
def plant(model, by=3000.0):
    """Make one channel of what a layer reads so large that int8 leaves nothing of the others.

    What the channel is multiplied by, the layer's weights are divided by: the logits stay.
    """
    attn = model.get_submodule(CULPRIT.removesuffix(".proj"))
    value = 2 * attn.width  # the first channel of the values
    attn.qkv.weight[value] *= by
    attn.qkv.bias[value] *= by
    attn.proj.weight[:, 0] /= by


@pytest.mark.parametrize("to", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_planted_layer_that_hurts_goes_back_into_float(place, model, tmp_path, to):
    images = open_source(DATA, "test").subset(np.arange(64))
    ready = np.stack([model.preprocessing.geometry(images.image(i)) for i in range(64)])
    expected = fold(model)(torch.from_numpy(ready))
    plant(model)
    folded = fold(model)
    assert (folded(torch.from_numpy(ready)) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert next(iter(hurts(folded, ready[:16], quantisable(folded)))) == CULPRIT
    vitrail.save_model(model, tmp_path / "planted")
    words = ("--int8", "--check", DATA, "--samples", 1000, "--out", tmp_path / "b")
    out, err = call("export", tmp_path / "planted", "--to", to, *words)
    assert "refused so: top-1 falls" in err
    gate = gate_of(tmp_path / "b")
    assert gate["reference_top1"] > LEARNED
    assert gate["reference_top1"] - gate["exported_top1"] <= 0.005
    layers = json.loads((tmp_path / "b" / "bundle.json").read_text())["quantisation"]["layers"]
    assert layers[0]["name"] == CULPRIT
    assert layers[0]["int8"] is False
    assert sum(layer["int8"] for layer in layers) >= 0.7 * len(layers)
    assert CULPRIT in out


@pytest.mark.parametrize("to", ["torch", "openvino"])
def test_merged_tokens_have_a_line_of_their_own(place, tmp_path, to):
    words = (*CHECKED, "--max-drop", 10, "--merge-tokens", 2, "--out", tmp_path / "b")
    out, _ = call("export", place / "model", "--to", to, *words)
    assert "merging tokens" in out
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["merge_tokens"] == 2
    assert "each block merges 2 tokens" in (tmp_path / "b" / "README.md").read_text().lower()
    gate = gate_of(tmp_path / "b")
    steps = {step["name"]: step for step in gate["steps"]}
    assert steps["folding"]["figure"] == gate["reference_top1"] > LEARNED
    assert steps["merging tokens"]["figure"] == pytest.approx(gate["exported_top1"], abs=0.005)
    assert steps["merging tokens"]["moved"] > 1e-3 > steps["folding"]["moved"]
    told = loosely_verified(place, tmp_path / "b")
    assert told["gate"]["exported_top1"] == gate["exported_top1"]
    images = list(np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8))
    classify = vitrail.Classifier(tmp_path / "b")
    merged = fold_merging(vitrail.load_model(place / "model"), 2)
    shown = np.stack([classify.preprocessing.geometry(image) for image in images])
    expected = merged(torch.from_numpy(shown)).numpy()
    assert np.abs(classify.logits(images) - expected).max() < 1e-4 * np.abs(expected).max()


def test_merging_that_loses_too_much_names_itself(place, tmp_path):
    words = ("--check", DATA, "--samples", 400, "--merge-tokens", 8, "--max-drop", 0)
    _, err = call(
        "export", place / "model", "--to", "torch", *words, "--out", tmp_path / "b", status=3
    )
    assert "what loses most is merging tokens" in err
    assert not (tmp_path / "b").exists()
    _, err = call("export", place / "model", "--to", "torch", *CHECKED, "--merge-tokens", 9,
                  "--out", tmp_path / "b", status=2)  # fmt: skip
    assert "half of the 16 patches" in err
