"""Intervals against tables, fronts by hand, laws against planted ones."""

import math

import numpy as np
import pytest

from vitrail.kit.errors import Error
from vitrail.studies.statistics import (
    common_accuracy,
    compute_ratio,
    fit_power_law,
    pareto,
    t_mean,
    t_quantile,
)


def test_students_quantiles_are_those_of_the_tables():
    # Of Student's table, two-sided 95 %.
    for freedom, value in (
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (9, 2.262),
        (30, 2.042),
    ):
        assert t_quantile(freedom) == pytest.approx(value, abs=6e-4)
    assert t_quantile(5, 0.99) == pytest.approx(4.032, abs=6e-4)


def test_a_mean_of_three_has_the_interval_that_a_hand_computes():
    mean = t_mean([0.40, 0.42, 0.47])
    # s = 0.03606, s / sqrt(3) = 0.02082, times 4.303.
    assert mean.mean == pytest.approx(0.43)
    assert mean.high - mean.mean == pytest.approx(0.08957, abs=1e-4)
    assert mean.words() == "43.00 ± 8.96"


def test_one_value_has_no_interval():
    mean = t_mean([0.4])
    assert (mean.low, mean.high, mean.words()) == (None, None, "40.00")
    with pytest.raises(Error, match="no values"):
        t_mean([])


def test_the_front_is_what_nothing_cheaper_beats():
    compute, accuracy = [4, 1, 2, 2, 8], [0.6, 0.3, 0.5, 0.2, 0.6]
    assert pareto(compute, accuracy) == [1, 2, 0]  # as good for more is not on it


@pytest.mark.parametrize("exponent", [0.05, 0.2, 0.6])
def test_a_planted_law_is_found_within_its_interval(exponent):
    numbers = np.random.default_rng(1)
    compute = 1e-6 * 2.0 ** np.arange(8)
    errors = [0.5 * (c / 1e-5) ** -exponent * np.exp(numbers.normal(0, 0.02, 3)) for c in compute]
    law = fit_power_law(compute, errors)
    low, high = law.interval
    assert low < exponent < high
    assert high - low < 0.06
    assert law.error(1e-5) == pytest.approx(0.5, rel=0.03)
    assert law.compute(law.error(3e-6)) == pytest.approx(3e-6)
    band = law.band([1e-5])
    assert band[0, 0] < 0.5 < band[0, 1]


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    numbers = np.random.default_rng(0)
    compute, inside = 1e-6 * 2.0 ** np.arange(9), 0
    for world in range(60):
        errors = [0.4 * (c / 1e-5) ** -0.3 * np.exp(numbers.normal(0, 0.05, 3)) for c in compute]
        low, high = fit_power_law(compute, errors, resamples=300, seed=world).interval
        inside += low < 0.3 < high
    assert inside >= 48  # of 60; a percentile bootstrap of nine groups is a little too narrow


def test_a_law_takes_three_computes():
    with pytest.raises(Error, match="at least 3 different amounts of compute, not 2"):
        fit_power_law([1, 1, 2], [[0.5], [0.4], [0.3]])


def test_a_planted_compute_ratio_is_found():
    numbers = np.random.default_rng(2)
    compute = 1e-6 * 2.0 ** np.arange(7)
    laws = [
        fit_power_law(
            compute,
            [0.5 * (c / (1e-5 * k)) ** -0.25 * np.exp(numbers.normal(0, 0.01, 3)) for c in compute],
        )
        for k in (3.0, 1.0)  # the first takes three times the compute of the second
    ]
    ratio = compute_ratio(*laws, accuracy=0.5)
    assert ratio.ratio == pytest.approx(3.0, rel=0.1)
    assert ratio.low < 3.0 < ratio.high


def test_no_ratio_where_a_family_does_not_get_better():
    flat = fit_power_law([1, 2, 4], [[0.5], [0.5], [0.6]])
    falling = fit_power_law([1, 2, 4], [[0.5], [0.4], [0.3]])
    assert compute_ratio(flat, falling, 0.5) is None


def test_a_law_that_hardly_falls_tells_no_ratio():
    flat = fit_power_law([1, 2, 4, 8], [[0.5], [0.6], [0.6], [0.49995]])
    falling = fit_power_law([1, 2, 4, 8], [[0.5], [0.4], [0.3], [0.25]])
    assert 0 < flat.exponent < 1e-3
    assert flat.compute(0.3) == math.inf
    assert compute_ratio(flat, falling, 0.5) is None
    assert compute_ratio(falling, flat, 0.5) is None


def test_accuracies_that_both_reach():
    assert common_accuracy([0.2, 0.5], [0.3, 0.9]) == (0.3, 0.5)
    assert common_accuracy([0.2, 0.3], [0.4, 0.9]) is None
