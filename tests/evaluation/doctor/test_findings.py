"""What the doctor says of whole data sets, and what it lets through."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import call
from tests.evaluation.doctor.planting import changed, encoded, scene
from tests.evaluation.doctor.test_duplicates import Files
from vitrail.data.sources import ArraySource, open_splits
from vitrail.evaluation.doctor import examine
from vitrail.evaluation.doctor.clean import write_clean
from vitrail.evaluation.doctor.confirm import alike
from vitrail.evaluation.doctor.labels import FOLDS, folds_of, out_of_fold, suspects
from vitrail.evaluation.features import Features
from vitrail.kit.errors import Error


@pytest.fixture
def folder(tmp_path):
    """Two classes; a copy inside of train, a mirrored one in test, a contradiction, a bad file."""
    root = tmp_path / "data"
    for split, label, first in (("train", "a", 0), ("train", "b", 40), ("test", "a", 80)):
        (root / split / label).mkdir(parents=True)
        for i in range(first, first + (24 if split == "train" else 6)):
            (root / split / label / f"{i}.jpg").write_bytes(encoded(scene(i)))
    (root / "test/b").mkdir()
    (root / "test/b/90.jpg").write_bytes(encoded(scene(90)))
    (root / "train/a/copy.jpg").write_bytes((root / "train/a/1.jpg").read_bytes())
    leak = changed((root / "train/a/2.jpg").read_bytes(), "mirrored")
    (root / "test/a/leak.jpg").write_bytes(leak)
    wrong = changed((root / "train/a/3.jpg").read_bytes(), "recompressed")
    (root / "train/b/contradiction.jpg").write_bytes(wrong)
    (root / "train/b/cut.jpg").write_bytes(encoded(scene(99))[:300])
    Image.new("RGB", (96, 72), (255, 255, 255)).save(root / "train/a/blank.png")
    Image.fromarray(np.asarray(scene(300, 900, 20))).save(root / "train/a/strip.png")
    return root


def test_everything_is_found(folder, tmp_path):
    out, _ = call("doctor", folder, "--json", "--out", tmp_path / "out")
    found = json.loads(out)
    assert [entry["key"] for entry in found["unreadable"]] == ["train/b/cut.jpg"]
    pairs = {(d["a"], d["b"]): (d["kind"], d["where"]) for d in found["duplicates"]}
    assert pairs == {
        ("train/a/1.jpg", "train/a/copy.jpg"): ("exact", "inside"),
        ("train/a/2.jpg", "test/a/leak.jpg"): ("near", "across"),
        ("train/a/3.jpg", "train/b/contradiction.jpg"): ("near", "inside"),
    }
    (conflict,) = found["conflicts"]
    assert {entry["label"] for entry in conflict} == {"a", "b"}
    odd = {(entry["key"], entry["what"]) for entry in found["odd"]}
    assert odd == {
        ("train/a/blank.png", "nearly white"),
        ("train/a/strip.png", "of unusual shape"),
    }
    assert found["imbalance"]["counts"]["train"] == {"a": 27, "b": 26}
    assert found["labels"] == []
    assert json.loads((tmp_path / "out/doctor.json").read_text()) == found
    page = (tmp_path / "out/report.html").read_text()
    for words in ("leak.jpg", "nearly white", "cut.jpg", "mirrored"):
        assert words in page
    said, _ = call("doctor", folder)
    assert "duplicates across splits: 0 exact and 1 near pairs, 1 pictures too many" in said


def test_the_clean_list_is_taken_by_train_and_evaluate(folder, tmp_path):
    clean = tmp_path / "clean.csv"
    call("doctor", folder, "--write-clean", clean)
    splits = open_splits(clean)
    kept = {key for source in splits.values() for key in source.keys}
    gone = ("copy.jpg", "leak.jpg", "a/3.jpg", "contradiction.jpg", "cut.jpg")
    assert not [key for key in kept if key.endswith(gone)]
    assert len(splits["train"]) == 53 - 4
    assert len(splits["test"]) == 8 - 1
    with clean.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {"path", "label", "split"}
    err = call("doctor", folder, "--write-clean", tmp_path / "clean.parquet", status=2)[1]
    assert "the list is a CSV" in err


def test_another_set_is_compared_with(folder, tmp_path):
    other = tmp_path / "other" / "x"
    other.mkdir(parents=True)
    (other / "same.jpg").write_bytes((folder / "train/b/41.jpg").read_bytes())
    (other / "fresh.jpg").write_bytes(encoded(scene(200)))
    found = json.loads(call("doctor", folder, "--against", other.parent, "--json")[0])
    with_other = [d for d in found["duplicates"] if d["b"].startswith("other:")]
    assert [(d["a"], d["b"], d["kind"], d["where"]) for d in with_other] == [
        ("train/b/41.jpg", "other:x/same.jpg", "exact", "across")
    ]
    # What the other set has is left out of the clean list.
    call("doctor", folder, "--against", other.parent, "--write-clean", tmp_path / "c.csv")
    assert not any(
        key.endswith("b/41.jpg") for key in open_splits(tmp_path / "c.csv")["train"].keys
    )


def test_pictures_that_are_no_files_are_copied(tmp_path):
    pytest.importorskip("pyarrow")
    images = np.stack([np.asarray(scene(i, 32, 32)) for i in range(30)])
    images[7] = images[3]
    source = ArraySource(images, [i % 2 for i in range(30)], ["x", "y"])
    found = examine({"train": source}, threads=1)
    said = write_clean(tmp_path / "clean", {"train": source}, found.clean())
    assert "29 pictures" in said
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "clean/train.parquet")
    assert table.column("label").to_pylist() == [i % 2 for i in range(30) if i != 7]
    assert b"ClassLabel" in table.schema.metadata[b"huggingface"]
    with pytest.raises(Error, match="is not empty"):
        write_clean(tmp_path / "clean", {"train": source}, found.clean())


def test_classes_that_surprise():
    source = Files([encoded(scene(i)) for i in range(3)], [0, 1, 3], ("1", "10", "2", "9"))
    said = " ".join(examine({"train": source}, model_labels=("9", "1"), threads=1).order)
    assert "sorted as text (1, 10, 2" in said
    assert "no picture in train of class 2" in said
    assert "2 of 4 are known to it by name" in said
    twice = Files([encoded(scene(0))], [0], ("Cat", "cat ", "dog"))
    assert "differ only in case" in examine({"train": twice}, threads=1).order[0]


def test_an_empty_set():
    with pytest.raises(Error, match="no pictures"):
        examine({"train": Files([])})


# -- labels --------------------------------------------------------------------------------------


def test_confident_learning_by_hand():
    # Two classes; thresholds are the means of each class's own column: a .8, b .7.
    probabilities = np.array(
        [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]
    )
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert suspects(probabilities, labels)[0].tolist() == []
    probabilities[2] = 0.1, 0.9  # labelled a, surely b: thresholds a .6, b .7
    places, suggested = suspects(probabilities, labels)
    assert places.tolist() == [2]
    assert suggested.tolist() == [1]
    # A class that is doubted everywhere is doubted nowhere: its threshold is low.
    unsure = np.array([[0.45, 0.55]] * 4 + [[0.1, 0.9]] * 4)
    assert suspects(unsure, np.array([0] * 4 + [1] * 4))[0].tolist() == []


def test_duplicates_share_a_fold():
    labels = np.arange(100) % 4
    folds = folds_of(labels, [[3, 50, 77], [0, 1]], seed=0)
    assert len({*folds[[3, 50, 77]]}) == 1
    assert folds[0] == folds[1]
    rest = np.setdiff1d(np.arange(100), [50, 77, 1])
    for label in range(4):
        counts = np.bincount(folds[rest][labels[rest] == label], minlength=FOLDS)
        assert counts.max() - counts.min() <= 2
    with pytest.raises(Error, match="too few"):
        folds_of(np.arange(5), [])


def test_predictions_never_see_their_own_fold():
    features = np.arange(20, dtype=np.float32)[:, None]
    labels = np.arange(20) % 2
    folds = folds_of(labels, [])
    seen = {}

    def fit(x, y):
        known = set(x[:, 0].tolist())

        def predict(z):
            for value in z[:, 0].tolist():
                seen[value] = value in known
            return np.full((len(z), 2), 0.5, np.float32)

        return predict

    out_of_fold(features, labels, folds, fit, 2)
    assert len(seen) == 20
    assert not any(seen.values())


def test_flipped_labels_are_suggested_first():
    # Features of 4 overlapping classes; 5 % of the labels flipped. (On pictures: the benchmark.)
    from vitrail.evaluation.linear import LinearProbe

    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 1000)
    centres = generator.normal(size=(4, 16)) * 1.1
    features = (centres[truth] + generator.normal(size=(1000, 16))).astype(np.float32)
    labels = truth.copy()
    flipped = generator.choice(1000, 50, replace=False)
    labels[flipped] = (labels[flipped] + generator.integers(1, 4, 50)) % 4

    def fit(x, y):
        return LinearProbe(solver="lbfgs", l2=10.0).fit(x, y).predict_proba

    probabilities = out_of_fold(features, labels, folds_of(labels, []), fit, 4)
    assert (probabilities.argmax(1) == labels).mean() > 0.85
    places, suggested = suspects(probabilities, labels)
    first = places[:75]
    found = np.intersect1d(first, flipped)
    assert len(found) >= 0.7 * len(flipped)
    right = [s == truth[p] for p, s in zip(places[:75], suggested[:75], strict=True) if p in found]
    assert np.mean(right) > 0.9


def test_a_model_judges_labels(tmp_path):
    """The whole command with a model: pixels tell these classes apart, so even fresh weights do."""
    import vitrail

    generator = np.random.default_rng(0)
    root = tmp_path / "data"
    for k, label in enumerate(("dark", "light")):
        for split, n in (("train", 40), ("test", 10)):
            (root / split / label).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                level = 60 + 130 * k + generator.normal(0, 10)
                noise = np.clip(level + generator.normal(0, 40, (28, 28)), 0, 255).astype(np.uint8)
                Image.fromarray(noise).save(root / split / label / f"{i}.png")
    (root / "train/dark/7.png").rename(root / "train/light/moved.png")
    torch.manual_seed(0)
    model = vitrail.create_model("vit_nano_patch7_28", num_classes=2)
    vitrail.save_model(model, tmp_path / "model", labels=["dark", "light"])
    words = ("doctor", root, "--model", tmp_path / "model", "--cache", tmp_path / "cache", "--json")
    found = json.loads(call(*words)[0])
    assert found["out_of_fold_accuracy"] > 0.9
    assert found["labels"][0]["key"] == "train/light/moved.png"
    assert found["labels"][0]["label"] == "light"
    assert found["labels"][0]["suggested"] == "dark"
    assert [entry["on"] for entry in found["accuracy"]] == ["test", "test, cleaned"]


def test_pictures_that_are_alike_by_nature_are_a_reason_to_doubt(tmp_path):
    numbers = np.random.default_rng(0)
    pattern = numbers.integers(0, 255, (32, 32)).astype(np.int16)
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(10):
            pixels = np.clip(pattern + numbers.integers(-9, 9, pattern.shape), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / label / f"{i}.png")
    said, _ = call("doctor", tmp_path / "data")
    assert "caution: 95 % of the pictures count as near duplicates" in said
    assert "across splits" not in said


def test_the_clean_list_never_takes_the_place_of_the_data(folder, tmp_path):
    clean = tmp_path / "list.csv"
    call("doctor", folder, "--write-clean", clean)
    before = clean.read_bytes()
    _, err = call("doctor", clean, "--write-clean", clean, status=2)
    assert "is the data" in err
    assert clean.read_bytes() == before


def test_a_model_confirms_near_duplicates():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(400, 12)).astype(np.float32)
    values[1] = values[0] + 0.2 * generator.normal(size=12)
    assert alike(values, np.array([[0, 1], [0, 2], [5, 9]])).tolist() == [True, False, False]
    assert alike(values, np.zeros((0, 2), np.int64)).tolist() == []


def test_what_features_deny_is_shown_and_stays():
    files = [encoded(scene(i)) for i in range(30)]
    files += [changed(files[0], "recompressed"), changed(files[1], "recompressed")]
    source = Files(files, [i % 2 for i in range(32)])
    values = np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)
    values[30] = values[0]  # the model agrees on one of the two pairs
    features = Features(
        *(values, source.labels, source.keys, np.arange(32), source.classes, (), 0.0, 0.0, 32)
    )
    found = examine({"train": source}, features={"train": features}, threads=1)
    told = {(d["a"], d["b"]): d["confirmed"] for d in found.to_json()["duplicates"]}
    assert told == {("0.jpg", "30.jpg"): True, ("1.jpg", "31.jpg"): False}
    kept = found.clean()["train"].tolist()
    assert 30 not in kept
    assert 31 in kept
