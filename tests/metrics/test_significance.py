"""Exact tests against SciPy and against sums done by hand."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact, norm

from vitrail.metrics.significance import deviations, fewer_right, holm, mcnemar


@pytest.mark.parametrize(
    ("b", "c"), [(0, 0), (1, 0), (3, 3), (10, 2), (0, 9), (120, 90), (400, 460)]
)
def test_mcnemar_is_the_exact_binomial_test(b, c):
    n, fewer = b + c, min(b, c)
    by_hand = min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)
    assert mcnemar(b, c) == pytest.approx(by_hand, rel=1e-9)
    assert mcnemar(c, b) == mcnemar(b, c)
    if n:
        assert mcnemar(b, c) == pytest.approx(min(1, binomtest(b, n).pvalue), rel=1e-9)


@pytest.mark.parametrize(
    ("right", "n", "total_right", "total"),
    [(5, 20, 60, 100), (20, 20, 60, 100), (0, 30, 80, 110), (190, 200, 1900, 2000), (3, 5, 3, 50)],
)
def test_a_bad_slice_is_fishers_one_sided_test(right, n, total_right, total):
    rest_right, rest = total_right - right, total - n
    table = [[right, n - right], [rest_right, rest - rest_right]]
    theirs = fisher_exact(table, alternative="less").pvalue
    assert fewer_right(right, n, total_right, total) == pytest.approx(theirs, rel=1e-8)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_false_alarms_rare():
    numbers = np.random.default_rng(0)
    alarms = sum(min(holm(numbers.random(30).tolist())) < 0.05 for _ in range(1000))
    assert alarms < 75  # 50 expected; without the correction nearly 800


def test_intervals_widen_with_the_number_of_looks():
    assert deviations() == pytest.approx(norm.ppf(0.975))
    assert deviations(0.95, 10) == pytest.approx(norm.ppf(1 - 0.0025))
