"""The probe on small pictures, its recommendation, its page; the verb as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from tests.commands import call
from tests.kit.reading import check_self_contained, read
from vitrail.data.sources import ArraySource
from vitrail.evaluation.curve import curve_of
from vitrail.evaluation.fewshot import Ridge
from vitrail.evaluation.probe import Head, Prober, Report, Row, Settings, recommend
from vitrail.evaluation.probe_page import duration, size_in_words, write_page
from vitrail.models.cost import cost
from vitrail.models.cost.memory import Step, memory
from vitrail.weights.folder import save_model

SIZE = 16


def make_model(seed=0):
    torch.manual_seed(seed)
    return vitrail.create_model(
        "vit_tiny_patch16_224",
        num_classes=3,
        image_size=SIZE,
        patch_size=8,
        width=24,
        depth=1,
        heads=2,
        mlp_width=32,
    )


def pictures(n, seed=0, classes=3, noise=60):
    """Noise, brighter in another third of the picture for each class."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    images = numbers.integers(0, 255 - noise, (n, SIZE, SIZE, 3))
    for image, k in zip(images, labels, strict=True):
        image[5 * k : 5 * k + 5] += noise
    return images.astype(np.uint8), labels


def source(n, seed=0, classes=3, noise=60):
    names = ["ant", "bee", "cow"][:classes]
    return ArraySource(*pictures(n, seed, classes, noise), names)


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    prober = Prober(source(90), source(120, 1), Settings(cache=cache, epochs=4, train_images=900))
    return prober("one", make_model())


def test_row_is_what_the_parts_measure(row):
    model = make_model()

    def features(images):
        with torch.inference_mode():
            return model.features(model.preprocessing.normalize(torch.from_numpy(images))).numpy()

    (x, y), (test_x, test_y) = pictures(90), pictures(120, 1)
    accuracy = Ridge().fit(features(x), y).score(features(test_x), test_y)
    assert row.curve.accuracy[-1, 0] == accuracy
    assert (row.train_images, row.test_images, row.width, row.size) == (90, 120, 24, (16, 16))
    assert row.fewshot.shots == (1, 5, 10, 25)
    assert row.linear.right.shape == (3, 120)
    assert row.linear.mean > 0.5
    assert row.knn.chosen["k"] == 20
    assert set(row.knn.chosen["by_k"]) == {"10", "20", "90"}
    figures = cost(model)
    assert row.macs == figures.macs
    # At least weights, gradients, two moments and the average; and the planner's own figure.
    assert row.full_train_bytes > 4 * 5 * figures.parameters
    assert row.full_train_bytes == memory(model, Step(batch_size=64)).peak


def test_time_of_a_full_training_is_three_forward_passes_and_loading():
    class Slow(type(make_model())):
        def features(self, images, tape=None):
            import time

            time.sleep(0.02 * len(images))
            return super().features(images, tape)

    model = Slow(make_model().config)
    prober = Prober(source(12), source(12, 1), Settings(cache=False, epochs=4, train_images=900))
    row = prober("slow", model)
    # 900 images, 4 epochs, 3 x 20 ms; a busy machine only makes it slower
    assert 216 <= row.full_train_seconds < 400
    assert 20 < row.images_per_second <= 50


def test_json_has_the_agreed_keys(row):
    told = Report((row,), "Take it.").to_json()
    assert set(told) >= {"rows", "recommendation"}
    (only,) = told["rows"]
    agreed = {"model", "size", "fewshot", "knn", "linear", "seconds", "full_train_seconds"}
    assert set(only) >= agreed
    assert set(only["fewshot"]) == {"1", "5", "10", "25"}
    for few in only["fewshot"].values():
        assert set(few) >= {"mean", "std", "low", "high"}
        assert 0 <= few["low"] <= few["mean"] <= few["high"] <= 1
    for name in ("knn", "linear"):
        spread = only["intervals"][name]
        assert spread["low"] <= only[name] == spread["mean"] <= spread["high"]
    assert json.loads(json.dumps(told)) == told


def test_small_classes_and_bad_data(tmp_path):
    few = Prober(source(9), source(30, 1), Settings(cache=False))("few", make_model())
    assert few.fewshot.shots == (1,)
    assert few.curve is None
    assert any("no 5, 10, 25-shot accuracy" in note for note in few.notes)
    single = Prober(source(3), source(30, 1), Settings(cache=False))("single", make_model())
    assert single.linear.mean >= 0
    images, labels = pictures(30)
    partial = ArraySource(images[labels < 2], labels[labels < 2], ["ant", "bee", "cow"])
    with pytest.raises(vitrail.Error, match="class cow is in test and not in train"):
        Prober(partial, source(30, 1), Settings(cache=False))("partial", make_model())
    broken = make_model()
    with torch.no_grad():
        broken.norm.weight.zero_()
    with pytest.raises(vitrail.Error, match="the same for every image"):
        Prober(source(30), source(30, 1), Settings(cache=False))("broken", broken)


# The recommendation


def fake(name, right, seconds, untrained=False):
    rights = np.random.default_rng(0).random(2000) < 0.1
    rights[: int(2000 * right)] = True
    rights[int(2000 * right) :] = False
    sizes, shape = (50, 100, 200, 400), (4, 3, 2000)
    halves = (
        np.random.default_rng(1).random(shape) < np.array([0.6, 0.66, 0.7, 0.73])[:, None, None]
    )
    halves[-1] = halves[-1, :1]
    return Row(
        model=name,
        size=(224, 224),
        width=8,
        parameters=1,
        macs=1,
        train_images=400,
        test_images=2000,
        fewshot=None,
        knn=Head(rights[None], {}),
        linear=Head(rights[None], {}),
        curve=curve_of(sizes, halves),
        seconds=1.0,
        images_per_second=1.0,
        full_train_seconds=seconds,
        full_train_bytes=1,
        untrained=untrained,
    )


def test_recommends_the_cheapest_that_is_not_clearly_worse():
    best, near, far = fake("best", 0.801, 3000), fake("near", 0.8, 1000), fake("far", 0.7, 10)
    said = recommend([best, near, far])
    assert said.startswith("Take near at 224: 80.0 % with a linear head (78.")
    assert "best at 224 does not clearly beat (+0.1 points at 3.0 times the training cost)" in said
    assert "; twice the labels (800): +" in said
    assert recommend([best, far]).startswith("Take best at 224: 80.1 %")
    assert "ahead of far at 224 by 10.1" in recommend([best, far])


def test_random_weights_are_never_recommended():
    best, other = fake("best", 0.9, 1, untrained=True), fake("other", 0.5, 100)
    assert recommend([best, other]).startswith("Take other")
    assert "random weights say nothing" in recommend([best])


def test_page_is_whole_and_escapes(row, tmp_path):
    report = Report((row, fake("<b>other</b>", 0.6, 3e5)), "Take <one>.", ("a note",))
    write_page(tmp_path / "report.html", report, data="<x>", measured_on="test", epochs=4)
    html = (tmp_path / "report.html").read_text()
    elements = read(html)
    assert sum(element.tag == "svg" for element in elements) == 2
    assert "<b>other" not in html
    assert "Take &lt;one&gt;." in html
    check_self_contained(html)
    write_page(tmp_path / "again.html", report, data="<x>", measured_on="test", epochs=4)
    assert (tmp_path / "again.html").read_text() == html


def test_words_for_times_and_sizes():
    assert [duration(s) for s in (0.5, 59, 119, 150, 7300, 4e5)] == [
        "0.5 s",
        "59 s",
        "119 s",
        "2.5 min",
        "2 h",
        "4.6 d",
    ]
    assert [size_in_words(n) for n in (1500, 2.5e6, 3.21e9)] == ["1.5 kB", "2.5 MB", "3.21 GB"]


# The verb


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    images, labels = pictures(60)
    for i, (image, k) in enumerate(zip(images, labels, strict=True)):
        (root / "abc"[k]).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / "abc"[k] / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(make_model(), tmp_path_factory.mktemp("models") / "mine")


def test_probe_of_two_sizes(photos, model, tmp_path):
    before = sorted(photos.rglob("*"))
    out, err = call(
        "probe", photos, "--models", model, "--sizes", 16, 32, "--json", "--out", tmp_path / "out"
    )
    told = json.loads(out)
    assert [(row["model"], row["size"]) for row in told["rows"]] == [("mine", 16), ("mine", 32)]
    assert told["measured_on"] == "a fifth of train, held out (12 images)"
    assert told["rows"][0]["macs"] < told["rows"][1]["macs"]
    assert told["recommendation"].startswith("Take mine at ")
    assert "features of train: 48 of 48" in err
    assert json.loads((tmp_path / "out" / "probe.json").read_text()) == told
    assert "Probe of" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(photos.rglob("*")) == before
    # The second time nothing is computed, and a table is printed.
    out, err = call("probe", photos, "--models", model, "--sizes", 16, 32)
    assert "features of" not in err
    assert out.splitlines()[0].split()[:3] == ["model", "size", "1-shot"]
    assert told["recommendation"] in out


def test_names_need_weights(photos, model):
    name = "vit_mu_patch8_32"
    _, err = call("probe", photos, "--models", name, status=2)
    assert "random weights say nothing of a model" in err
    out, err = call("probe", photos, "--models", name, model, "--untrained", "--json")
    assert f"warning: {name} has random weights" in err
    told = json.loads(out)
    assert [row["untrained"] for row in told["rows"]] == [True, False]
    assert told["recommendation"].startswith("Take mine")


def test_weights_for_a_name(photos, tmp_path):
    torch.manual_seed(1)
    whole = vitrail.create_model("vit_mu_patch8_32", num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "file.pth")
    pair, _ = call(
        "probe", photos, "--models", f"vit_mu_patch8_32={tmp_path / 'file.pth'}", "--json"
    )
    flag, _ = call(
        "probe",
        photos,
        "--models",
        "vit_mu_patch8_32",
        "--weights",
        tmp_path / "file.pth",
        "--json",
    )
    (one,), (other,) = json.loads(pair)["rows"], json.loads(flag)["rows"]
    assert one["model"] == "vit_mu_patch8_32"
    assert one["linear"] == other["linear"]
    assert not one["untrained"]


def test_limit_takes_a_share_of_every_class(photos, model):
    out, _ = call("probe", photos, "--models", model, "--limit", 24, "--shots", 1, 4, "--json")
    (row,) = json.loads(out)["rows"]
    assert row["train_images"] == 24
    assert set(row["fewshot"]) == {"1", "4"}
    assert "24 of 48 training images were used" in json.loads(out)["notes"][0]


def test_mistakes_are_one_sentence(photos, model, tmp_path):
    def said(*words):
        return call("probe", photos, *words, status=2)[1]

    assert "did you mean" in said("--models", "vit_tinny_patch16_224")
    assert "no file or folder" in said("--models", tmp_path / "no.pth")
    assert "cannot be cut into patches" in said("--models", model, "--sizes", 16, 17)
    assert "2 weights for 1 models" in said("--models", model, "--weights", "a", "b")
    assert "there is no test split" in said("--models", model, "--split", "test")
    assert "it is val, test or held-out" in said("--models", model, "--split", "train")
    assert "lies inside the data" in said("--models", model, "--out", photos / "out")
    assert "report of its own" in said("--models", model, "--out", model)
    assert not (photos / "out").exists()
