"""The order of an epoch and every draw are functions of their arguments, for ever the same."""

import numpy as np
import torch

from vitrail.data.draws import drop_path_draws, mix_generator, order, sample_generator


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
