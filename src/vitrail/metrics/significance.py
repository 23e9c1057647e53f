"""Whether a difference is more than chance: exact tests, and what looking at many things costs."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test: could two models be equally good, given where they disagree?

    Under that hypothesis each image that just one of them gets right is a fair coin, so the
    two-sided p-value is 2 P(X <= min) for X binomial (n, 1/2), at most 1 (Dietterich 1998; the
    exact form of statsmodels' `mcnemar`).

    Args:
        only_first: images that only the first model gets right.
        only_second: images that only the second one does.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    logs = np.array([_log_choose(n, i) for i in range(fewer + 1)]) - n * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def fewer_right(right: int, n: int, total_right: int, total: int) -> float:
    """Fisher's exact test, one-sided: could a slice do this badly by chance?

    Args:
        right, n: of the slice: right answers, images.
        total_right, total: of all images, the slice included.

    Returns:
        P(X <= right) where X is the number of right ones among n images drawn from all.
    """
    least = max(0, n - (total - total_right))
    every = _log_choose(total, n)
    logs = [
        _log_choose(total_right, i) + _log_choose(total - total_right, n - i) - every
        for i in range(least, right + 1)
    ]
    return min(1.0, float(np.exp(logs).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for having looked at all of them (Holm, 1979), in the same order."""
    order = np.argsort(p_values, kind="stable")
    corrected, running = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order.tolist()):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = running
    return corrected


def deviations(level: float = 0.95, looks: int = 1) -> float:
    """How many standard deviations hold `level` for all of ``looks`` intervals (Bonferroni)."""
    return NormalDist().inv_cdf(1 - (1 - level) / 2 / max(1, looks))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
