"""What `train` says first, and which files it leaves out."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.pictures import encoded, smooth, write_classes
from vitrail.data.scan import readable, scan
from vitrail.data.sources import open_source
from vitrail.kit.errors import Error


@pytest.fixture
def messy(tmp_path) -> Path:
    """Ten good pictures of several kinds, and six files that cannot be read."""
    write_classes(tmp_path, {"a": 4, "b": 3}, (20, 10))
    large = encoded(smooth(400, 300), "JPEG")
    good = {
        "a/grey.png": encoded(smooth(30, 30).convert("L")),
        "b/large.jpg": large,
        "b/cmyk.jpg": encoded(smooth(50, 40).convert("CMYK"), "JPEG"),
    }
    bad = {
        "a/cut.jpg": large[: len(large) // 2],
        "a/cut.png": encoded(smooth())[:-20],
        "a/empty.png": b"",
        "b/text.jpg": b"sorry, 404",
        "b/damaged.bmp": encoded(smooth(), "BMP")[:-500],
    }
    for name, data in {**good, **bad}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b" / "gone.png").symlink_to("/nowhere")
    (tmp_path / "b" / "notes.txt").write_text("?")
    return tmp_path


def test_everything_wrong_is_found_and_named(messy):
    found = scan(open_source(messy))
    assert dict(found.unreadable) == {
        "a/cut.jpg": "the file is cut short",
        "a/cut.png": "the file is cut short",
        "a/empty.png": "the file is empty",
        "b/damaged.bmp": "the file is cut short",
        "b/gone.png": "no such file or directory",
        "b/text.jpg": "not a picture of a known format (JPEG, PNG, WebP, BMP, GIF, TIFF, PPM)",
    }
    assert found.images == found.examined == 16
    assert found.classes == {"a": 8, "b": 8}
    assert (found.smallest, found.median, found.largest) == ((20, 10), (20, 10), (400, 300))
    assert found.modes == {"colour": 8, "grey": 1, "CMYK": 1}
    assert found.ignored == ("b/notes.txt",)


def test_the_sentences(messy):
    lines = scan(open_source(messy)).lines()
    assert lines[0] == "16 images in 2 classes, 8 each"
    assert lines[1] == "sizes 20x10 to 400x300, median 20x10; 8 colour, 1 grey, 1 CMYK"
    assert lines[2].startswith("6 files cannot be read and will be left out: a/cut.jpg (the file")
    assert lines[2].endswith("and 1 more")
    assert lines[3] == "1 other entry passed over: b/notes.txt"


def test_the_sentences_of_clean_and_uneven_data(tmp_path):
    write_classes(tmp_path, {"a": 4, "b": 1, "c": 2}, (20, 10))
    assert scan(open_source(tmp_path)).lines() == [
        "7 images in 3 classes, from 1 (b) to 4 (a)",
        "size 20x10; all colour",
    ]
    assert scan(open_source("demo:fashion", "test")).lines() == [
        "2,000 images in 10 classes, 200 each",
        "size 28x28; all grey",
    ]


def test_the_unreadable_are_left_out(messy):
    source = open_source(messy)
    found = scan(source)
    good = readable(source, found)
    assert len(good) == 10
    assert scan(good).unreadable == ()
    assert not {key for key, _ in found.unreadable} & set(good.keys)
    assert readable(good, scan(good)) is good


def test_a_class_that_cannot_be_read_at_all(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(b"")
    source = open_source(tmp_path)
    with pytest.raises(Error, match=r"no image of class b can be read \(b/000.png: the file is em"):
        readable(source, scan(source))


def test_of_many_files_a_sample_is_read_and_said_so(tmp_path):
    write_classes(tmp_path, {"a": 30, "b": 30})
    found = scan(open_source(tmp_path), limit=20)
    assert found.examined == 20
    assert found.digests is None
    assert found.lines()[1].startswith("looked into 20 of them, evenly spaced")


def test_nothing_readable(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    for file in tmp_path.glob("*/*"):
        file.write_bytes(b"")
    found = scan(open_source(tmp_path))
    assert found.largest is None
    assert len(found.lines()) == 2


def test_photographs_are_all_whole(shared_data, tmp_path):
    for i, file in enumerate(sorted((shared_data / "imagenet-sample").iterdir())):
        folder = tmp_path / ("even" if i % 2 else "odd")
        folder.mkdir(exist_ok=True)
        (folder / file.name).symlink_to(file)
    found = scan(open_source(tmp_path))
    assert found.unreadable == ()
    assert found.modes == {"colour": 197, "grey": 3}
    assert np.unique(found.digests).size == 200
