"""``hf:``: data sets through `datasets`, copied or streamed, from folders; no network is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from tests.data.layouts import class_label, write_parquet
from tests.data.pictures import encoded, smooth, write_classes
from vitrail.data.hub import parse
from vitrail.data.loader import eval_batches, train_batches
from vitrail.data.sources import open_source, open_splits
from vitrail.data.stream import open_stream
from vitrail.data.transforms import Augment
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing

ROOT = Path(__file__).resolve().parents[2]
SIZE = Preprocessing(size=(16, 16))
STRONG = Augment(crop="inception", flip=0.5, jitter=0.3)
PNG = [encoded(smooth(24, 20, seed=k)) for k in range(40)]
CAT_DOG = class_label(["dog", "cat"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    for k in range(4):
        part = slice(10 * k, 10 * k + 10)
        path = tmp_path / "set" / "data" / f"train-{k:05d}-of-00004.parquet"
        write_parquet(path, PNG[part], [0, 1] * 5, CAT_DOG)
    write_parquet(
        tmp_path / "set" / "data" / "test-00000-of-00001.parquet", PNG[:3], [1] * 3, CAT_DOG
    )
    return tmp_path / "set"


def refused(spec, match: str, **options) -> None:
    with pytest.raises(Error, match=match) as caught:
        open_splits(spec, **options)
    assert "\n" not in str(caught.value)


def test_an_address_and_its_options():
    address = parse("hf:org/name?config=small&revision=v1&split=fold_1")
    assert (address.path, address.config, address.revision, address.split) == (
        "org/name", "small", "v1", "fold_1",
    )  # fmt: skip
    assert parse("hf:beans?stream").stream
    assert not parse("hf:beans?stream=0").stream
    for spec, match in (
        ("hf:", "followed by the name"),
        ("hf:beans?splt=x", "unknown option 'splt'; did you mean 'split'"),
        ("hf:beans?stream=maybe", "stream is 1 or 0"),
    ):
        with pytest.raises(Error, match=match):
            parse(spec)


def test_splits_classes_and_a_cache_that_stays_in_its_place(folder, cache):
    splits = open_splits(f"hf:{folder}")
    assert {name: len(source) for name, source in splits.items()} == {"train": 40, "test": 3}
    assert splits["train"].classes == ("dog", "cat")
    assert [splits["train"].image(i) for i in range(40)] == PNG
    assert list((cache / "datasets").rglob("*.arrow"))
    one = open_source(f"hf:{folder}?split=test")  # the split that was asked for is all there is
    assert len(one) == 3
    refused(f"hf:{folder}?split=dev", "cannot be opened|Unknown split")
    refused(f"hf:{folder}/none", "no such folder")


def test_other_splits_are_named(tmp_path):
    made = {
        name: datasets.Dataset.from_dict(
            {"image": [{"bytes": PNG[0], "path": None}] * 2, "label": [0, 1]},
            datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
            ),
        )
        for name in ("train", "validation", "unlabelled")
    }
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    splits = open_splits(f"hf:{tmp_path}/saved")
    assert list(splits) == ["train", "val"]
    assert splits["train"].ignored == ("split unlabelled",)
    assert len(open_source(f"hf:{tmp_path}/saved?split=unlabelled")) == 2
    refused(f"hf:{tmp_path}/saved?split=x", "there is only train, validation, unlabelled")
    made = {"fold_1": made["train"]}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "folds"))
    refused(f"hf:{tmp_path}/folds", r"none of its splits is train, val or test \(fold_1\): choose")


def test_several_labels(tmp_path):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "labels": datasets.List(datasets.ClassLabel(names=["a", "b", "c"])),
        }
    )
    rows = {"image": [{"bytes": d, "path": None} for d in PNG[:3]], "labels": [[2, 0], [], [1]]}
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "set" / "train.parquet"))
    hot = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    for spec in (f"hf:{tmp_path}/set", tmp_path / "set"):
        source = open_source(spec)
        assert source.multi_label
        assert (source.classes, source.labels.tolist()) == (("a", "b", "c"), hot)
    (batch,) = eval_batches(open_stream(f"hf:{tmp_path}/set"), SIZE, 8)
    assert batch.labels.tolist() == hot
    assert batch.labels.dtype == torch.float32


def test_data_cannot_name_python_to_run(tmp_path):
    made = tmp_path / "made"
    script = f"open({str(made)!r}, 'w')\n"
    for name, content in (("set/set.py", script), ("set/dataset_infos.json", "{}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    refused(f"hf:{tmp_path}/set", "hf:.*set: it wants to run code of its own, which is never")
    write_parquet(tmp_path / "card" / "train.parquet", PNG[:2], [0, 1], CAT_DOG)
    (tmp_path / "card" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.parquet\n"
        f"dataset_info: !!python/object/apply:os.system ['touch {made}']\n---\n"
    )
    refused(f"hf:{tmp_path}/card", "cannot be opened")
    about = {"_type": "os.system", "names": [f"touch {made}"], "id": f"touch {made}"}
    write_parquet(tmp_path / "other" / "train.parquet", PNG[:2], [0, 1], about)
    assert open_source(tmp_path / "other").classes == ("0", "1")
    assert not made.exists()


def test_no_network_is_one_sentence_and_nothing_at_home_is_touched(tmp_path):
    program = "from vitrail.data.sources import open_splits; open_splits('hf:nobody/nothing')"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "HOME": str(tmp_path / "home"),
            "VITRAIL_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(ROOT / "src"),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "vitrail.kit.errors.Error: hf:nobody/nothing: the hub cannot be reached ("
    )
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert left == []


# --- streams -----------------------------------------------------------------------------------


def all_of(batches) -> list:
    return list(batches)


def assert_same(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("images", "labels", "indices", "epochs", "repeats"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        for name in ("keys", "skipped", "epoch", "position"):
            assert getattr(one, name) == getattr(other, name), name


def test_a_stream_gives_every_sample_once_an_epoch_in_an_order_of_its_own(folder):
    stream = open_stream(f"hf:{folder}", window=8)
    assert stream.classes == ("dog", "cat")
    batches = all_of(train_batches(stream, SIZE, None, 7, seed=3, stop_sample=120))
    keys = [key for batch in batches for key in batch.keys]
    epochs = [keys[40 * e : 40 * e + 40] for e in range(3)]
    assert all(len(set(epoch)) == 40 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for epoch in epochs:  # part after part, shuffled within windows of 8
        for window in range(5):
            parts = [key.split("/")[0] for key in epoch[8 * window : 8 * window + 8]]
            assert len(set(parts)) <= 2
            assert epoch[8 * window : 8 * window + 8] != sorted(epoch[8 * window : 8 * window + 8])
    assert [b.position for b in batches[:7]] == [0, 7, 14, 21, 28, 35, 2]
    assert [b.epoch for b in batches[:7]] == [0] * 6 + [1]
    source = open_source(f"hf:{folder}")
    (whole,) = eval_batches(stream, SIZE, 64)
    (indexed,) = eval_batches(source, SIZE, 64)
    assert torch.equal(whole.images, indexed.images)
    assert torch.equal(whole.labels, indexed.labels)


def test_a_stream_is_the_same_for_workers_and_goes_on_at_ten_places(folder):
    stream = open_stream(f"hf:{folder}", window=8)
    whole = all_of(train_batches(stream, SIZE, STRONG, 5, seed=1, stop_sample=100))
    for workers in (1, 2):
        again = train_batches(stream, SIZE, STRONG, 5, seed=1, stop_sample=100, workers=workers)
        assert_same(all_of(again), whole)
    for done in np.random.default_rng(0).choice(np.arange(1, 20), 10, replace=False):
        rest = train_batches(
            open_stream(f"hf:{folder}", window=8), SIZE, STRONG, 5, seed=1,
            start_sample=5 * int(done), stop_sample=100,
        )  # fmt: skip
        assert_same(all_of(rest), whole[done:])


def test_going_on_reads_no_part_that_lies_before(folder):
    stream = open_stream(f"hf:{folder}", window=10)
    read = []
    stream.parts = [
        lambda k=k, part=part: read.append(k) or part() for k, part in enumerate(stream.parts)
    ]
    next(train_batches(stream, SIZE, None, 5, seed=1, start_sample=35))
    assert len(read) == 1


def test_what_a_stream_cannot_do_is_said(folder, tmp_path):
    refused(f"hf:{folder}?stream=1", "only train reads a stream")
    stream = open_stream(f"hf:{folder}")
    with pytest.raises(Error, match="a stream has no other sampling and no repeats"):
        train_batches(stream, SIZE, None, 4, sampling="balanced")
    with pytest.raises(Error, match="cannot be opened"):
        open_stream(f"hf:{folder}", "dev")
    write_parquet(tmp_path / "bare" / "train.parquet", [*PNG[:3], None], ["a", "b", "z", "a"])
    with pytest.raises(Error, match="does not say its classes beforehand: give --classes"):
        open_stream(f"hf:{tmp_path}/bare")
    stream = open_stream(f"hf:{tmp_path}/bare", classes=["b", "a"])
    with pytest.raises(Error, match="row 2 of part 0 is of class 'z', which is not among the 2"):
        all_of(eval_batches(stream, SIZE, 4))
    (batch,) = eval_batches(open_stream(f"hf:{tmp_path}/bare", classes=["z", "b", "a"]), SIZE, 4)
    assert batch.labels.tolist() == [2, 1, 0]
    assert batch.skipped == [("00000/000003", "there are no bytes of it")]


def test_a_folder_of_pictures_can_be_streamed(tmp_path):
    write_classes(tmp_path / "pictures", {"a": 3, "b": 2})
    (batch,) = eval_batches(open_stream(f"hf:{tmp_path}/pictures"), SIZE, 8)
    assert batch.labels.tolist() == [0, 0, 0, 1, 1]
    assert json.dumps(batch.keys)


@pytest.mark.parametrize(
    ("missing", "spec", "match"),
    [
        ("datasets", "hf:beans", r"hf:beans needs datasets: pip install 'vitrail\[hf\]'"),
        ("pyarrow", "{set}/data", r"reading parquet needs pyarrow: pip install 'vitrail\[hf\]'"),
    ],
)
def test_an_extra_that_is_missing_is_named(folder, monkeypatch, missing, spec, match):
    monkeypatch.setitem(sys.modules, missing, None)
    refused(spec.format(set=folder), match)
