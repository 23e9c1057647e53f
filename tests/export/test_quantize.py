"""Smaller numbers: the gate refuses what is broken, and layers that hurt go back into float."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import vitrail
from tests.commands import call
from tests.export.small import answered, class_folder, pictures, sure_model
from tests.export.test_fold import build, bytes_for
from vitrail.data.examples import ArraySource
from vitrail.export import make, quantize
from vitrail.export.fold import fold
from vitrail.export.graph import program_of, to_onnx
from vitrail.export.make import Wanted, make_bundle

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("quantised")
    model = sure_model()
    vitrail.save_model(model, place / "model")
    source = answered(model, pictures(64))
    class_folder(place / "good" / "train", answered(model, pictures(32, seed=7)))
    class_folder(place / "good" / "test", source)
    black = ArraySource(np.zeros((8, 40, 40, 3), np.uint8), np.arange(8) % 4, source.classes)
    class_folder(place / "black" / "train", black)
    class_folder(place / "black" / "test", source)
    return place


@pytest.mark.parametrize("kind", ["token", "layer_scale", "cvt", "pvt", "registers"])
def test_balancing_changes_no_logits(kind):
    folded = fold(build(kind))
    images = bytes_for(build(kind), 4)
    balanced = quantize.balanced(folded, images.numpy())
    expected, got = folded(images), balanced(images)
    assert (got - expected).abs().max() < 1e-9 * expected.abs().max()
    assert any(
        not torch.equal(a, b)
        for a, b in zip(*map(nn.Module.parameters, (folded, balanced)), strict=False)
    )


def test_the_first_layer_and_the_head_are_never_int8():
    for kind in ("token", "distilled", "resnet", "bit", "cvt"):
        folded = fold(build(kind))
        layers = quantize.quantisable(folded)
        assert layers
        named = [n for n, p in folded.named_modules() if isinstance(p, nn.Linear | nn.Conv2d)]
        assert named[0] not in layers
        assert not any(name.split(".")[-1] in ("head", "head_dist") for name in layers)
        assert "model.fc" not in layers
        assert "model.head.fc" not in layers


def test_a_layer_with_an_outlier_hurts_most():
    folded = fold(sure_model())
    with torch.no_grad():  # one great weight leaves no steps for the others of its row
        folded.blocks[0].mlp.fc2.weight[:, 0] = 300.0
        folded.blocks[0].mlp.fc1.bias[0] = -50.0  # whose input is nothing, so nothing changes
    layers = quantize.quantisable(folded)
    before = {name: tensor.clone() for name, tensor in folded.state_dict().items()}
    images = np.stack([image[:32, :32] for image in pictures(8)])
    found = quantize.hurts(folded, images, layers)
    assert next(iter(found)) == "blocks.0.mlp.fc2"
    assert set(found) == set(layers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in folded.state_dict().items())


def weights_of(bundle):
    """Bytes of what holds the weights; of a model this small the rest is as large."""
    files = [bundle / name for name in ("model.onnx", "model.bin") if (bundle / name).exists()]
    return sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_int8_is_smaller_reported_and_as_right(place, tmp_path, to):
    out, _ = call(
        *("export", place / "model", "--to", to, "--int8", "--check", place / "good"),
        *("--max-drop", 9, "--out", tmp_path / "b", "--json"),
    )
    told = json.loads(out)
    assert told == {"out": str(tmp_path / "b"), "written": True} | json.loads(
        (tmp_path / "b" / "bundle.json").read_text()
    )
    assert told["precision"] == "int8"
    assert weights_of(tmp_path / "b") < 0.85 * told["gate"]["reference_bytes"]
    assert told["gate"]["max_logit_gap"] > 0
    layers = told["quantisation"]["layers"]
    assert [layer["hurt"] for layer in layers] == sorted((r["hurt"] for r in layers), reverse=True)
    assert sum(layer["int8"] for layer in layers) >= len(layers) / 4
    logits = vitrail.Classifier(tmp_path / "b").logits(list(pictures(8, seed=3)))
    exact = vitrail.Classifier(place / "model").logits(list(pictures(8, seed=3)))
    assert np.abs(logits - exact).max() < 0.3 * np.abs(exact).max()


def test_a_quantisation_calibrated_on_nothing_is_refused(place, tmp_path, monkeypatch):
    words = ("export", place / "model", "--to", "onnx", "--int8", "--check", place / "black")
    out, err = call(*words, "--out", tmp_path / "b", status=3)
    assert "refused: top-1 falls from 100.00 %" in err
    assert "no bundle was left" in err
    assert "top-1" in out
    assert not (tmp_path / "b").exists()
    assert list(tmp_path.iterdir()) == []
    call(*words, "--out", tmp_path / "b", "--keep-anyway", status=3)
    gate = json.loads((tmp_path / "b" / "bundle.json").read_text())["gate"]
    assert gate["passed"] is False
    assert gate["exported_top1"] < 0.995
    assert "The gate refused it" in (tmp_path / "b" / "README.md").read_text()


def test_the_worst_layers_go_back_into_float_until_it_passes(place, tmp_path, monkeypatch):
    culprit = "blocks.0.mlp.fc1"
    plain, tried = quantize.onnx_int8, []

    def breaks_one_layer(model, images, layers):
        tried.append(layers)
        images = np.zeros_like(images) if culprit in layers else images
        return plain(model, images, layers)

    order = quantize.hurts

    def culprit_first(*args):
        found = order(*args)
        return {culprit: 9.0} | {name: hurt for name, hurt in found.items() if name != culprit}

    monkeypatch.setattr(quantize, "onnx_int8", breaks_one_layer)
    monkeypatch.setattr(quantize, "hurts", culprit_first)
    model = vitrail.load_model(place / "model")
    source = answered(model, pictures(64))
    wanted = Wanted(to="onnx", precision="int8", source=source, max_drop=5, samples=40)
    said = []
    made = make_bundle(model, tmp_path / "b", wanted, say=said.append)
    assert made.written
    assert culprit in tried[0]
    assert "balancing the channels" in " ".join(said)
    assert made.manifest.quantisation["balanced"] is True
    assert culprit not in tried[-1]
    assert "more layers go into float" in " ".join(said)
    rows = {row["name"]: row["int8"] for row in made.manifest.quantisation["layers"]}
    assert rows[culprit] is False
    assert any(rows.values())


@pytest.mark.parametrize(
    ("to", "flag"),
    [
        ("onnx", "--fp16"),
        ("openvino", "--int8-weights"),
        pytest.param("onnx", "--int8-weights", marks=pytest.mark.slow),
        pytest.param("openvino", "--fp16", marks=pytest.mark.slow),
    ],
)
def test_smaller_weights_are_smaller_and_as_right(place, tmp_path, to, flag):
    out, _ = call(
        *("export", place / "model", "--to", to, flag, "--check", place / "good"),
        *("--max-drop", 9, "--out", tmp_path / "b", "--json"),
    )
    gate = json.loads(out)["gate"]
    assert weights_of(tmp_path / "b") < 0.75 * gate["reference_bytes"]
    assert gate["agreement"] > 0.9


def test_fp16_keeps_norms_and_softmax_in_float32():
    import onnx

    made = quantize.onnx_fp16(to_onnx(program_of(fold(sure_model()))))
    halves = {t.name for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert halves
    for node in made.graph.node:
        if node.op_type == "LayerNormalization":
            assert not halves & set(node.input)
    assert made.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert made.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_every_layer_of_the_graph_is_known_by_its_module():
    folded = fold(sure_model())
    found = set(quantize.onnx_layers(to_onnx(program_of(folded))).values())
    assert set(quantize.quantisable(folded)) <= found


def test_the_tries_begin_with_everything_in_int8_and_end_with_most_in_float():
    assert make.TRIES[0] == (False, 0.0)
    assert list(make.TRIES) == sorted(make.TRIES)
