"""The classifier's stream: in order whatever the workers, lazy, no bad picture ends it."""

import itertools
import threading
import time

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail.serving import stream as module


@pytest.fixture(scope="module")
def classify(model):
    return vitrail.Classifier(model, threads=1, batch_size=8)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_is_that_of_the_pictures_whatever_the_workers(classify, pictures, workers):
    paths = sorted(path for path in pictures.rglob("*") if path.is_file())
    rows = list(classify.stream(map(str, paths), top_k=3, workers=workers))
    assert [row.path for row in rows] == [str(path) for path in paths]
    broken = [path.name for path, row in zip(paths, rows, strict=True) if row.error]
    assert sorted(broken) == ["03.jpg", "20.webp", "46.png"]
    assert [str(pictures) in row.error for row in rows if row.error] == [False] * 3
    assert all(row.labels == [] for row in rows if row.error)
    alone = [
        classify(path, top_k=3)[0] for path, row in zip(paths, rows, strict=True) if row.labels
    ]
    for row, expected in zip((row for row in rows if row.labels), alone, strict=True):
        assert [label for label, _ in row.labels] == [label for label, _ in expected]
        chances = [[chance for _, chance in answer] for answer in (row.labels, expected)]
        assert chances[0] == pytest.approx(chances[1], abs=1e-6)


def test_what_is_no_file_has_no_path(classify, pictures):
    path = next(pictures.rglob("01.*"))
    picture = Image.open(path).convert("RGB")
    same = [path, str(path), path.read_bytes(), picture, np.asarray(picture)]
    rows = list(classify.stream([*same, b"no picture", np.zeros((4, 4), np.uint8)], workers=2))
    assert [row.path for row in rows] == [str(path)] * 2 + [None] * 5
    assert all(row.labels == rows[0].labels for row in rows[:5])
    assert "not a picture" in rows[5].error
    assert "uint8" in rows[6].error


def test_pictures_are_taken_as_they_are_needed_and_threads_end(classify):
    taken = itertools.count()
    endless = (np.full((9, 9, 3), next(taken) % 256, np.uint8) for _ in itertools.repeat(None))
    rows = classify.stream(endless, workers=2)
    assert next(taken) == 0  # nothing yet
    assert len(list(itertools.islice(rows, 3))) == 3
    assert next(taken) <= 1 + 3 * classify.batch_size + 2 * module.GROUP * 2
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    rows.close()
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_decoding_goes_on_while_the_model_works(classify, pictures, monkeypatch):
    """Two batches ahead, so that neither waits for the other where there are two cores."""
    read, working, together = [], threading.Event(), []
    inner, path = classify.forward, next(pictures.rglob("01.*"))

    def forward(pixels):
        working.set()
        time.sleep(0.05)
        working.clear()
        return inner(pixels)

    def read_file(name):
        together.append(working.is_set())
        read.append(name)
        return path.read_bytes()

    monkeypatch.setattr(classify, "forward", forward, raising=False)
    monkeypatch.setattr(module, "read_file", read_file)
    assert len(list(classify.stream([path] * 64, workers=2))) == 64
    assert len(read) == 64
    assert any(together)


def test_numbers_out_of_range_are_said_at_once(classify):
    with pytest.raises(vitrail.Error, match="top_k must be at least 1, not 0"):
        classify.stream([], top_k=0)
    with pytest.raises(vitrail.Error, match="workers is a number of threads from 0, not -1"):
        classify.stream([], workers=-1)
    assert list(classify.stream([])) == []


def test_an_error_in_the_list_of_pictures_is_the_callers(classify):
    def listed():
        yield np.zeros((9, 9, 3), np.uint8)
        raise OSError("the list broke off")

    with pytest.raises(OSError, match="the list broke off"):
        list(classify.stream(listed(), workers=2))
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())
