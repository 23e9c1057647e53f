"""A data set that changed under a run is noticed, and the change is named."""

import shutil
from pathlib import Path

import pytest

from tests.data.pictures import write_classes
from vitrail.data.fingerprint import Fingerprint, fingerprint
from vitrail.data.scan import scan
from vitrail.data.sources import open_source
from vitrail.kit.errors import Error


@pytest.fixture
def folder(tmp_path) -> Path:
    write_classes(tmp_path / "data", {"a": 4, "b": 3}, kind="bmp")
    return tmp_path / "data"


def change(folder: Path, what: str) -> None:
    if what == "added":
        shutil.copy(folder / "a" / "000.bmp", folder / "a" / "new.bmp")
    elif what == "removed":
        (folder / "a" / "001.bmp").unlink()
    elif what == "renamed":
        (folder / "a" / "001.bmp").rename(folder / "a" / "other.bmp")
    elif what == "relabelled":
        (folder / "a" / "001.bmp").rename(folder / "b" / "001x.bmp")
    elif what == "changed":  # one byte, the same size
        data = bytearray((folder / "b" / "002.bmp").read_bytes())
        data[-1] ^= 1
        (folder / "b" / "002.bmp").write_bytes(data)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("added", ["1 added (a/new.bmp)"]),
        ("removed", ["1 removed (a/001.bmp)"]),
        ("renamed", ["1 renamed (a/001.bmp to a/other.bmp)"]),
        ("relabelled", ["1 renamed (a/001.bmp to b/001x.bmp)"]),
        ("changed", ["1 with other contents (b/002.bmp)"]),
        ("nothing", []),
    ],
)
def test_every_change_is_noticed_and_named(folder, what, words):
    before = fingerprint(open_source(folder))
    change(folder, what)
    after = fingerprint(open_source(folder))
    assert (before.sha256 == after.sha256) == (what == "nothing")
    assert before.changes(after) == words


def test_a_relabelled_row_and_another_order_of_a_table(folder):
    rows = [f"a/00{i}.bmp,{'x' if i % 2 else 'y'}" for i in range(4)]
    prints = []
    for these in (rows, [*rows[:3], "a/003.bmp,y"], rows[::-1], [*rows, rows[0]]):
        (folder / "t.csv").write_text("\n".join(["path,label", *these]))
        prints.append(fingerprint(open_source(folder / "t.csv")))
    assert prints[0].changes(prints[1]) == ["1 relabelled (a/003.bmp from x to y)"]
    assert prints[0].changes(prints[2]) == ["another order"]
    assert prints[0].changes(prints[3]) == ["1 added (a/000.bmp)"]
    assert len({one.sha256 for one in prints}) == 4


def test_dates_and_places_do_not_count(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(open_source(folder)) == fingerprint(open_source(tmp_path / "copy"))


def test_it_is_kept_in_a_file(folder, tmp_path):
    source = open_source(folder)
    one = fingerprint(source, scan(source))
    one.write(tmp_path / "data.jsonl.gz")
    again = Fingerprint.read(tmp_path / "data.jsonl.gz")
    assert again == one
    assert again.sha256 == one.sha256
    assert one.to_json() == {"by": "content", "examples": 7, "classes": 2, "sha256": one.sha256}
    damaged = (tmp_path / "data.jsonl.gz").read_bytes()[:-30]
    (tmp_path / "data.jsonl.gz").write_bytes(damaged)
    with pytest.raises(Error, match=r"data\.jsonl\.gz: the list of the run's data cannot be read"):
        Fingerprint.read(tmp_path / "data.jsonl.gz")


def test_large_sources_are_compared_by_size(folder):
    source = open_source(folder)
    before = fingerprint(source, scan(source, limit=3))
    assert before.by == "size"
    (folder / "a" / "000.bmp").write_bytes(b"longer" * 1000)
    assert before.changes(fingerprint(source, scan(source, limit=3))) == [
        "1 with other contents (a/000.bmp)"
    ]


def test_arrays_count_by_their_pixels():
    source = open_source("demo:fashion", "test")
    one, other = fingerprint(source.subset(range(20))), fingerprint(source.subset(range(1, 21)))
    assert one == fingerprint(source.subset(range(20)))
    assert [words.split(" (")[0] for words in one.changes(other)] == ["1 added", "1 removed"]
