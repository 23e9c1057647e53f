"""`vitrail evaluate` as a user meets it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vitrail
from tests.commands import call
from tests.kit.reading import check_readable, check_self_contained
from vitrail.evaluation.imagenet import wnids
from vitrail.kit.files import sha256_of


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Two classes in three splits, which a model tells apart only in part: 40 pictures each."""
    root = tmp_path_factory.mktemp("shapes")
    numbers = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label, channel in (("red", 0), ("blue", 2)):
            (root / split / label).mkdir(parents=True)
            for i in range(40):
                pixels = numbers.integers(0, 160, (32, 32 + 8 * (i % 2), 3), dtype=np.uint8)
                pixels[..., channel] += numbers.integers(0, 24, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def made(shapes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "model"
    words = ["--model", "vit_mu_patch8_32", "--steps", 25, "--batch-size", 16, "--lr", 3e-3]
    call("train", shapes, "--out", out, *words)
    return out


@pytest.fixture
def model(made, tmp_path) -> Path:
    """A copy, because a temperature is written into it."""
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


def evaluated(*words: object) -> dict:
    out, _ = call("evaluate", *words, "--json")
    return json.loads(out)


def test_a_temperature_is_fitted_on_val_stored_and_applied_everywhere(model, shapes):
    before = evaluated(model, shapes)
    assert before["calibration"]["temperature"] == 1
    weights = sha256_of(model / "model.safetensors")
    out, err = call("evaluate", model, shapes, "--calibrate")
    assert "fitted on 80 images of val" in err
    assert f"stored in {model} for its final weights" in err
    assert "temperature" in out
    section = json.loads((model / "config.json").read_text())["vitrail"]
    fact = section["calibration"]["final"]
    assert fact["sha256"] == weights == sha256_of(model / "model.safetensors")
    assert fact["nll_after"] <= fact["nll_before"]
    temperature = section["temperature"]["final"]
    after = evaluated(model, shapes)
    assert after["calibration"]["temperature"] == temperature
    assert after["calibration"]["before"] == before["calibration"]["before"]
    for name in ("top1", "top5", "loss", "confusion", "per_class"):
        assert after[name] == before[name]
    picture = shapes / "test" / "red" / "00.png"
    classify = vitrail.Classifier(model)
    chances = torch.softmax(torch.from_numpy(classify.logits(picture)) / temperature, 1)
    out, _ = call("predict", model, picture, "--format", "jsonl")
    served = {p["label"]: p["probability"] for p in json.loads(out)["predictions"]}
    assert [served[name] for name in classify.labels] == pytest.approx(chances[0].tolist())


def test_on_the_images_that_are_measured_it_says_so(model, shapes):
    _, err = call("evaluate", model, shapes, "--calibrate-on", "test")
    assert "images that are measured here too" in err
    _, err = call("evaluate", model, shapes, "--calibrate-on", shapes / "val")
    assert "fitted on 80 images of" in err
    assert "measured here too" not in err


def test_everything_at_once_makes_a_page(model, made, shapes, tmp_path):
    page = tmp_path / "page"
    words = ["--against", made, "--sizes", 24, 40, "--corruptions", "fog", "snow"]
    out, err = call(
        "evaluate", model, shapes, *words, "--severities", 1, 5, "--corruption-images", 20,
        "--calibrate", "--out", page,
    )  # fmt: skip
    assert "mean corruption error" in out
    assert "No difference can be told from chance on 80 images" in out
    assert "at 40 px: top-1" in out
    assert "snow: top-1" in err
    html = (page / "report.html").read_text()
    check_self_contained(html)
    check_readable(html)
    fields = json.loads((page / "evaluation.json").read_text())
    assert fields["corruptions"]["n"] == 20
    assert [row["name"] for row in fields["corruptions"]["rows"]] == ["fog", "snow"]
    assert [tuple(row["size"]) for row in fields["sizes"]] == [(24, 24), (32, 32), (40, 40)]
    assert fields["comparison"]["p"] == 1
    # A fifth by brightness is 16 of the 80 images, too few to be judged.
    assert {row["kind"] for row in fields["slices"]["rows"]} == {"class", "shape"}
    assert fields["slices"]["too_few"] == 5
    again = evaluated(model, shapes, *words, "--severities", 1, 5, "--corruption-images", 20)
    assert again["corruptions"] == fields["corruptions"]


def test_frost_with_photographs_is_not_said_to_be_drawn(model, shapes, tmp_path):
    (tmp_path / "ice").mkdir()
    numbers = np.random.default_rng(0)
    ice = numbers.integers(90, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(ice).save(tmp_path / "ice" / "frost1.png")
    words = ["--corruptions", "frost", "--severities", 5, "--corruption-images", 20]
    drawn = evaluated(model, shapes, *words)["corruptions"]
    photographed = evaluated(model, shapes, *words, "--frost-photos", tmp_path / "ice")
    assert drawn["drawn_frost"]
    assert not photographed["corruptions"]["drawn_frost"]
    _, err = call("evaluate", model, shapes, *words, "--frost-photos", shapes, status=2)
    assert "no pictures of ice" in err


def test_label_sets(model, shapes, tmp_path):
    names = [f"{split}/{label}/{i:02d}.png" for split in ("test",) for label in ("blue", "red")
             for i in range(40)]  # fmt: skip
    path = tmp_path / "sets.jsonl"
    rows = [{"key": name, "labels": ["blue", "red"] if name.endswith("0.png") else []}
            for name in names]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    real = evaluated(model, shapes, "--real-labels", path)["real"]
    assert (real["top1"], real["n"], real["left_out"]) == (1, 8, 72)
    path.write_text("[[0], [1]]")
    _, err = call("evaluate", model, shapes, "--real-labels", path, "--calibrate", status=2)
    assert "label sets for 2 images, and the data have 80" in err
    assert "temperature" not in json.loads((model / "config.json").read_text())["vitrail"]


def test_a_class_map(model, shapes, tmp_path):
    other = tmp_path / "other"
    for old, new in (("red", "rouge"), ("blue", "bleu")):
        shutil.copytree(shapes / "test" / old, other / new)
    _, err = call("evaluate", model, other, status=2)
    assert "does not know 2 of the data's 2 classes" in err
    path = tmp_path / "map.json"
    path.write_text('{"rouge": "red", "bleu": "blue"}')
    straight, mapped = evaluated(model, shapes), evaluated(model, other, "--class-map", path)
    assert mapped["top1"] == straight["top1"]
    assert mapped["classes"] == ["bleu", "rouge"]


def test_imagenet_a_is_measured_among_its_own_classes(tmp_path):
    """Two wnid folders and a model of ImageNet's 1,000 classes without names."""
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=1000)
    with torch.no_grad():  # always the class 7; of the two, always tench
        model.head.bias.zero_()
        model.head.weight.zero_()
        model.head.bias[7], model.head.bias[0] = 9, 5
    vitrail.save_model(model, tmp_path / "model")
    for place in (0, 285):
        folder = tmp_path / "data" / wnids()[place]
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 32), (i, place % 256, 9)).save(folder / f"{i}.png")
    out, err = call("evaluate", tmp_path / "model", tmp_path / "data", "--json")
    fields = json.loads(out)
    assert "answers are looked for among these 2 only" in err
    assert fields["classes"] == ["n01440764", "n02124075"]
    assert fields["confusion"] == [[3, 0], [3, 0]]
    assert fields["top1"] == 0.5
    _, err = call("evaluate", tmp_path / "model", tmp_path / "data", "--calibrate-on", "test",
                  status=2)  # fmt: skip
    assert "only 2 of 1,000" in err


def test_images_of_several_labels_are_ranked(model, shapes, tmp_path, monkeypatch):
    from vitrail.cli import measuring
    from vitrail.data.examples import ArraySource

    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    source = ArraySource(images, numbers.integers(0, 2, 30), ["blue", "red"])
    source.labels = numbers.integers(0, 2, (30, 2)).astype(np.uint8)
    monkeypatch.setattr(measuring, "split_to_measure", lambda *_: (source, ""))
    out, _ = call("evaluate", model, shapes, "--json", "--out", tmp_path / "page")
    fields = json.loads(out)
    assert fields["n"] == 30
    assert [row["n"] for row in fields["per_class"]] == source.labels.sum(0).tolist()
    assert 0 < fields["mean_average_precision"] <= 1
    check_self_contained((tmp_path / "page" / "report.html").read_text())
    out, _ = call("evaluate", model, shapes)
    assert "mean average precision" in out
    _, err = call("evaluate", model, shapes, "--calibrate", status=2)
    assert "several labels" in err


def test_one_class_is_measured_and_not_calibrated(model, shapes, tmp_path):
    shutil.copytree(shapes / "test" / "red", tmp_path / "one" / "red")
    fields = evaluated(model, tmp_path / "one")
    assert fields["auroc"] is None
    assert fields["n"] == 40
    _, err = call("evaluate", model, tmp_path / "one", "--calibrate-on", "test", status=2)
    assert "one class" in err


def test_answers_that_are_no_numbers_are_said_and_nothing_is_stored(model, shapes, tmp_path):
    broken = vitrail.load_model(model)
    with torch.no_grad():  # finite weights, infinite logits
        broken.head.weight.fill_(3e38)
    vitrail.save_model(broken, tmp_path / "broken")
    _, err = call("evaluate", tmp_path / "broken", shapes, "--calibrate", status=2)
    assert "is not a finite number" in err
    assert "temperature" not in (tmp_path / "broken" / "config.json").read_text()
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, "head.bias": tensors["head.bias"] + 1}, model / "model.safetensors")
    _, err = call("evaluate", model, shapes, status=2)
    assert "damaged or was replaced" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--corruptions", "fgo"], "did you mean 'fog'"),
        (["--corruptions", "fog", "--severities", 9], "1, 2, 3, 4 or 5, not 9"),
        (["--corruptions", "--corruption-images", 0], "at least 1, not 0"),
        (["--sizes", 33], "use 32 or 40"),
        (["--against", "nowhere"], "no file or folder nowhere"),
        (["--real-labels", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--class-map", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--calibrate-on", "nowhere"], "nowhere: no such folder or file"),
        (["--corruptions", "frost", "--frost-photos", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_slips_are_said_before_anything_is_measured_or_written(model, shapes, tmp_path, words,
                                                               sentence):  # fmt: skip
    before = (model / "config.json").read_bytes()
    _, err = call("evaluate", model, shapes, "--out", tmp_path / "page", *words, status=2)
    assert sentence in err
    assert not (tmp_path / "page").exists()
    assert (model / "config.json").read_bytes() == before


def test_a_file_cannot_hold_a_temperature(model, shapes):
    file = model / "model.safetensors"
    _, err = call("evaluate", file, shapes, "--calibrate", status=2)
    assert "stored in a model folder" in err
    call("evaluate", model, shapes, "--calibrate")
    folder, alone = evaluated(model, shapes), evaluated(file, shapes)
    assert folder == alone
    assert alone["calibration"]["temperature"] != 1
