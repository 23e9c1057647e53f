"""The order of an epoch and every draw are functions of their arguments, for ever the same."""

import numpy as np
import torch

from vitrail.data.draws import (
    balanced_order,
    drop_path_draws,
    mix_generator,
    nearby_order,
    occurrences,
    order,
    sample_generator,
)


def test_the_order_is_what_it_was_when_this_was_written():
    # A run that is resumed years later with another numpy must not see other samples.
    assert order(0, 0, 10).tolist() == [8, 7, 4, 2, 6, 5, 9, 0, 1, 3]
    assert order(7, 3, 10).tolist() == [0, 8, 3, 5, 6, 7, 4, 9, 2, 1]
    assert order(0, 0, 10).dtype == np.int64


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own():
    orders = [order(seed, epoch, 1000) for seed in (0, 1) for epoch in range(3)]
    for one in orders:
        assert np.array_equal(np.sort(one), np.arange(1000))
    assert len({one.tobytes() for one in orders}) == 6
    assert order(0, 0, 0).tolist() == []


def test_orders_are_shuffled_well():
    first = np.array([order(seed, 0, 20)[0] for seed in range(4000)])
    counts = np.bincount(first, minlength=20)
    assert (abs(counts - 200) < 5 * np.sqrt(200)).all()
    both = np.corrcoef(order(0, 0, 5000), order(0, 1, 5000))[0, 1]
    assert abs(both) < 5 / np.sqrt(5000)


def test_generators_differ_in_every_argument_and_purpose():
    draws = {
        generator(seed, epoch, index).random(2).tobytes()
        for generator in (sample_generator, mix_generator)
        for seed in (0, 1, 2**63)
        for epoch in (0, 1, 500)
        for index in (0, 1, 2**40)
    }
    assert len(draws) == 2 * 27
    assert sample_generator(-1, 0, 0).random() == sample_generator(2**64 - 1, 0, 0).random()


def test_sample_draws_are_what_they_were_when_this_was_written():
    assert sample_generator(5, 2, 99).random() == 0.8028956650478486


def test_drop_path_draws_belong_to_the_sample_and_not_to_its_place():
    one = drop_path_draws(3, [0, 0, 1], [5, 6, 5], sites=4)
    assert one.shape == (3, 4)
    assert one.dtype == np.float32
    other = drop_path_draws(3, torch.tensor([1, 0]), torch.tensor([5, 5]), sites=4)
    np.testing.assert_array_equal(other, one[[2, 0]])
    assert len(np.unique(one)) == 12
    assert drop_path_draws(3, [], [], sites=4).shape == (0, 4)


def test_a_balanced_epoch_has_every_class_equally_often():
    labels = np.repeat([3, 0, 7], [200, 40, 3])
    for epoch in range(3):
        places = balanced_order(5, epoch, labels)
        assert len(places) == 243
        assert np.bincount(labels[places])[[0, 3, 7]].tolist() == [81, 81, 81]
        uses = np.bincount(places, minlength=243)
        assert set(uses[:200]) == {0, 1}  # a part of the large class, none of it twice
        assert set(uses[200:240]) == {2, 3}  # 81 places for 40
        assert uses[240:].tolist() == [27, 27, 27]
    assert not np.array_equal(balanced_order(5, 0, labels), balanced_order(5, 1, labels))
    # What is over goes to another class in another epoch, and never more than one each.
    labels = np.arange(10) % 4
    counts = [np.bincount(labels[balanced_order(0, epoch, labels)]) for epoch in range(40)]
    assert {tuple(sorted(count)) for count in counts} == {(2, 2, 3, 3)}
    assert (np.sum(counts, axis=0) > 80).all()
    assert balanced_order(0, 0, np.zeros(0, np.int64)).tolist() == []


def test_balanced_and_nearby_orders_are_what_they_were_when_this_was_written():
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    assert balanced_order(0, 0, labels).tolist() == [7, 6, 4, 6, 7, 2, 5, 3]
    assert nearby_order(1, 0, labels, 3).tolist() == [2, 1, 0, 3, 5, 4, 6, 7]


def test_nearby_orders_read_run_after_run_and_shuffle_within_windows():
    runs = np.repeat([4, 9, 2, 7], [50, 10, 40, 60])
    orders = [nearby_order(1, epoch, runs, 20) for epoch in range(4)]
    for one in orders:
        assert np.array_equal(np.sort(one), np.arange(160))
        for window in one.reshape(-1, 20):
            assert len(np.unique(runs[window])) <= 3
            assert not np.array_equal(window, np.sort(window))
        first = runs[one][:20]
        assert len(np.unique(first)) == 1 or 9 in first
    assert len({one.tobytes() for one in orders}) == 4
    assert len({runs[one][0] for one in (nearby_order(s, 0, runs, 1) for s in range(40))}) == 4
    whole = nearby_order(1, 0, runs, 160)
    assert abs(np.corrcoef(whole, np.arange(160))[0, 1]) < 0.4
    assert nearby_order(1, 0, runs[:0], 20).tolist() == []


def test_occurrences_count_earlier_uses():
    assert occurrences(np.array([5, 2, 5, 5, 0, 2])).tolist() == [0, 0, 1, 2, 0, 1]
    assert occurrences(np.zeros(0, np.int64)).tolist() == []


def test_repeats_have_draws_of_their_own():
    values = {sample_generator(5, 2, 99, repeat).random() for repeat in range(4)}
    assert len(values) == 4
    assert sample_generator(5, 2, 99).random() in values
    once, twice = (drop_path_draws(3, [0], [5], 4, repeats=[r]) for r in (0, 1))
    np.testing.assert_array_equal(once, drop_path_draws(3, [0], [5], 4))
    assert not np.array_equal(once, twice)
