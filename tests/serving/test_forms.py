"""Forms of predictions: what is written is read back, whatever stands in a name or a reason."""

import csv
import json

import pytest

from vitrail.kit.errors import Error
from vitrail.serving.forms import opened, record_of, tally_of
from vitrail.serving.stream import Prediction

ODD = ["plain.jpg", 'a,b "c".jpg', "new\nline.jpg", "é\\xff.jpg", '"error": null}']
ROWS = [
    *(Prediction(name, [("cat, big", 0.75), ('a "dog"', 0.25)]) for name in ODD),
    *(Prediction(name, [], f'no picture: "error": null}} {i}') for i, name in enumerate(ODD)),
    *(Prediction(f"{i}.jpg", [], "empty") for i in range(4)),
]


def written(form, path):
    with opened(form, path) as write:
        for row in ROWS:
            write(row)
    return path


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_what_was_written_is_counted(form, tmp_path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    tally = tally_of(form, written(form, tmp_path / "file"))
    assert (tally.records, tally.failed) == (14, 9)
    assert tally.named == [(row.path, row.error) for row in ROWS if row.error][:5]


def test_jsonl_and_parquet_hold_the_same_records(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = written("jsonl", tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record_of(row) for row in ROWS]
    table = parquet.read_table(written("parquet", tmp_path / "a.parquet"))
    assert table.to_pylist() == [json.loads(line) for line in lines]


def test_parquet_is_written_in_groups_of_rows(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("vitrail.serving.forms.ROW_GROUP", 5)
    file = parquet.ParquetFile(written("parquet", tmp_path / "a.parquet"))
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [5, 5, 4]


def test_csv_has_a_row_for_each_label(tmp_path):
    with written("csv", tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 2 + 9
    assert rows[2] == {
        "path": 'a,b "c".jpg',
        "rank": "1",
        "label": "cat, big",
        "probability": "0.750000",
        "error": "",
    }


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("jsonl", b'{"path": "a.jpg"\n'),
        ("jsonl", b"{}\n"),
        ("csv", b"name,label\n"),
        ("csv", b""),
        ("parquet", b"PAR1 and no more"),
    ],
)
def test_what_is_damaged_is_said(form, content, tmp_path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "piece").write_bytes(content)
    with pytest.raises(Error, match=r"piece (is damaged|cannot be read)"):
        tally_of(form, tmp_path / "piece")


def test_parquet_does_not_go_to_what_is_open(capsys):
    import sys

    with pytest.raises(Error, match="give --out"), opened("parquet", sys.stdout):
        pass
