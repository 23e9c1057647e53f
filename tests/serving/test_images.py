"""Which pictures are meant: the same list everywhere, and shares that are all of it, each once."""

import itertools
import os
from pathlib import Path

import pytest

from vitrail.data.keys import Keys
from vitrail.kit.errors import Error
from vitrail.serving.images import Share, digest_of, find_images, read_share


def listed(names: Keys) -> list[str]:
    return [names.path(i) for i in range(len(names))]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    names = "a/2.jpg a/10.PNG a-b/1.jpg a.c/1.webp b.jpg a/b/1.tif a/B/1.tif a/.hidden.jpg z/t.txt"
    for name in names.split():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_a_folder_is_listed_as_if_all_were_sorted(place):
    expected = sorted(
        path
        for path in place.rglob("*")
        if path.is_file() and path.suffix != ".txt" and path.name != ".hidden.jpg"
    )
    assert listed(find_images([str(place)])) == [str(path) for path in expected]
    assert len(expected) == 7
    assert listed(find_images(["photos/"]))[0] == "photos/a/10.PNG"
    assert listed(find_images(["./photos/../photos/a/b"])) == ["photos/../photos/a/b/1.tif"]


def test_the_folder_one_is_in_needs_no_name(place, monkeypatch):
    monkeypatch.chdir(place)
    assert listed(find_images(["."]))[:2] == ["a/10.PNG", "a/2.jpg"]


def test_files_come_in_the_order_given_and_globs_sorted(place):
    names = find_images(["photos/b.jpg", "photos/a/b", "photos/a*/1.*"])
    assert listed(names) == [
        *("photos/b.jpg", "photos/a/b/1.tif", "photos/a-b/1.jpg", "photos/a.c/1.webp")
    ]


def test_links_to_files_count_and_links_to_folders_do_not(place):
    (place / "a" / "link.jpg").symlink_to(place / "b.jpg")
    (place / "a" / "circle").symlink_to(place)
    (place / "a" / "circle.jpg").symlink_to(place)
    names = [os.path.basename(name) for name in listed(find_images([str(place / "a")]))]
    assert names == ["10.PNG", "2.jpg", "1.tif", "1.tif", "link.jpg"]


def test_names_need_not_be_utf8(place):
    (place / os.fsdecode(b"\xff.jpg")).touch()
    names = find_images([str(place)])
    assert os.path.exists(names.path(len(names) - 1))
    assert names[len(names) - 1].endswith("\\xff.jpg")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["photos/z"], "no pictures were found in photos/z"),
        (["photos/nothing.jpg"], "there is no picture or folder photos/nothing.jpg"),
        ([], "an empty list"),
    ],
)
def test_nothing_found_is_said(place, names, sentence):
    with pytest.raises(Error, match=sentence):
        find_images(names)


def test_a_folder_that_cannot_be_read_is_not_passed_over(place, monkeypatch):
    inner, shut = os.scandir, f"{place}/a/b/"

    def scandir(path):
        if path == shut:
            raise PermissionError(13, "Permission denied", path)
        return inner(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(Error, match=r"a/b/ cannot be read: Permission denied"):
        find_images([str(place)])


def test_shares_are_neighbours_and_together_the_list():
    for count in (0, 1, 2, 7, 100):
        for n in (1, 2, 3, 7, 200):
            parts = [list(Share(i, n).of(count)) for i in range(1, n + 1)]
            assert list(itertools.chain(*parts)) == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_share_is_read_or_refused():
    assert read_share("2/4") == Share(2, 4)
    for text in ("0/2", "1", "a/b", "-1/2"):
        with pytest.raises(Error, match="counts from 1"):
            read_share(text)
    for text in ("3/2", "1/0"):
        with pytest.raises(Error, match="there is no part"):
            read_share(text)


def test_a_digest_tells_lists_apart():
    lists = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", ""], []]
    assert len({digest_of(Keys(names)) for names in lists}) == len(lists)
    names = Keys(["x", "ab", "c", "y"])
    assert digest_of(names, range(1, 3)) == digest_of(Keys(lists[0]))
