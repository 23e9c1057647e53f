"""Labels: class maps, several labels a picture, and weights against imbalance."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.pictures import write_classes
from vitrail.data.examples import ArraySource
from vitrail.data.fingerprint import Fingerprint, fingerprint
from vitrail.data.labels import read_classes
from vitrail.data.scan import readable, scan
from vitrail.data.sources import open_source, open_splits
from vitrail.kit.errors import Error

ROWS = ["sea|sky", "sky", "", "tree; sky", "sea|sea", "tree|sea|sky", "sky", "sky"]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_classes(tmp_path, {"all": 8})
    lines = [f"all/{i:03d}.png,{row}" for i, row in enumerate(ROWS)]
    (tmp_path / "t.csv").write_text("\n".join(["path,labels", *lines]))
    return tmp_path


HOT = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 0]]


def test_a_table_of_several_labels(folder):
    source = open_source(folder / "t.csv")
    assert source.multi_label
    assert source.classes == ("sea", "sky", "tree")
    assert source.labels.dtype == np.uint8
    assert source.labels.tolist() == HOT
    assert source.counts().tolist() == [3, 6, 2]
    example = source.example(5)
    assert (example.label, example.labels) == (-1, (0, 1, 2))
    rows = [
        {
            "path": f"all/{i:03d}.png",
            "labels": [w.strip() for w in row.replace(";", "|").split("|")],
        }
        for i, row in enumerate(ROWS)
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_source(folder / "t.jsonl").labels.tolist() == HOT
    for row in rows:
        row["tags"] = row.pop("labels")
    (folder / "u.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_source(folder / "u.jsonl", label_column="tags").labels.tolist() == HOT
    (folder / "u.jsonl").write_text(
        json.dumps(rows[0]) + "\n" + json.dumps({**rows[1], "tags": "x"})
    )
    with pytest.raises(Error, match="line 2: tags is a list in some rows and one value in others"):
        open_source(folder / "u.jsonl", label_column="tags")
    # A semicolon between columns: labels are then parted by bars.
    lines = [f"all/{i:03d}.png;{row.replace('; ', '|')}" for i, row in enumerate(ROWS)]
    (folder / "s.csv").write_text("\n".join(["path;labels", *lines]))
    assert open_source(folder / "s.csv").labels.tolist() == HOT


def test_arrays_of_several_labels():
    images = np.zeros((8, 4, 4, 3), np.uint8)
    source = open_source((images, np.array(HOT)), classes=["sea", "sky", "tree"])
    assert source.labels.tolist() == HOT
    assert ArraySource(images, np.array(HOT, bool)).classes == ("0", "1", "2")
    for labels, classes, match in (
        (np.array(HOT) * 2, None, "labels .n k. are 0 and 1"),
        (np.array(HOT) * 0.5, None, "labels .n k. are 0 and 1"),
        (np.array(HOT), ["a", "b"], r"labels are \[8, 3\], but there are 2 classes"),
    ):
        with pytest.raises(Error, match=match):
            ArraySource(images, labels, classes)


def test_views_scans_and_fingerprints_carry_them(folder):
    source = open_source(folder / "t.csv")
    assert source.subset([5, 0]).subset([1]).labels.tolist() == [HOT[0]]
    other = source.with_classes(["sky", "moon", "tree", "sea"])
    assert other.labels[3].tolist() == [1, 0, 1, 0]
    assert other.counts().tolist() == [6, 0, 2, 3]
    with pytest.raises(Error, match="class tree is not among the 2 known ones"):
        source.with_classes(["sky", "sea"])
    first, *_ = scan(source).lines()
    assert first == (
        "8 images with any of 3 labels, from 2 (tree) to 6 (sky); 1.38 an image, 1 have none"
    )
    before = fingerprint(source)
    assert before.entries[5][:2] == ("all/005.png", "sea|sky|tree")
    before.write(folder / "f.gz")
    assert Fingerprint.read(folder / "f.gz") == before
    text = (folder / "t.csv").read_text().replace("all/001.png,sky", "all/001.png,sea")
    (folder / "t.csv").write_text(text)
    assert before.changes(fingerprint(open_source(folder / "t.csv"))) == [
        "1 relabelled (all/001.png from sky to sea)"
    ]
    (folder / "all" / "003.png").write_bytes(b"")
    assert len(readable(source, scan(source))) == 7
    (folder / "all" / "005.png").write_bytes(b"")
    with pytest.raises(Error, match="no image of class tree can be read"):
        readable(source, scan(source))


def test_the_cut_goes_by_the_rarest_label():
    random = np.random.default_rng(0)
    hot = (random.random((1000, 4)) < [0.5, 0.3, 0.02, 0.1]).astype(np.uint8)
    hot[0] = [1, 1, 1, 1]
    source = ArraySource(np.zeros((1000, 1, 1), np.uint8), hot)
    rest, share = source.split(0.2, seed=0)
    assert sorted([*rest.keys, *share.keys], key=int) == list(source.keys)
    assert len(share) == pytest.approx(200, abs=3)
    counts = share.counts() / source.counts()
    assert (abs(counts - 0.2) < 0.08).all()
    assert share.counts()[2] == round(0.2 * source.counts()[2])  # the rarest is kept exactly
    assert (share.labels.sum(axis=1) == 0).sum() == pytest.approx(
        0.2 * (hot.sum(axis=1) == 0).sum(), abs=1
    )
    again, _ = source.split(0.2, seed=0)
    assert list(again.keys) == list(rest.keys)
    lone = ArraySource(np.zeros((3, 1, 1), np.uint8), np.array([[1, 0], [0, 1], [0, 1]]))
    assert next(iter(lone.split(0.5, 0)[0].keys)) == "0"  # a group of one stays whole


# --- class maps ------------------------------------------------------------------------------


def test_class_files(tmp_path):
    def read(name: str, text: str) -> tuple[str, ...]:
        (tmp_path / name).write_text(text)
        return read_classes(tmp_path / name)

    assert read("a.txt", "\ufeffb\n\n a b \r\nc") == ("b", "a b", "c")
    assert read("a.json", '["b", "a"]') == ("b", "a")
    assert read("a.json", '{"x": 2, "y": 0, "z": 1}') == ("y", "z", "x")
    assert read_classes({"x": 1, "y": 0}) == ("y", "x")
    for name, text, match in (
        ("a.txt", "a\nb\na\n", "class 'a' stands there twice"),
        ("a.txt", "\n", "there are no class names"),
        ("a.json", "{", "not JSON"),
        ("a.json", "3", "a list of class names, or an object"),
        ("a.json", '["a", 1]', "class names are words"),
        ("a.json", '{"a": 0, "b": 2}', "class numbers are 0, 1, ... to 1, each once"),
        ("a.json", '{"a": true, "b": 0}', "class numbers are 0, 1"),
    ):
        with pytest.raises(Error, match=match):
            read(name, text)
    with pytest.raises(Error, match=r"cannot be read \(no such file"):
        read_classes(tmp_path / "none.txt")


def test_a_map_gives_a_test_class_that_train_lacks_its_place(tmp_path):
    for split, counts in (("train", {"a": 2, "b": 2}), ("test", {"a": 1, "c": 1})):
        write_classes(tmp_path / split, counts)
    with pytest.raises(Error, match="class c in test is not in train"):
        open_splits(tmp_path)
    splits = open_splits(tmp_path, classes=["c", "b", "a"])
    assert splits["train"].labels.tolist() == [2, 2, 1, 1]
    assert splits["test"].labels.tolist() == [2, 0]
    assert splits["train"].counts().tolist() == [0, 2, 2]


def test_numbers_in_a_table_are_places_in_a_map_unless_they_are_names(tmp_path):
    write_classes(tmp_path, {"all": 3})
    (tmp_path / "t.csv").write_text(
        "path,label\n" + "\n".join(f"all/00{i}.png,{i}" for i in range(3))
    )
    source = open_source(tmp_path / "t.csv", classes=["x", "y", "z"])
    assert (source.classes, source.labels.tolist()) == (("x", "y", "z"), [0, 1, 2])
    source = open_source(tmp_path / "t.csv", classes=["2", "1", "0"])
    assert source.labels.tolist() == [2, 1, 0]
    with pytest.raises(Error, match=r"a label is 2, but there are 2 classes, counted from 0 \(x"):
        open_source(tmp_path / "t.csv", classes=["x", "y"])


# --- imbalance -------------------------------------------------------------------------------
