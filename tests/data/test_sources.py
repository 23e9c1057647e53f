"""Data as people have it: class folders, tables and arrays, right ones and wrong ones."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.pictures import encoded, smooth, write_classes
from vitrail.data.examples import ArraySource, Keys
from vitrail.data.sources import open_source, open_splits
from vitrail.kit.errors import Error


@pytest.fixture
def flat(tmp_path) -> Path:
    write_classes(tmp_path / "data", {"cat": 10, "Dog": 6, "ant": 4})
    return tmp_path / "data"


@pytest.fixture
def split(tmp_path) -> Path:
    for name, count in (("train", 5), ("validation", 2), ("test", 3)):
        write_classes(tmp_path / "data" / name, {"cat": count, "dog": count})
    return tmp_path / "data"


def keys(source) -> list[str]:
    return list(source.keys)


def test_a_folder_of_class_folders(flat):
    source = open_source(flat)
    assert source.classes == ("Dog", "ant", "cat")  # by code point, on every machine
    assert len(source) == 20
    assert keys(source)[:2] == ["Dog/000.png", "Dog/001.png"]
    assert source.labels.dtype == np.int64
    assert np.bincount(source.labels).tolist() == [6, 4, 10]
    example = source.example(6)
    assert (example.key, example.label) == ("ant/000.png", 1)
    assert example.image == (flat / "ant" / "000.png").read_bytes()


def test_splits_by_their_usual_names(split):
    splits = open_splits(split)
    assert {name: len(source) for name, source in splits.items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    assert keys(splits["test"])[0] == "test/cat/000.png"
    assert keys(open_source(split, "validation")) == keys(open_source(split, "val"))
    assert len(open_splits(split, val_fraction=0.5)["val"]) == 4  # its own val wins


def test_val_is_cut_off_train_where_there_is_none(split):
    shutil.rmtree(split / "validation")
    splits = open_splits(split, val_fraction=0.2)
    assert {name: len(source) for name, source in splits.items()} == {
        "train": 8,
        "val": 2,
        "test": 6,
    }
    assert sorted(keys(splits["train"]) + keys(splits["val"])) == keys(open_source(split))
    assert len(open_source(split)) == 10
    with pytest.raises(Error, match="there is no val split, only train and test: put it in val/"):
        open_source(split, "val")


def test_the_cut_is_stratified_and_follows_the_seed(flat):
    def cut(seed, folder=flat):
        return keys(open_source(folder, "val", val_fraction=0.3, seed=seed))

    val = open_source(flat, "val", val_fraction=0.3)
    assert np.bincount(val.labels).tolist() == [2, 1, 3]
    assert cut(0) == cut(0)
    assert cut(0) != cut(1)
    # One more image moves at most one other of its class, and none of another class.
    before = cut(0)
    (flat / "cat" / "new.png").write_bytes(encoded(smooth(seed=77)))
    after = set(cut(0)) ^ set(before)
    assert len(after - {"cat/new.png"}) <= 1
    assert all(key.startswith("cat/") for key in after)


def test_the_smallest_class_keeps_one_on_each_side(flat):
    splits = open_splits(flat, val_fraction=0.01)
    assert np.bincount(splits["val"].labels).tolist() == [1, 1, 1]
    splits = open_splits(flat, val_fraction=0.99)
    assert np.bincount(splits["train"].labels).tolist() == [1, 1, 1]


def test_a_subset_of_a_subset(flat):
    source = open_source(flat)
    inner = source.subset([3, 7, 11]).subset([2, 0])
    assert keys(inner) == [source.keys[11], source.keys[3]]
    assert inner.labels.tolist() == source.labels[[11, 3]].tolist()
    assert inner.example(0).image == source.example(11).image
    assert inner.keys[0:2] == keys(inner)
    again = inner.with_classes(["x", "cat", "ant", "Dog"]).subset([1])
    assert again.classes[again.labels[0]] == "Dog"


def test_deep_folders_odd_names_and_litter(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    data = encoded(smooth())
    for place in ("a/2024/may/x.PNG", "b/ü ñ\n.jpg", ".git/y.png", "__MACOSX/a/z.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(data)
    for place in ("a/.DS_Store", "a/._x.png", "b/Thumbs.db", "a/notes.txt", "b/x.heic", "top.csv"):
        (tmp_path / place).write_bytes(b"?")
    with open(os.fsencode(tmp_path) + b"/b/\xff\xfe.png", "wb") as file:  # no UTF-8
        file.write(data)
    source = open_source(tmp_path)
    assert keys(source) == [
        "a/000.png",
        "a/001.png",
        "a/2024/may/x.PNG",
        "b/000.png",
        "b/001.png",
        "b/ü ñ\n.jpg",
        "b/\\xff\\xfe.png",
    ]
    assert source.ignored == ("a/notes.txt", "b/x.heic", "top.csv")
    assert all(source.example(i).image for i in range(len(source)))
    json.dumps(keys(source)).encode()


def test_links_are_followed_once_and_loops_end(tmp_path):
    write_classes(tmp_path / "data", {"a": 2, "b": 2})
    write_classes(tmp_path / "elsewhere", {"c": 3})
    data = tmp_path / "data"
    (data / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (data / "a" / "up").symlink_to(data)
    (data / "a" / "self").symlink_to(data / "a")
    (data / "a" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (data / "a" / "ring.png").symlink_to(data / "a" / "ring.png")
    os.mkfifo(data / "b" / "pipe.png")
    source = open_source(data)
    assert keys(source) == [
        *("a/000.png", "a/001.png", "a/nowhere.png", "a/ring.png"),
        *("b/000.png", "b/001.png"),
        *("c/000.png", "c/001.png", "c/002.png"),
    ]
    with pytest.raises(Error, match=r"^a/nowhere.png: no such file"):
        source.example(2)


def test_a_pipe_in_a_table_does_not_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "t.csv").write_text("path,label\npipe.png,a\npipe.png,b\n")
    with pytest.raises(Error, match=r"pipe\.png: not a file"):
        open_source(tmp_path / "t.csv").example(0)


def test_a_class_may_be_called_train(tmp_path):
    write_classes(tmp_path, {"train": 3, "bus": 2})
    assert open_source(tmp_path).classes == ("bus", "train")


def test_folders_that_are_no_split_are_passed_over_and_named(split):
    write_classes(split / "drafts", {"cat": 1})
    (split / "readme.md").write_text("hello")
    assert open_source(split).ignored == ("drafts/", "readme.md")
    assert open_source(split, "test").ignored == ()


def test_a_folder_with_a_test_split_only(split):
    for name in ("train", "validation"):
        shutil.rmtree(split / name)
    assert len(open_source(split, "test")) == 6
    with pytest.raises(Error, match="no train split, only test"):
        open_source(split)


def test_labels_counted_in_a_models_classes(flat):
    source = open_source(flat, classes=["cat", "zebra", "ant", "Dog"])
    assert source.classes == ("cat", "zebra", "ant", "Dog")
    assert source.labels[[0, 6, 10]].tolist() == [3, 2, 0]
    with pytest.raises(Error, match=r"class ant is not among the 2 known ones \(Dog, cat\)"):
        open_source(flat, classes=["Dog", "cat"])


# --- wrong folders ---------------------------------------------------------------------------


def refused(spec, match: str, **options) -> None:
    with pytest.raises(Error, match=match) as caught:
        open_splits(spec, **options)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path, flat):
    refused(tmp_path / "dat", "no such folder or file; did you mean 'data'")
    refused("/no/such/place", "/no/such/place: no such folder or file")
    refused("demo:fasion", "no such data: 'demo:fasion' .there is demo:fashion")


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "the folder is empty; DATA is a folder with one folder of images for each")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    refused(tmp_path, r"no images in its folders \(a, b\)")


def test_one_class_only(tmp_path):
    write_classes(tmp_path, {"cat": 3})
    refused(tmp_path, r"one class only \(cat\)")


def test_an_archive_unpacked_into_a_folder_of_its_own(tmp_path):
    write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    refused(tmp_path, f"one class only .pets.*lie deeper, give {tmp_path / 'pets'}")


def test_a_class_with_one_image(tmp_path):
    write_classes(tmp_path, {"cat": 3, "dog": 1, "emu": 1})
    refused(tmp_path, "only one image in class dog, emu", val_fraction=0.1)
    assert len(open_source(tmp_path)) == 5  # nothing to cut: fine


def test_a_class_without_images(flat):
    (flat / "bee").mkdir()
    (flat / "bee" / "notes.txt").write_text("soon")
    refused(flat, "no images in class folder bee: add some, or remove the folder")


def test_images_without_class_folders(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(smooth(), "JPEG"))
    refused(tmp_path, r"3 images \(0.jpg, 1.jpg and 1 more\) but no class folders: put each")


def test_splits_without_class_folders(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(encoded(smooth()))
    refused(tmp_path, "no class folders in test, train: put images into test/<class>/")


def test_a_test_class_that_train_lacks(split):
    write_classes(split / "test", {"zebra": 1})
    refused(split, "class zebra in test is not in train")


def test_two_folders_for_one_split(split):
    write_classes(split / "val", {"cat": 1})
    refused(split, "val and validation are the same split")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 7])
def test_a_val_fraction_that_is_none(flat, fraction):
    refused(flat, "between 0 and 1", val_fraction=fraction)


def test_a_split_that_does_not_exist(flat):
    with pytest.raises(Error, match="no split is called 'dev': it is train, val or test"):
        open_source(flat, "dev")
    with pytest.raises(Error, match="there is no test split, only train"):
        open_source(flat, "test")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("a.parquet", "a.parquet: no parquet file that can be read"),
        ("a.tar", "a.tar: no tar archive"),
        ("a.tgz", "a compressed archive has no places to seek to: decompress it"),
        ("a.zip", "a file of an unknown kind"),
        ("a.jpg", "one picture, where DATA is a folder"),
        ("a.xyz", "of an unknown kind; DATA is a class folder, or a file that ends in .csv, .tsv"),
    ],
)
def test_files_of_another_kind(tmp_path, name, match):
    (tmp_path / name).write_bytes(b"?")
    refused(tmp_path / name, match)


def test_a_folder_that_may_not_be_read(flat):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (flat / "cat").chmod(0)
    refused(flat, "cat: cannot be read .permission denied")


# --- tables ----------------------------------------------------------------------------------


@pytest.fixture
def table(flat) -> Path:
    rows = [f"cat/00{i}.png,cat,{'test' if i == 3 else 'train'}" for i in range(4)]
    rows += [f"Dog/00{i}.png, dog ,{'Validation' if i else 'train'}" for i in range(2)]
    (flat / "t.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    return flat / "t.csv"


def test_a_csv_with_splits(table):
    splits = open_splits(table)
    assert {name: keys(source) for name, source in splits.items()} == {
        "train": ["cat/000.png", "cat/001.png", "cat/002.png", "Dog/000.png"],
        "val": ["Dog/001.png"],
        "test": ["cat/003.png"],
    }
    assert splits["val"].classes == ("cat", "dog")
    assert splits["val"].labels.tolist() == [1]
    assert splits["train"].example(3).image == (table.parent / "Dog" / "000.png").read_bytes()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_spreadsheets_write(flat, separator, encoding):
    rows = [["label", "n", "path"], ["c,at", "1", "cat/000.png"], ["dög", "2", "Dog/000.png"]]
    lines = [separator.join(f'"{cell}"' for cell in row) for row in rows]
    (flat / "t.csv").write_text("\r\n".join(lines), encoding=encoding)
    source = open_source(flat / "t.csv")
    assert source.classes == ("c,at", "dög")
    assert keys(source) == ["cat/000.png", "Dog/000.png"]


def test_a_jsonl_with_numbers_for_labels_and_absolute_paths(flat):
    rows = [
        {"path": str(flat / "cat" / "000.png"), "label": 10, "author": None},
        {"path": "cat/001.png", "label": 2},
    ]
    (flat / "t.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    source = open_source(flat / "t.jsonl")
    assert source.classes == ("10", "2")
    assert source.example(0).image == (flat / "cat" / "000.png").read_bytes()


def test_other_column_names(flat):
    (flat / "t.csv").write_text("file,species\ncat/000.png,cat\nDog/000.png,dog\n")
    source = open_source(flat / "t.csv", image_column="file", label_column="species")
    assert source.classes == ("cat", "dog")
    refused(flat / "t.csv", r"no column 'path' \(there are file, species\)")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("t.csv", "path,labell\nx.png,a\n", "no column 'label' .*; did you mean 'labell'"),
        ("t.jsonl", '{"path": "x", "labels": 3}', "labels is a list of labels, not 3"),
        ("t.jsonl", '{"path": "x", "labels": [["a"]]}', "labels is a list of labels, not of lists"),
        ("t.csv", "", "no column 'path'"),
        ("t.csv", "path,label\n", "no rows"),
        ("t.csv", "path,label\ncat/000.png,\n", "line 2: the label is empty"),
        ("t.csv", "path,label\ncat/000.png\n", "line 2: the label is empty"),
        ("t.csv", "path,label\n,cat\n", "line 2: the path is empty"),
        ("t.csv", 'path,label\ncat/000.png,"a"b"c\n', "line 2 is no CSV"),
        ("t.csv", "path,label,split\ncat/000.png,a,dev\n", "split is train, val or test, not 'de"),
        ("t.csv", "path,label,split\ncat/000.png,a\n", "split is train, val or test, not ''"),
        (
            "t.csv",
            "path,label\na.png,a\nb.png,b\ncat/000.png,a\n",
            r"2 of 3 paths do not exist \(a.png, b.png\); paths are relative to",
        ),
        ("t.jsonl", '{"path": "cat/000.png"}', "line 1: no column 'label'"),
        ("t.jsonl", '{"path": "cat/000.png", "label": null}', "line 1: the label is empty"),
        ("t.jsonl", '{"path": "x", "label": ["a", "b"]}', "label is one value, not a list"),
        ("t.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("t.jsonl", "[" * 100_000, "line 1 is not a JSON object"),
        ("t.jsonl", '{"path": "a\\u0000b", "label": "c"}', "line 1: the path is broken"),
    ],
)
def test_wrong_tables(flat, name, text, match):
    (flat / name).write_text(text)
    refused(flat / name, match)


def test_a_table_in_another_encoding(flat):
    (flat / "t.csv").write_text("path,label\nx,ä\n", encoding="utf-16")
    refused(flat / "t.csv", "not UTF-8 text")


# --- arrays ----------------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), np.uint8)


def test_arrays_in_colour_and_grey():
    source = open_source((IMAGES, [0, 1, 2, 0, 1, 2]))
    assert source.classes == ("0", "1", "2")
    np.testing.assert_array_equal(source.example(4).image, IMAGES[4])
    grey = ArraySource(IMAGES[..., 0], ["b", "a", "b", "a", "b", "a"])
    assert grey.classes == ("a", "b")
    assert grey.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert grey.example(0).image.shape == (8, 9, 3)
    np.testing.assert_array_equal(grey.arrays(np.array([2, 0]))[1], grey.example(0).image)
    assert len(open_splits(grey, val_fraction=0.4)["val"]) == 2
    assert np.shares_memory(ArraySource(IMAGES, [0] * 6).images, IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (IMAGES / 255, [0] * 6, "images are uint8 in 0..255, not float64"),
        (IMAGES.transpose(0, 3, 1, 2), [0] * 6, r"not \[6, 3, 8, 9\]; move the channels last"),
        (IMAGES, [0, 1], r"6 images, but labels are \[2\]"),
        (IMAGES, [0.5] * 6, "labels are whole numbers or class names, not float64"),
        (IMAGES, [-1, 0, 0, 0, 0, 1], "labels lie between 0 and 1 for 2 classes, not between -1"),
        (IMAGES[:0], [], "no images"),
        (IMAGES, [0] * 6, "one class only"),
    ],
)
def test_wrong_arrays(images, labels, match):
    refused((images, labels), match)


def test_keys_behave_as_a_list():
    names = ["b", "", "ü/ñ.png", "a" * 300]
    several = Keys(names)
    assert list(several) == names
    assert several[-1] == names[-1]
    assert several[1:3] == names[1:3]
    assert "b" in several
    for out in (4, -5):
        with pytest.raises(IndexError):
            several[out]
