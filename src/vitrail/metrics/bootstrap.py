"""Bootstrap: how far a mean would move with other examples, or with other seeds.

The percentile interval (Efron, "Bootstrap methods: another look at the jackknife", 1979). The mean
of n drawn values that are all 0 or 1 is a binomial number over n, so for an accuracy no example is
drawn at all: a million images cost as much as ten.
"""

import numpy as np

from vitrail.kit.errors import Error

_CELLS = 4_000_000  # drawn at a time, so that memory stays flat


def bootstrap_means(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of resamples: float64 [resamples].

    Args:
        values: [n], one number an example (1 and 0 for right and wrong); or [s n], the same
            examples under s seeds: then seeds are drawn as well as examples, both with
            replacement, and the spread is that over other seeds and other examples.
        resamples: how many.
        seed: of the draws; equal arguments give equal means.

    Raises:
        Error: no values, values that are not finite, or no resamples.
    """
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or not values.size:
        raise Error(f"a bootstrap takes values [n] or [s n], at least one, not {values.shape}")
    if not np.isfinite(values).all():
        raise Error("a bootstrap takes finite values")
    if resamples < 1:
        raise Error(f"at least one resample, not {resamples}")
    numbers, n = np.random.default_rng(seed), values.shape[-1]
    if values.ndim == 1 and np.isin(values, (0, 1)).all():
        return numbers.binomial(n, values.mean(), resamples) / n
    rows = np.atleast_2d(values)
    means = np.empty(resamples)
    step = max(1, _CELLS // n)
    for start in range(0, resamples, step):
        some = min(step, resamples - start)
        seeds = numbers.integers(len(rows), size=(some, len(rows)))
        shares = np.stack([np.bincount(row, minlength=len(rows)) for row in seeds]) / len(rows)
        drawn = numbers.integers(n, size=(some, n))
        by_seed = np.stack([row[drawn].mean(1) for row in rows], 1)  # [some s]
        means[start : start + some] = (shares * by_seed).sum(1)
    return means


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval (low, high) of the mean; see `bootstrap_means` for the values.

    Raises:
        Error: a confidence outside of 0..1, or what `bootstrap_means` raises.
    """
    if not 0 < confidence < 1:
        raise Error(f"a confidence lies between 0 and 1, not at {confidence}")
    tail = (1 - confidence) / 2
    low, high = np.quantile(bootstrap_means(values, resamples, seed), (tail, 1 - tail))
    return float(low), float(high)
