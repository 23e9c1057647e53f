"""Images with any number of labels, from the file to the end of `train` and through `evaluate`."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from tests.commands import call, records
from tests.training.processes import finished, torchrun
from vitrail.export.bundle import read_manifest, write_manifest
from vitrail.recipes.run import train

COLORS = ("red", "green", "blue")
SMALL = ("--model", "vit_mu_patch7_28", "--batch-size", "16")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A CSV of pictures that have red, green and blue in them or not, eight combinations."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    with (folder / "all.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "labels"))
        for i in range(120):
            there = [k for k in range(3) if i >> k & 1]
            image = rng.integers(0, 80, (28, 28, 3), np.uint8)
            image[..., there] += 120
            Image.fromarray(image).save(folder / f"{i}.png")
            rows.writerow((f"{i}.png", "|".join(COLORS[k] for k in there)))
    return folder / "all.csv"


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> tuple[Path, str]:
    """A run on them, and what it said."""
    out = tmp_path_factory.mktemp("several") / "run"
    words = ("train", pictures, *SMALL, "--steps", "40", "--lr", "0.003", "--out", out)
    said, _ = call(*words, "--set", "eval_every=20", "target.class_weights=balanced")
    return out, said


def test_a_run_is_watched_and_measured_by_mean_average_precision(run, pictures):
    out, said = run
    assert "mean average precision" in said
    looks = records(out, "eval")
    assert [one["step"] for one in looks] == [20, 40]
    about = json.loads((out / "config.json").read_text())["vitrail"]
    figures = about["metrics"]["val"]
    assert set(figures) == {"mean_average_precision", "macro_f1", "loss", "n"}
    assert about["best"]["val"] == {
        "mean_average_precision": max(one["mean_average_precision"] for one in looks)
    }
    # Three colours that a mean tells apart: far above the half that chance gives.
    assert figures["mean_average_precision"] > 0.9
    page = (out / "report.html").read_text()
    assert "mean average precision" in page
    assert "average precision</th>" in page
    printed, _ = call("evaluate", out, pictures, "--split", "val", "--json")
    again = json.loads(printed)
    for name in ("mean_average_precision", "macro_f1", "loss"):
        assert again[name] == pytest.approx(figures[name], rel=1e-5)
    # The loss is the summed binary cross-entropy that training has, without its weights.
    assert 0 < again["loss"] < 3 * np.log(2)
    # Each label has a probability of its own: two that are there are both likely.
    printed, _ = call("predict", out, pictures.parent / "5.png", "--format", "jsonl")
    (answer,) = map(json.loads, printed.splitlines())
    chances = {one["label"]: one["probability"] for one in answer["predictions"]}
    assert min(chances["red"], chances["blue"]) > 0.5 > chances["green"]


@pytest.mark.parametrize("to", ["openvino", "torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_bundle_gives_each_label_a_probability_of_its_own(run, pictures, tmp_path, to):
    pytest.importorskip({"openvino": "openvino", "onnx": "onnxruntime", "torch": "torch"}[to])
    model, bundle = run[0], tmp_path / "bundle"
    words = ("--to", to, "--check", pictures, "--attention", "--out", bundle)
    said, _ = call("export", model, *words)
    assert "mean average precision" in said
    about = json.loads((bundle / "bundle.json").read_text())
    assert about["several_labels"] is True
    gate = about["gate"]
    assert gate["reference_top1"] is gate["exported_top1"] is None
    assert gate["exported_map"] == pytest.approx(gate["reference_map"], abs=1e-6)
    assert gate["reference_map"] > 0.9
    assert gate["agreement"] == 1
    assert "mean average precision" in (bundle / "README.md").read_text()
    rows = []
    for source in (model, bundle):
        printed, _ = call("predict", source, pictures.parent / "5.png", "--format", "jsonl")
        (answer,) = map(json.loads, printed.splitlines())
        rows.append({one["label"]: one["probability"] for one in answer["predictions"]})
    assert rows[1] == pytest.approx(rows[0], abs=1e-5)
    assert min(rows[1]["red"], rows[1]["blue"]) > 0.5 > rows[1]["green"]
    asked = ("verify", bundle, "--against", model, "--check", pictures, "--split", "train")
    assert "several_labels" in call(*asked)[0]
    classify = vitrail.Classifier(bundle, threads=1)
    pixels = np.stack([classify.prepare(pictures.parent / f"{i}.png") for i in (5, 7)])
    chances, maps = classify.with_attention(pixels)  # as the server asks
    expected = 1 / (1 + np.exp(-classify.forward(pixels) / classify.temperature))
    assert np.abs(chances - expected).max() < 1e-6
    assert np.array_equal(chances, classify.probabilities(pixels))
    assert chances.dtype == np.float32
    assert maps.shape == (2, 4, 4)
    if to == "openvino":
        import openvino

        graph = openvino.compile_model(bundle / "model.xml", "CPU")
        given = graph({"images": np.zeros((2, 28, 28, 3), np.uint8)})
        expected = 1 / (1 + np.exp(-given["logits"] / about["temperature"]))
        assert np.abs(given["probabilities"] - expected).max() < 1e-6


def test_a_bundle_of_several_labels_in_another_order_is_refused(run, pictures, tmp_path):
    call("export", run[0], "--to", "torch", "--check", pictures, "--out", tmp_path / "b")
    manifest = read_manifest(tmp_path / "b")
    write_manifest(tmp_path / "b", replace(manifest, labels=manifest.labels[::-1]))
    words = ("verify", tmp_path / "b", "--against", run[0], "--check", pictures)
    _, err = call(*words, "--split", "train", status=3)
    assert "gate: mean average precision falls from" in err
    assert "the order of the labels" in err


def test_what_gives_several_labels_is_checked_on_several(run, pictures, tmp_path):
    words = ("--to", "torch", "--out", tmp_path / "b", "--check")
    _, err = call("export", run[0], *words, "demo:fashion", status=2)
    assert "several labels" in err
    vitrail.save_model(vitrail.create_model("vit_mu_patch7_28", 3), tmp_path / "m", COLORS)
    _, err = call("export", tmp_path / "m", *words, pictures, status=2)
    assert "the model gives one" in err
    assert not (tmp_path / "b").exists()


def test_seeds_and_rates_go_by_mean_average_precision(tmp_path, pictures):
    both = train(
        pictures, "vit_mu_patch7_28", out=tmp_path / "seeds", steps=4, batch_size=16, seeds=2
    )
    precisions = [run.score for run in both.runs.values()]
    assert both.score == pytest.approx(np.mean(precisions))
    assert both.to_json()["mean_average_precision"]["mean"] == both.score
    assert "mean average precision" in both.summary()
    tuned = train(
        pictures,
        "vit_mu_patch7_28",
        out=tmp_path / "rates",
        steps=4,
        batch_size=16,
        set={"rates": [1e-5, 1e-2]},
    )
    chosen = json.loads((tuned.folder / "config.json").read_text())["vitrail"]["chosen"]
    assert set(chosen["top1_by_rate"]) == {"1e-05", "0.01"}


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path, pictures):
    words = ["train", pictures, *SMALL, "--steps", "3", "--out"]
    call(*words, tmp_path / "one")
    status, _, err = finished(torchrun(2, "vitrail", *words, tmp_path / "two"))
    assert status == 0, err
    one, two = (records(tmp_path / name, "done")[-1] for name in ("one", "two"))
    assert two["metrics"]["val"] == pytest.approx(one["metrics"]["val"], rel=1e-4)
