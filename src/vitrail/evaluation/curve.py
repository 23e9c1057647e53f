"""The learning curve: accuracy over the number of labels, and what twice as many would give.

Measured: nested, stratified subsets of the training features (halves of halves, several seeds),
a closed-form ridge on each, accuracy on all test images. Then a power law that may bend is fitted:
with u = log2(n / N), N being all labels, what a doubling gains is

    d accuracy / du = a 2^-(b u + c u^2 / 2),        a > 0, -0.3 <= b <= 1.5, 0 <= c <= 0.4.

With c = 0 it is the plain power law A - a' n^-b: each doubling gains 2^-b of what the one before
gained (b = 0 is a straight line over log n; under a fixed penalty gains may even grow for a while).
Real curves begin flatter than a power law, and some end steeper (features of few dimensions): c
lets the exponent grow by c a doubling. Few points do not settle b and c, and they decide what
comes, so no best ones are picked: all are weighed by how well they fit (a flat prior on everything;
no accuracy above 1), and the interval is that of the mixture.

How far the points are off, and together, follows from how they were made:
- the test images are the same at every size: their covariance is that of who is right over them;
- subsets of one seed are nested, those of two seeds overlap by chance, and at N all are one. With
  a variance v(n) = s / n of an accuracy over fresh subsets of n labels, the means over S seeds of
  sizes n <= m have the covariance v(m) / S + (1 - 1/S) v(N); s is what the seeds' spread shows.
What the law leaves unexplained widens everything (chi-square over its degrees of freedom).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.evaluation.estimator import Array, check_features, check_labels
from vitrail.evaluation.fewshot import L2, Ridge, check_test_labels, nested_order
from vitrail.kit.errors import Error

HALVINGS = 5  # sizes below all labels
SHAPES = [(b, c) for b in np.linspace(-0.3, 1.5, 19) for c in np.linspace(0, 0.4, 5)]
DRAWS = 500  # for each shape


@dataclass(frozen=True)
class Forecast:
    """What more labels would give. Accuracies are fractions.

    Attributes:
        labels: how many there would be.
        gain: in accuracy against all the labels there are (the mean of what is likely).
        std: its standard deviation.
        low, high: its 95 % interval.
    """

    labels: int
    gain: float
    std: float
    low: float
    high: float

    @property
    def margin(self) -> float:
        """Half of the interval: the number behind the plus-minus."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracy over the number of labels.

    Attributes:
        sizes: labels in all, ascending; the last is all there are.
        accuracy: float64 [sizes seeds]; equal over the seeds at the last.
        band: float64 [sizes 2], mean -/+ 1.96 standard errors (test images and subsets).
        forecast: for twice the labels.
        further: (labels, accuracy, low, high) of the fitted law from all labels on.
    """

    sizes: tuple[int, ...]
    accuracy: np.ndarray
    band: np.ndarray
    forecast: Forecast
    further: tuple[tuple[int, float, float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Sizes, means, seeds and the forecast as plain JSON values."""
        return {
            "labels": list(self.sizes),
            "mean": self.accuracy.mean(1).tolist(),
            "seeds": self.accuracy.tolist(),
            "twice": {
                "labels": self.forecast.labels,
                "gain": self.forecast.gain,
                "std": self.forecast.std,
                "low": self.forecast.low,
                "high": self.forecast.high,
            },
        }


def learning_curve(
    train_x: Array,
    train_y: Any,
    test_x: Array,
    test_y: Any,
    *,
    seeds: int = 5,
    l2: float = L2,
    classes: Sequence[str] | None = None,
) -> Curve:
    """Measure the curve of `fewshot.Ridge` on halves of halves of the labels, and look ahead.

    Args:
        train_x, test_x: features [n d], [m d].
        train_y, test_y: labels.
        seeds: nested subsets are drawn this many times, at least 2.
        l2: of the ridge.
        classes: the names of classes that are numbers, for messages.

    Raises:
        Error: too few images for three sizes (a class needs 4 of them), a class in test that is
            not in train, or what `Ridge.fit` raises.
    """
    if seeds < 2:
        raise Error(f"a learning curve needs at least 2 seeds to know its spread, not {seeds}")
    check_features(train_x, "training features")
    check_features(test_x, "test features")
    names, numbers = check_labels(train_x, train_y, "training labels")
    truth = check_test_labels(names, test_x, test_y, classes)
    fewest = int(np.bincount(numbers).min())
    halvings = min(HALVINGS, fewest.bit_length() - 1)
    if halvings < 2:
        raise Error(
            f"a learning curve needs at least 4 training images of every class, and one has "
            f"{fewest}"
        )
    shares = [0.5**i for i in range(halvings, 0, -1)]
    right = np.empty((len(shares) + 1, seeds, len(truth)), bool)
    sizes = []
    for seed in range(seeds):
        order = nested_order(numbers.numpy(), seed)
        for i, share in enumerate(shares):
            parts = [rows[: max(1, round(share * len(rows)))] for rows in order]
            rows = np.sort(np.concatenate(parts))
            right[i, seed] = _right(train_x, numbers, rows, test_x, truth, l2)
            sizes.append(len(rows))
    right[-1] = _right(train_x, numbers, None, test_x, truth, l2)
    sizes = [*sizes[: len(shares)], len(numbers)]
    return curve_of(sizes, right)


def curve_of(sizes: Sequence[int], right: np.ndarray) -> Curve:
    """The curve and its forecast from who was right.

    Args:
        sizes: labels, ascending, all labels last; at least 3.
        right: bool [sizes seeds m]: which of m test images was right. The same images everywhere;
            at all labels every seed is the same.
    """
    accuracy = right.mean(2)
    covariance = image_covariance(right) + subset_covariance(sizes, accuracy)
    law = PowerLaw(sizes, accuracy.mean(1), covariance)
    error = 1.96 * np.sqrt(np.diag(covariance))
    mean = accuracy.mean(1)
    further = tuple(
        (round(factor * sizes[-1]), *law.accuracy(factor)) for factor in (1.0, 2**0.5, 2.0)
    )
    band = np.stack([mean - error, mean + error], 1)
    return Curve(tuple(sizes), accuracy, band, law.forecast(2.0), further)


def image_covariance(right: np.ndarray) -> np.ndarray:
    """Of the mean accuracies of all sizes [sizes sizes], over test images."""
    shares = right.mean(1)
    return np.cov(shares, ddof=1) / shares.shape[1]


def subset_covariance(sizes: Sequence[int], accuracy: np.ndarray) -> np.ndarray:
    """Of the mean accuracies of all sizes [sizes sizes], over subsets, as the module derives it.

    Args:
        sizes: labels, all of them last.
        accuracy: [sizes seeds].
    """
    n, seeds = np.array(sizes, float), accuracy.shape[1]
    apart = 1 / n[:-1] - 1 / n[-1]
    scale = (accuracy[:-1].var(1, ddof=1) / apart).mean()
    shared = scale / np.maximum(n[:, None], n)
    return shared / seeds + (1 - 1 / seeds) * scale / n[-1]


class PowerLaw:
    """The law of the module, fitted: draws from what is likely, with weights.

    Args:
        sizes: labels [s], all of them last.
        means: accuracies [s].
        covariance: of the means [s s].
        seed: of the draws.
    """

    def __init__(
        self, sizes: Sequence[int], means: np.ndarray, covariance: np.ndarray, seed: int = 0
    ):
        ratio = np.array(sizes, float) / sizes[-1]
        self.labels = sizes[-1]
        # An accuracy of exactly 1 everywhere has no spread at all: a floor keeps it invertible.
        floor = 1e-8 * np.eye(len(ratio))
        inverse = np.linalg.inv(covariance + floor)
        fits = [self._fitted(ratio, means, inverse, shape) for shape in SHAPES]
        spare = max(1, len(ratio) - 3)
        widen = max(1.0, min(chi for *_, chi in fits) / spare)
        logs = np.array([self._log_weight(cov, chi, widen) for _, cov, chi in fits])
        numbers = np.random.default_rng(seed)
        drawn = [numbers.multivariate_normal(beta, widen * cov, DRAWS) for beta, cov, _ in fits]
        self.level, self.slope = np.concatenate(drawn).T
        weights = np.repeat(np.exp(logs - logs.max()), DRAWS)
        possible = (self.slope > 0) & (self.level + self._gain(2.0) <= 1)
        if not (weights * possible).any():  # it falls, or is at its top: nothing to gain
            self.slope, possible = np.zeros_like(self.slope), np.ones_like(possible)
        self.weights = weights * possible / (weights * possible).sum()

    def forecast(self, factor: float) -> Forecast:
        """The gain in accuracy with `factor` times the labels."""
        gain = self._gain(factor)
        mean = float(self.weights @ gain)
        std = float(np.sqrt(self.weights @ (gain - mean) ** 2))
        low, high = self._quantiles(gain)
        return Forecast(round(factor * self.labels), mean, std, low, high)

    def accuracy(self, factor: float) -> tuple[float, float, float]:
        """The accuracy with `factor` times the labels: mean, low, high."""
        accuracy = self.level + self._gain(factor)
        return float(self.weights @ accuracy), *self._quantiles(accuracy)

    def _gain(self, factor: float) -> np.ndarray:
        rises = [_rise(np.array([factor]), shape)[0] for shape in SHAPES]
        return self.slope * np.repeat(rises, DRAWS)

    def _quantiles(self, values: np.ndarray) -> tuple[float, float]:
        order = np.argsort(values)
        total = np.cumsum(self.weights[order])
        at = np.searchsorted(total, (0.025, 0.975)).clip(max=len(order) - 1)
        low, high = values[order][at]
        return float(low), float(high)

    @staticmethod
    def _fitted(
        ratio: np.ndarray, means: np.ndarray, inverse: np.ndarray, shape: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Generalised least squares of (A, a) at one shape: estimate, covariance, chi-square."""
        basis = np.stack([np.ones_like(ratio), _rise(ratio, shape)], 1)
        covariance = np.linalg.inv(basis.T @ inverse @ basis)
        beta = covariance @ basis.T @ inverse @ means
        rest = means - basis @ beta
        return beta, covariance, float(rest @ inverse @ rest)

    @staticmethod
    def _log_weight(covariance: np.ndarray, chi: float, widen: float) -> float:
        return -chi / (2 * widen) + 0.5 * float(np.linalg.slogdet(covariance)[1])


def _rise(ratio: np.ndarray, shape: tuple[float, float]) -> np.ndarray:
    """What a = 1 rises from all labels to `ratio` of them: the integral of the law, [s]."""
    b, c = shape
    fine = np.linspace(0, np.log2(ratio), 257)  # [257 s]
    heights = np.exp2(-(b * fine + c * fine**2 / 2))
    return np.trapezoid(heights, fine, axis=0)


def _right(
    x: Array, numbers: Tensor, rows: np.ndarray | None, test_x: Array, truth: np.ndarray, l2: float
) -> np.ndarray:
    if rows is not None:
        where = torch.from_numpy(rows)
        x = x[where] if isinstance(x, Tensor) else x[rows]
        numbers = numbers[where]
    return np.asarray(Ridge(l2).fit(x, numbers).predict(test_x)) == truth
