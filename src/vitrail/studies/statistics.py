"""What a few runs say of many: t intervals over seeds, fronts, power laws and their bootstrap.

A family's law is that of its error on test over its compute, error = a (compute / c0)^-b, a
straight line between logarithms; c0 is the geometric middle of the measured compute, so that a
and b are told apart. It says nothing outside of what was measured.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrail.kit.errors import Error

RESAMPLES = 2000
FEWEST = 3  # different amounts of compute, to fit a law
MOST_RATIO = 1e6  # of two families' compute: beyond it a law is too flat to say
FEWEST_FOR_INTERVAL = 5  # groups: a bootstrap of fewer sees a part of the chance only


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Args:
        mean: of n values.
        low, high: its 95 % t interval; None where one value says nothing of it.
        n: how many.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half of the interval."""
        return None if self.high is None else self.high - self.mean

    def to_json(self) -> dict[str, float | int | None]:
        """Plain JSON values."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}

    def words(self, factor: float = 100.0, digits: int = 2) -> str:
        """``86.05 ± 0.41``, or the mean alone."""
        text = f"{factor * self.mean:.{digits}f}"
        return text if self.half is None else f"{text} ± {factor * self.half:.{digits}f}"


def t_mean(values: Sequence[float]) -> Mean:
    """The mean with its 95 % Student interval.

    Raises:
        Error: no values.
    """
    if not values:
        raise Error("a mean of no values")
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Mean(mean, None, None, n)
    half = t_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Mean(mean, mean - half, mean + half, n)


def check_intervals(seeds: int) -> None:
    """Refuse intervals over one seed.

    Raises:
        Error: fewer than two seeds.
    """
    if seeds < 2:
        raise Error(
            "an interval over seeds takes at least 2 of them, and one was asked for: give "
            "--seeds 3, or leave --intervals out"
        )


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Student's t that holds ``level`` of the middle, by bisection of its distribution."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        if 2 * _t_below(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_below(t: float, n: int) -> float:
    """P(0 < T < t) for n degrees of freedom: the finite sums of Abramowitz and Stegun, 26.7.3-4."""
    angle = math.atan(t / math.sqrt(n))
    sine, cosine = math.sin(angle), math.cos(angle)
    if n == 1:
        return angle / math.pi
    if n % 2:
        term = total = cosine
        for k in range(3, n - 1, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        return (angle + sine * total) / math.pi
    term = total = 1.0
    for k in range(2, n - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return sine * total / 2


def pareto(compute: Sequence[float], accuracy: Sequence[float]) -> list[int]:
    """The places of those that nothing cheaper or as cheap is as good as, from the cheapest on."""
    order = sorted(range(len(compute)), key=lambda i: (compute[i], -accuracy[i]))
    front: list[int] = []
    best = -math.inf
    for i in order:
        if accuracy[i] > best:
            front.append(i)
            best = accuracy[i]
    return front


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """error = scale (compute / middle)^-exponent, with what the bootstrap makes of it.

    Args:
        middle: c0, in the units of the compute.
        scale, exponent: the fit.
        draws: float64 [n 2], (log scale, exponent) of resamples.
        span: the least and the most compute that was measured.
        groups: how many were fitted.
    """

    middle: float
    scale: float
    exponent: float
    draws: np.ndarray
    span: tuple[float, float]
    groups: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the exponent, 95 %; None of fewer groups than `FEWEST_FOR_INTERVAL`."""
        if self.groups < FEWEST_FOR_INTERVAL:
            return None
        low, high = np.quantile(self.draws[:, 1], (0.025, 0.975))
        return float(low), float(high)

    def error(self, compute: float) -> float:
        """The fitted error."""
        return self.scale * (compute / self.middle) ** -self.exponent

    def band(self, compute: Sequence[float]) -> np.ndarray:
        """The 95 % interval of the fitted error: float64 [n 2]."""
        logs = np.log(np.asarray(compute) / self.middle)
        fits = np.exp(self.draws[:, :1] - self.draws[:, 1:] * logs)
        return np.quantile(fits, (0.025, 0.975), axis=0).T

    def compute(self, error: float) -> float:
        """The compute at which the fitted error is this; infinite where that is no number."""
        try:
            return math.exp(self.log_compute(error))
        except OverflowError:  # a law that hardly falls
            return math.inf

    def log_compute(self, error: float) -> float:
        """The natural logarithm of the compute at which the fitted error is this."""
        return math.log(self.middle) + (math.log(self.scale) - math.log(error)) / self.exponent


def fit_power_law(
    compute: Sequence[float],
    errors: Sequence[Sequence[float]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PowerLaw:
    """Fit a law to groups of runs, and resample groups and the seeds within them.

    Args:
        compute: of each group, above 0.
        errors: of each group, that of each seed, 0..1; 0 counts as a thousandth of a per cent.
        seed: of the resampling; laws that are compared have different ones.

    Raises:
        Error: fewer than `FEWEST` different amounts of compute.
    """
    logs = np.log(np.asarray(compute, float))
    if len(np.unique(np.round(logs, 6))) < FEWEST:
        raise Error(
            f"a power law takes at least {FEWEST} different amounts of compute, not "
            f"{len(np.unique(np.round(logs, 6)))}: add models or durations"
        )
    middle = float(logs.mean())
    x, y = logs - middle, [np.log(np.maximum(np.asarray(one, float), 1e-5)) for one in errors]
    scale, exponent = _line(x, np.array([one.mean() for one in y]))
    numbers = np.random.default_rng(seed)
    draws = []
    while len(draws) < resamples:
        rows = numbers.integers(len(x), size=len(x))
        if len(np.unique(np.round(x[rows], 6))) < 2:
            continue  # a line through one amount of compute is none
        means = np.array([y[i][numbers.integers(len(y[i]), size=len(y[i]))].mean() for i in rows])
        draws.append(_line(x[rows], means))
    span = (float(np.exp(logs.min())), float(np.exp(logs.max())))
    return PowerLaw(math.exp(middle), math.exp(scale), exponent, np.array(draws), span, len(x))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares: (the height at 0, the fall)."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / (centred**2).sum())
    return float(y.mean() - slope * x.mean()), -slope


@dataclass(frozen=True)
class Ratio:
    """How much more compute one family takes than another to be as accurate.

    Args:
        accuracy: at which.
        ratio: compute of the one over that of the other, by their laws.
        low, high: its 95 % bootstrap interval; None where either law has none.
    """

    accuracy: float
    ratio: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def compute_ratio(one: PowerLaw, other: PowerLaw, accuracy: float) -> Ratio | None:
    """How many times the compute of ``other`` does ``one`` take for an accuracy; None: no saying.

    There is none where either family does not get better with compute, or so little that the ratio
    is beyond `MOST_RATIO`. The interval takes the laws as independent: they have to be resampled
    with different seeds.
    """
    if one.exponent <= 0 or other.exponent <= 0:
        return None
    apart = one.log_compute(1 - accuracy) - other.log_compute(1 - accuracy)
    if abs(apart) > math.log(MOST_RATIO):
        return None
    ratio = math.exp(apart)
    if one.interval is None or other.interval is None:
        return Ratio(accuracy, ratio, None, None)
    error = math.log(1 - accuracy)
    draws = []
    for law in (one, other):
        fall = np.maximum(law.draws[:, 1], 1e-3)
        draws.append(math.log(law.middle) + (law.draws[:, 0] - error) / fall)
    low, high = np.exp(np.clip(np.quantile(draws[0] - draws[1], (0.025, 0.975)), -50, 50))
    return Ratio(accuracy, ratio, float(low), float(high))


def common_accuracy(one: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """The accuracies that both families' fronts reach and begin below; None: there are none."""
    low, high = max(min(one), min(other)), min(max(one), max(other))
    return (low, high) if low < high else None
