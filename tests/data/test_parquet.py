"""Parquet: the columns of `datasets` and of others, read by index without reading much."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.layouts import class_label, write_parquet
from tests.data.pictures import encoded, smooth
from vitrail.data import parquet
from vitrail.data.decode import decode
from vitrail.data.fingerprint import fingerprint
from vitrail.data.loader import order, train_batches
from vitrail.data.scan import scan
from vitrail.data.sources import open_source, open_splits
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing

PNG = [encoded(smooth(12, 10, seed=k)) for k in range(12)]
CAT_DOG = class_label(["dog", "cat"])


def refused(spec, match: str, **options) -> None:
    with pytest.raises(Error, match=match) as caught:
        open_splits(spec, **options)
    assert "\n" not in str(caught.value)


def test_class_names_of_the_schema_keep_their_order(tmp_path):
    write_parquet(tmp_path / "a.parquet", PNG[:3], [1, 0, 1], CAT_DOG, paths=["x/1.png", None, ""])
    source = open_source(tmp_path / "a.parquet")
    assert source.classes == ("dog", "cat")
    assert source.labels.tolist() == [1, 0, 1]
    assert list(source.keys) == ["a.parquet/x/1.png", "a.parquet/000001", "a.parquet/000002"]
    assert [source.image(i) for i in (2, 0, 1)] == [PNG[2], PNG[0], PNG[1]]
    # Names that are numbers are names: 1 is the second class, which is called "0".
    write_parquet(tmp_path / "a.parquet", PNG[:3], [1, 0, 1], class_label(["1", "0"]))
    assert open_source(tmp_path / "a.parquet").labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["10", "2", "2"], ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"), [10, 2, 2]),
        (["b", "B", "ä"], ("B", "b", "ä"), [1, 0, 2]),
        (pa.array([2, 0, 2], pa.uint8()), ("0", "1", "2"), [2, 0, 2]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1]),
        (pa.array(["b", "a", "b"], pa.large_string()), ("a", "b"), [1, 0, 1]),
    ],
)
def test_labels_of_several_types(tmp_path, labels, classes, numbers):
    write_parquet(tmp_path / "a.parquet", PNG[:3], labels)
    source = open_source(tmp_path / "a.parquet")
    assert source.classes == classes
    assert source.labels.tolist() == numbers


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": CAT_DOG, "_type": "List"},
        {"feature": CAT_DOG, "length": -1, "_type": "Sequence"},
        [CAT_DOG],
    ],
)
def test_a_list_of_labels(tmp_path, feature):
    write_parquet(tmp_path / "a.parquet", PNG[:3], [[1], [], [0, 1]], feature, label="labels")
    source = open_source(tmp_path / "a.parquet")
    assert source.multi_label
    assert source.classes == ("dog", "cat")
    assert source.labels.tolist() == [[0, 1], [0, 0], [1, 1]]
    assert source.example(2).labels == (0, 1)
    write_parquet(tmp_path / "a.parquet", PNG[:3], [["x"], None, ["y", "x"]], label="tags")
    source = open_source(tmp_path / "a.parquet", label_column="tags")
    assert (source.classes, source.labels.tolist()) == (("x", "y"), [[1, 0], [0, 0], [1, 1]])


def test_which_columns(tmp_path):
    table = pa.table(
        {"img": pa.array(PNG[:2]), "fine": [1, 0], "coarse": [0, 1], "note": [0.5, 0.5]}
    )
    features = {"fine": CAT_DOG, "coarse": CAT_DOG}

    def write(**features) -> Path:
        about = json.dumps({"info": {"features": features}})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": about}), tmp_path / "a.parquet"
        )
        return tmp_path / "a.parquet"

    refused(write(**features), r"several columns hold a label \(fine, coarse\): say --label-column")
    assert open_source(write(fine=CAT_DOG)).labels.tolist() == [1, 0]  # the only ClassLabel
    assert open_source(write(**features), label_column="coarse").labels.tolist() == [0, 1]
    refused(write(), r"which column is the label\? say --label-column \(of img, fine, coarse")
    refused(write(), "no column 'corse' .*did you mean 'coarse'", label_column="corse")
    refused(write(), "column note holds double, where labels are", label_column="note")
    refused(
        write(), "column fine holds int64, where a picture is bytes",
        image_column="fine", label_column="coarse",
    )  # fmt: skip
    # Whatever stands in the metadata, it is only looked at.
    assert open_source(write(fine=CAT_DOG, coarse=7, img=[[]])).classes == ("dog", "cat")


def test_splits_by_name_and_files_in_order(tmp_path):
    write_parquet(tmp_path / "train-00001-of-00002.parquet", PNG[2:4], [1, 1], CAT_DOG)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", PNG[:2], [0, 0], CAT_DOG)
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", PNG[4:5], [0], CAT_DOG)
    write_parquet(tmp_path / "test.parquet", PNG[5:6], [1], CAT_DOG)
    (tmp_path / "README.md").write_text("a card")
    splits = open_splits(tmp_path)
    assert {name: len(source) for name, source in splits.items()} == {
        "train": 4,
        "val": 1,
        "test": 1,
    }
    assert [splits["train"].image(i) for i in range(4)] == PNG[:4]
    assert splits["test"].labels.tolist() == [1]
    assert splits["train"].ignored == ("README.md",)
    other = class_label(["cat", "dog"])
    write_parquet(tmp_path / "test.parquet", PNG[5:6], [1], other)
    refused(tmp_path, r"test\.parquet: its columns or class names are others")


def damaged(path: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    return path


def test_wrong_files(tmp_path):
    path = tmp_path / "a.parquet"
    for data in (b"", b"PAR1", b"PAR1" + b"x" * 100, b"x" * 1000):
        path.write_bytes(data)
        refused(path, r"a\.parquet: no parquet file that can be read")
    write_parquet(path, PNG, [0, 1] * 6, CAT_DOG)
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    refused(path, r"a\.parquet: no parquet file that can be read")
    write_parquet(path, PNG[:2], [0, -1], CAT_DOG)
    refused(path, "row 1 has label -1, which is none of 2 classes .data whose labels are kept")
    write_parquet(path, PNG[:2], [0, -1])
    refused(path, "the label of row 1 is -1")
    write_parquet(path, PNG[:2], pa.array([0, None]), CAT_DOG)
    refused(path, "row 1 has no label")
    write_parquet(path, [], pa.array([], pa.int64()), CAT_DOG)
    refused(path, r"no rows in a\.parquet")


def test_a_picture_that_is_not_there_and_a_damaged_row_group(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", [PNG[0], None, *PNG[2:6]], [0, 1] * 3, CAT_DOG,
        row_group_size=2, compression="snappy", use_dictionary=False,
        paths=[None, "/etc/passwd"] * 3,
    )  # fmt: skip
    source = open_source(path)
    with pytest.raises(Error, match="/etc/passwd: column image holds no bytes there"):
        source.example(1)  # a path is a name: no file is read
    assert source.size(1) == -1
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    source = open_source(damaged(path, group.data_page_offset))
    found = scan(source)
    assert [key for key, _ in found.unreadable] == [source.keys[i] for i in (1, 2, 3)]
    assert found.unreadable[1][1].startswith("its row group cannot be read (")
    assert source.image(4) == PNG[4]
    source.ready()


@pytest.mark.parametrize("held", [True, False])
def test_row_groups_are_read_once_where_they_fit_and_few_are_kept_where_not(
    tmp_path, monkeypatch, held
):
    write_parquet(tmp_path / "a.parquet", PNG, [0, 1] * 6, CAT_DOG, row_group_size=3)
    size = int(open_source(tmp_path / "a.parquet").groups[:, 3].sum())
    monkeypatch.setattr(parquet, "HELD", size if held else size - 1)
    monkeypatch.setattr(parquet, "RECENT", size // 2)
    source = open_source(tmp_path / "a.parquet")
    reads = []
    read = source._read
    monkeypatch.setattr(source, "_read", lambda file, k: reads.append(k) or read(file, k))
    places = [int(i) for epoch in range(3) for i in order(0, epoch, 12)]
    assert [source.image(i) for i in places] == [PNG[i] for i in places]
    if held:
        assert sorted(reads) == [0, 1, 2, 3]
        assert len(source._recent) == 4
    else:
        assert len(reads) > 8
        assert len(source._recent) <= 2
        assert [source.image(i) for i in (6, 7, 8, 6)] == [PNG[i] for i in (6, 7, 8, 6)]
        assert len(reads) < len(places)
        assert source.size(0) == source.size(2) == source.groups[0, 3]  # of the row group


def test_a_row_group_too_large_for_the_memory_is_refused(tmp_path, monkeypatch):
    source = open_source(write_parquet(tmp_path / "a.parquet", PNG, [0, 1] * 6, CAT_DOG))
    monkeypatch.setattr(parquet, "MAX_GROUP", 1000)
    with pytest.raises(Error, match=r"a row group of .* GiB: write the file in smaller ones"):
        source.example(0)


def test_a_source_may_be_sent_to_another_process(tmp_path):
    source = open_source(write_parquet(tmp_path / "a.parquet", PNG, [0, 1] * 6, CAT_DOG))
    assert source.image(3) == PNG[3]
    sent = pickle.dumps(source.subset([3]))
    assert len(sent) < 5_000
    assert pickle.loads(sent).image(0) == PNG[3]


@pytest.mark.parametrize("sampling", ["uniform", "nearby"])
def test_the_order_goes_on_at_ten_random_places_of_a_thousand(tmp_path, sampling):
    pictures = [encoded(smooth(2, 2, seed=k)) for k in range(1000)]
    write_parquet(tmp_path / "a.parquet", pictures, [0, 1] * 500, CAT_DOG, row_group_size=100)

    def keys(start: int) -> list[str]:
        batches = train_batches(
            open_source(tmp_path / "a.parquet"), Preprocessing(size=(2, 2)), None, 64, seed=3,
            start_sample=start, stop_sample=1500, sampling=sampling,
        )  # fmt: skip
        return [key for batch in batches for key in batch.keys]

    whole = keys(0)
    assert sorted(whole[:1000]) == sorted(open_source(tmp_path / "a.parquet").keys)
    for start in np.random.default_rng(0).integers(1, 1000, 10).tolist():
        assert keys(start) == whole[start:]


def test_a_changed_picture_is_noticed_without_reading_all(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "HELD", 0)
    path = tmp_path / "a.parquet"
    prints = []
    for pictures in (PNG, [*PNG[:4], PNG[4] + b"tail", *PNG[5:]]):
        write_parquet(path, pictures, [0, 1] * 6, CAT_DOG, row_group_size=3)
        source = open_source(path)
        prints.append(fingerprint(source, scan(source, limit=3)))
    assert prints[0].changes(prints[1]) == [
        "3 with other contents (a.parquet/000003, a.parquet/000004, a.parquet/000005)"
    ]


def resident(process: str) -> float:
    """Private memory in MiB: what a forked worker does not share with its parent."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_workers_share_the_pictures_that_are_held(tmp_path):
    noise = np.random.default_rng(0)
    pictures = [PNG[k % 12] + noise.bytes(40_000) for k in range(600)]
    write_parquet(tmp_path / "a.parquet", pictures, [0, 1] * 300, CAT_DOG, row_group_size=50)
    source = open_source(tmp_path / "a.parquet")  # 24 MB
    batches = train_batches(source, Preprocessing(size=(10, 12)), None, 30, workers=2)
    for _ in range(5):
        next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    before = [resident(child) for child in children]
    for _ in range(60):
        next(batches)
    after = [resident(child) for child in children]
    batches.close()
    assert len(before) >= 2
    assert max(np.subtract(after, before)) < 4


def test_cifar_as_it_lies_there(shared_data):
    splits = open_splits(shared_data / "cifar10")
    assert {name: len(source) for name, source in splits.items()} == {
        "train": 50_000,
        "test": 10_000,
    }
    assert splits["train"].classes[:3] == ("airplane", "automobile", "bird")
    key = splits["train"].keys[1]
    assert key == "train.parquet/train/automobile/1328.jpg"
    assert splits["train"].classes[splits["train"].labels[1]] == "automobile"
    assert decode(splits["train"].image(49_999)).shape == (32, 32, 3)
