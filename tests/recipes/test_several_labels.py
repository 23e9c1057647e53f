"""Images with any number of labels, from the file to the end of `train` and through `evaluate`."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import call, records
from tests.training.processes import finished, torchrun
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


def test_a_run_is_watched_and_measured_by_mean_average_precision(tmp_path, pictures):
    out = tmp_path / "run"
    words = ("train", pictures, *SMALL, "--steps", "40", "--lr", "0.003", "--out", out)
    said, _ = call(*words, "--set", "eval_every=20", "target.class_weights=balanced")
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
    refused = call("export", out, "--to", "onnx", "--out", tmp_path / "b", "--no-check", status=2)[
        1
    ]
    assert "several labels" in refused


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
