"""The same pictures give the same examples and batches, however they are laid out."""

import copy
import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from tests.data.layouts import class_label, write_parquet, write_shard
from tests.data.pictures import write_classes
from vitrail.data.decode import decode
from vitrail.data.loader import eval_batches, train_batches
from vitrail.data.scan import readable, scan
from vitrail.data.sources import open_source, open_splits
from vitrail.data.transforms import Augment
from vitrail.kit.preprocess import Preprocessing

CLASSES = ["Dog", "ant", "cat"]
SIZE = Preprocessing(size=(16, 16))
STRONG = Augment(crop="inception", flip=0.5, jitter=0.3, erase=0.3)


class Pictures:
    """The pictures of a class folder, in its order."""

    def __init__(self, root: Path):
        self.folder = root / "folder"
        write_classes(self.folder, {"cat": 7, "Dog": 5, "ant": 4}, (24, 20))
        self.paths = [p for name in CLASSES for p in sorted((self.folder / name).glob("*.png"))]
        self.names = [path.parent.name for path in self.paths]
        self.data = [path.read_bytes() for path in self.paths]
        self.numbers = [CLASSES.index(name) for name in self.names]

    def samples(self, label: str) -> list:
        """As WebDataset's samples, with the label in one field or another."""
        content = {
            "cls": lambda i: str(self.numbers[i]),
            "txt": lambda i: self.names[i] + "\n",
            "json": lambda i: json.dumps({"width": 24, "label": self.names[i]}),
        }[label]
        return [(f"{i:06d}", {"png": d, label: content(i)}) for i, d in enumerate(self.data)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Pictures:
    return Pictures(tmp_path_factory.mktemp("pictures"))


def lay_out(kind: str, pictures: Pictures, root: Path):
    """DATA of this kind, and words that `open_source` needs for it."""
    if kind == "folder":
        return pictures.folder, {}
    rows = [
        {"path": str(path), "label": name}
        for path, name in zip(pictures.paths, pictures.names, strict=True)
    ]
    if kind == "csv":
        with (root / "t.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "label"])
            writer.writeheader()
            writer.writerows(rows)
        return root / "t.csv", {}
    if kind == "jsonl":
        (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return root / "t.jsonl", {}
    if kind.startswith("shards"):
        samples = pictures.samples(kind.partition(" ")[2])
        for k in range(4):
            write_shard(root / "shards" / f"{k:04d}.tar", samples[4 * k : 4 * k + 4])
        if kind == "shards cls":
            (root / "shards" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        return str(root / "shards" / "{0000..0003}.tar"), {}
    if kind == "parquet":
        half = [slice(0, 9), slice(9, 16)]
        for k, part in enumerate(half):
            write_parquet(
                root / "data" / f"train-{k:05d}-of-00002.parquet",
                pictures.data[part],
                pictures.numbers[part],
                class_label(CLASSES),
                row_group_size=4,
            )
        return root, {}
    if kind == "parquet bare":
        write_parquet(
            root / "t.parquet", pictures.data, pictures.names, image="png", label="animal",
            nested=False,
        )  # fmt: skip
        return root / "t.parquet", {"image_column": "png", "label_column": "animal"}
    if kind == "parquet by datasets":
        of_datasets(pictures).to_parquet(str(root / "t.parquet"))
        return root / "t.parquet", {}
    if kind == "hf parquet":
        of_datasets(pictures).to_parquet(str(root / "set" / "train.parquet"))
        return f"hf:{root}/set", {}
    if kind == "hf saved":
        datasets.DatasetDict({"train": of_datasets(pictures)}).save_to_disk(str(root / "saved"))
        return f"hf:{root}/saved", {}
    if kind == "hf folder":
        return f"hf:{pictures.folder}", {}
    images = np.stack([decode(data) for data in pictures.data])
    return (images, np.array(pictures.numbers)), {"classes": CLASSES}


def of_datasets(pictures: Pictures) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    )
    rows = [{"bytes": data, "path": None} for data in pictures.data]
    return datasets.Dataset.from_dict({"image": rows, "label": pictures.numbers}, features)


KINDS = [
    *("folder", "csv", "jsonl", "shards cls", "shards txt", "shards json", "parquet"),
    *("parquet bare", "parquet by datasets", "hf parquet", "hf saved", "hf folder", "arrays"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_all_sources_give_the_same_examples_and_batches(
    kind, pictures, tmp_path, monkeypatch, request
):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    spec, words = lay_out(kind, pictures, tmp_path)
    source = open_source(spec, **words)
    assert source.classes == tuple(CLASSES)
    assert source.labels.tolist() == pictures.numbers
    assert len(set(source.keys)) == len(source)
    for i in range(len(source)):
        example = source.example(i)
        assert (example.label, example.labels) == (pictures.numbers[i], (pictures.numbers[i],))
        if kind == "arrays":
            np.testing.assert_array_equal(example.image, decode(pictures.data[i]))
        else:
            assert example.image == pictures.data[i]
            assert source.size(i) == len(pictures.data[i])
    one = open_source(pictures.folder)
    for workers in (0, 1, 2):
        ours = train_batches(source, SIZE, STRONG, 7, seed=3, workers=workers, stop_sample=32)
        theirs = train_batches(one, SIZE, STRONG, 7, seed=3, stop_sample=32)
        for batch, other in zip(ours, theirs, strict=True):
            for name in ("images", "labels", "indices", "epochs", "repeats"):
                assert torch.equal(getattr(batch, name), getattr(other, name)), (workers, name)
    for batch, other in zip(eval_batches(source, SIZE, 6), eval_batches(one, SIZE, 6), strict=True):
        assert torch.equal(batch.images, other.images)


@pytest.mark.parametrize("kind", ["shards cls", "parquet", "hf saved"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_left_out_and_named_by_every_source(
    kind, workers, pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    damaged = copy.copy(pictures)
    damaged.data = [d[:-20] if i == 5 else d for i, d in enumerate(pictures.data)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "torn").mkdir()
    whole, torn = (
        open_source(lay_out(kind, one, tmp_path / name)[0])
        for name, one in (("whole", pictures), ("torn", damaged))
    )
    found = scan(torn)
    assert found.unreadable == ((torn.keys[5], "the file is cut short"),)
    assert len(readable(torn, found)) == 15
    words = {"seed": 3, "stop_sample": 32, "workers": workers}
    ours = list(train_batches(torn, SIZE, STRONG, 8, **words))
    theirs = list(train_batches(whole, SIZE, STRONG, 8, **words))
    assert [pair for b in ours for pair in b.skipped] == [found.unreadable[0]] * 2
    for batch, other in zip(ours, theirs, strict=True):
        kept = other.indices != 5
        assert torch.equal(batch.images, other.images[kept])
        assert torch.equal(batch.indices, other.indices[kept])


@pytest.mark.parametrize("kind", ["folder", "csv", "shards txt", "parquet", "hf saved", "arrays"])
def test_a_class_map_numbers_every_source(kind, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    spec, words = lay_out(kind, pictures, tmp_path)
    order = ["cat", "zebra", "Dog", "ant"]
    (tmp_path / "order.txt").write_text("\n".join(order))
    if kind == "arrays":  # numbers are places in the map
        source = open_source(spec, classes=tmp_path / "order.txt")
        assert source.labels.tolist() == pictures.numbers
    else:
        source = open_source(spec, **words, classes=tmp_path / "order.txt")
        assert [source.classes[k] for k in source.labels] == pictures.names
    assert source.classes == tuple(order)
    assert sorted(open_splits(source, val_fraction=0.3)) == ["train", "val"]
