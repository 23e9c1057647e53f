"""The embedded data: whole, balanced, small, and the same as a folder."""

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pytest

from vitrail.data import fashion
from vitrail.data.sources import open_source, open_splits
from vitrail.kit.errors import Error

HOME = Path(fashion.__file__).parent
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CUT = Path(__file__).resolve().parents[2] / "tools" / "cut_fashion.py"


def test_it_is_what_the_readme_says():
    splits = open_splits("demo:fashion")
    assert list(splits) == ["train", "test"]
    for split, count in (("train", 1000), ("test", 200)):
        source = splits[split]
        assert np.bincount(source.labels).tolist() == [count] * 10
        assert source.example(0).image.shape == (28, 28, 3)
        assert source.keys[0].startswith(f"{split}/Ankle boot/")
        assert list(source.classes) == sorted(source.classes)
    assert len(open_source("demo:fashion", "val", val_fraction=0.1)) == 1000


def test_no_test_picture_is_a_training_picture():
    train, test = (
        {hashlib.sha256(image.tobytes()).digest() for image in source.images}
        for source in fashion.load().values()
    )
    assert len(train) == 10_000
    assert len(test) == 2_000
    assert not train & test


def test_it_takes_less_than_6_mb_and_has_its_licence():
    assert sum(file.stat().st_size for file in HOME.iterdir() if file.is_file()) < 6_000_000
    assert "Copyright © 2017 Zalando SE" in (HOME / "LICENSE").read_text(encoding="utf-8")
    assert "tools/cut_fashion.py" in (HOME / "SOURCE.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_anybody_can_cut_it_again(tmp_path):
    runpy.run_path(str(CUT))["cut"](DEBIAN, tmp_path)
    with np.load(tmp_path / "fashion.npz") as again, np.load(HOME / "fashion.npz") as ours:
        assert again.files == ours.files
        for name in ours.files:
            np.testing.assert_array_equal(again[name], ours[name])


def test_the_folder_is_the_same_data_in_the_same_order(tmp_path):
    assert fashion.write_folder(tmp_path / "f") == {"train": 10_000, "test": 2_000}
    folder, demo = open_splits(tmp_path / "f"), open_splits("demo:fashion")
    for split in ("train", "test"):
        assert folder[split].classes == demo[split].classes
        assert list(folder[split].keys) == list(demo[split].keys)
        np.testing.assert_array_equal(folder[split].labels, demo[split].labels)
    with pytest.raises(Error, match="not an empty folder: name another one"):
        fashion.write_folder(tmp_path / "f")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(Error, match=r"not an empty folder|cannot be written"):
            fashion.write_folder(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"
