"""Bootstrap: how far a figure would move if other images had been drawn (Efron, 1979)."""

from collections.abc import Sequence

import numpy as np

DRAWS = 4_000_000  # numbers drawn at a time: memory stays flat however many images there are


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """The percentile interval of a mean.

    Args:
        values: [n], one of each image: right or wrong, a loss, a difference of two models.
        seed: of the resampling; the same seed gives the same interval.
        resamples: how many times n values are drawn again with replacement.
        level: the share of the resampled means inside of the interval.

    Returns:
        (low, high).
    """
    values = np.asarray(values, np.float64)
    numbers = np.random.default_rng(seed)
    n, means = len(values), []
    for start in range(0, resamples, each := max(1, DRAWS // n)):
        drawn = numbers.integers(0, n, (min(each, resamples - start), n))
        means.append(values[drawn].mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
