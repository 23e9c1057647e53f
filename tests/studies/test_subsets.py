"""Subsets: nested, with as many of every class, a function of the seed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.sources import ArraySource
from vitrail.kit.errors import Error
from vitrail.studies.data import StudyData, open_data
from vitrail.studies.definition import Definition, Point
from vitrail.studies.study import decoded
from vitrail.studies.subsets import subset_rows
from vitrail.studies.work import shot_pool


def source(counts: list[int], seed: int = 0) -> ArraySource:
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(labels)
    images = np.zeros((len(labels), 4, 4), np.uint8)
    return ArraySource(images, labels, [str(k) for k in range(len(counts))])


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_smaller_subsets_lie_within_larger_ones_and_are_even(counts, seed, data):
    pictures = source(counts, seed)
    sizes = st.integers(len(counts), len(pictures))
    small, large = sorted([data.draw(sizes), data.draw(sizes)])
    one, other = (subset_rows(pictures, size, seed) for size in (small, large))
    assert set(one) <= set(other)
    assert len(set(one)) == small
    taken = np.bincount(pictures.labels[one], minlength=len(counts))
    # As even as the classes allow: who has more than another by two, the other has no more.
    for a in range(len(counts)):
        for b in range(len(counts)):
            assert taken[a] - taken[b] <= 1 or taken[b] == counts[b]


def test_another_seed_draws_other_pictures_and_the_same_seed_the_same():
    pictures = source([50, 50])
    same = subset_rows(pictures, 20, 3)
    assert (same == subset_rows(pictures, 20, 3)).all()
    assert set(same) != set(subset_rows(pictures, 20, 4))


def test_the_order_of_the_pictures_changes_nothing():
    pictures = source([20, 20])
    backwards = pictures.subset(np.arange(40)[::-1])
    keys = {pictures.keys[i] for i in subset_rows(pictures, 10, 0)}
    assert keys == {backwards.keys[i] for i in subset_rows(backwards, 10, 0)}


def test_what_cannot_be_is_said():
    pictures = source([5, 5])
    with pytest.raises(Error, match=r"a subset of 11 pictures was asked for, and .* has 10"):
        subset_rows(pictures, 11, 0)
    with pytest.raises(Error, match="cannot hold one of each of 2 classes"):
        subset_rows(pictures, 1, 0)
    several = ArraySource(np.zeros((2, 4, 4), np.uint8), np.eye(2, dtype=np.int64), ["a", "b"])
    with pytest.raises(Error, match="one label a picture"):
        subset_rows(several, 2, 0)


def test_few_shots_are_of_pictures_that_no_run_learns_from():
    train = source([80, 80])
    names = [f"val-{i}" for i in range(40)]
    val = ArraySource(np.zeros((40, 4, 4), np.uint8), np.repeat([0, 1], 20), ["0", "1"], keys=names)
    pool, where = shot_pool(StudyData(train, val, None, {}), (5,))
    assert where == "val"
    assert set(pool.keys) <= set(val.keys)
    assert np.bincount(pool.labels).tolist() == [15, 15], "three draws of five need not overlap"


@pytest.mark.parametrize(("held_out", "decoded_ones"), [(0.5, 16), (0.1, 72)])
def test_only_what_runs_and_shots_use_is_decoded(held_out, decoded_ones, tmp_path):
    for split, label, i in itertools.product(("train", "test"), "ab", range(40)):
        folder = tmp_path / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
    point = Point(id="a", line="a", model="vit_mu_patch7_28", images=16)
    study = Definition(kind="data-size", points=(point,), shots=(5,))
    train = decoded(open_data(tmp_path, held_out, 4), study).train
    assert len(train.pictures) == decoded_ones


@pytest.mark.parametrize("few", [None, [4, 20]])
def test_where_validation_is_too_small_shots_are_of_training_and_no_runs_own(few):
    train, val = source([80, 80]), few and source(few)
    pool, where = shot_pool(StudyData(train, val, None, {}), (5,))
    assert where == "train"
    assert np.bincount(pool.labels).tolist() == [15, 15]
    for seed in range(3):  # by the seed of a run all thirty would be in that run's subset
        own = {train.keys[row] for row in subset_rows(train, 40, seed)}
        assert len(own & set(pool.keys)) < 20
