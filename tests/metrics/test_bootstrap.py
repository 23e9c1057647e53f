"""Bootstrap intervals against what is known of them."""

import numpy as np
import pytest

from vitrail.kit.errors import Error
from vitrail.metrics.bootstrap import bootstrap_interval, bootstrap_means


def test_interval_of_an_accuracy_is_the_normal_one_for_many_examples():
    right = np.arange(10_000) < 8_000
    low, high = bootstrap_interval(right, resamples=20_000)
    half = 1.96 * (0.8 * 0.2 / 10_000) ** 0.5
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=3e-4)


def test_interval_of_the_same_numbers_is_the_same_by_either_way():
    # 0/1 values are drawn as binomial numbers, others one by one: shifted by 1, the second way.
    right = np.random.default_rng(1).random(400) < 0.3
    short = bootstrap_interval(right, resamples=20_000)
    long = bootstrap_interval(right + 1.0, resamples=20_000)
    assert np.subtract(long, 1) == pytest.approx(short, abs=3e-3)


def test_interval_covers_the_truth_as_often_as_it_says():
    numbers = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval(numbers.exponential(1.0, 80), resamples=500, seed=seed)
        covered += low <= 1.0 <= high
    assert 0.89 <= covered / 300 <= 0.98


def test_seeds_widen_the_interval():
    right = np.zeros((4, 1000), bool)
    for row, share in zip(right, (0.5, 0.6, 0.7, 0.8), strict=True):
        row[: int(1000 * share)] = True
    low, high = bootstrap_interval(right)
    alone = bootstrap_interval(right.mean(0))
    assert high - low > 2 * (alone[1] - alone[0])
    assert low < right.mean() < high


def test_seed_and_confidence():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    wide, narrow = bootstrap_interval(values, 0.99), bootstrap_interval(values, 0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert len(bootstrap_means(values, 7)) == 7


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [[[1.0]]]])
def test_values_that_are_none(values):
    with pytest.raises(Error):
        bootstrap_interval(np.array(values))
    with pytest.raises(Error, match="confidence"):
        bootstrap_interval(np.ones(3), confidence=95)
