"""Label sets: ReaL's file as published (a list of lists), and lines of key and labels."""

import json

import numpy as np
import pytest

from tests.evaluation.test_accuracy import ReadsItsAnswer, batches_of
from vitrail.evaluation.accuracy import evaluate
from vitrail.evaluation.label_sets import any_of, read_label_sets
from vitrail.kit.errors import Error

NAMES = ["ash", "birch", "cedar"]
KEYS = ["n2/val_0003.JPEG", "n1/val_0001.JPEG", "n1/val_0002.JPEG", "n2/val_0004.JPEG"]


def written(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def test_real_json_is_in_the_order_of_file_names_whatever_the_folders(tmp_path):
    """github.com/google-research/reassessed-imagenet: entry i is ILSVRC2012_val_{i+1:08d}.JPEG."""
    sets = read_label_sets(written(tmp_path, [[0], [1, 2], [], [2]]), KEYS, NAMES)
    assert sets == {
        "n1/val_0001.JPEG": {0},
        "n1/val_0002.JPEG": {1, 2},
        "n2/val_0003.JPEG": frozenset(),
        "n2/val_0004.JPEG": {2},
    }


def test_lines_name_their_images_and_classes_by_name_or_number(tmp_path):
    text = lines(
        {"key": KEYS[0], "labels": ["birch", 0]},
        {"path": KEYS[1], "labels": []},
        {"key": KEYS[2], "labels": ["cedar"]},
        {"key": KEYS[3], "labels": [2, 2]},
    )
    sets = read_label_sets(written(tmp_path, text), KEYS, NAMES)
    assert [sets[key] for key in KEYS] == [{0, 1}, set(), {2}, {2}]


def test_an_answer_among_the_labels_is_right_and_empty_sets_do_not_count():
    labels = [0, 0, 0, 0]
    pixels = np.eye(3, dtype=int)[[0, 1, 2, 1]] * 99
    found = evaluate(ReadsItsAnswer(NAMES), batches_of(pixels, labels), NAMES)
    keys = found.keys
    sets = dict(zip(keys, ({0}, {0, 1}, {0}, set()), strict=True))
    real = any_of(found, sets)
    assert (real.top1, real.n, real.left_out) == (pytest.approx(2 / 3), 3, 1)
    assert found.top1 == 0.25
    with pytest.raises(Error, match="every image's label set is empty"):
        any_of(found, dict.fromkeys(keys, frozenset()))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([[0], [1]], "label sets for 2 images, and the data have 4"),
        ([[0], [1], [2], [3]], r"val_0004.JPEG has the label 3, .* from 0 to 2"),
        ([[0], [1], [2], "a"], "list of lists"),
        ([[0], [1], [2], [True]], "the label True"),
        ("[[0], [1]", "not a JSON file"),
        (lines({"key": KEYS[0], "labels": [0]}), "no label set for 3 of the data's 4 images"),
        (
            lines(*({"key": key, "labels": [0]} for key in [*KEYS, "n9/x.JPEG"])),
            "1 images that are not in the data: n9/x.JPEG",
        ),
        (
            lines({"key": KEYS[0], "labels": [0]}, {"key": KEYS[0], "labels": [1]}),
            "line 2: .*already",
        ),
        (lines({"key": KEYS[0], "labels": 0}), "line 1: a line is"),
        ("{broken\n", "line 1: not a JSON object"),
        (lines(*({"key": key, "labels": ["oak"]} for key in KEYS)), "the label 'oak'"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(tmp_path, content, sentence):
    with pytest.raises(Error, match=sentence):
        read_label_sets(written(tmp_path, content), KEYS, NAMES)


def test_an_order_by_name_needs_names_that_differ(tmp_path):
    with pytest.raises(Error, match="name of several images"):
        read_label_sets(written(tmp_path, [[0], [1]]), ["a/1.png", "b/1.png"], NAMES)
    with pytest.raises(Error, match="cannot be read"):
        read_label_sets(tmp_path / "nothing.json", KEYS, NAMES)
