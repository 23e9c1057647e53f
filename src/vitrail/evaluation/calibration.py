"""Calibration: whether 80 % sure means right in 80 of 100 cases, and the temperature that mends it.

The figures are pure functions in `metrics.calibration`, offered here under the names of the
contract; this module turns them into what an evaluation reports, before and after a temperature.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitrail.kit.errors import Error
from vitrail.metrics.bootstrap import bootstrap_interval
from vitrail.metrics.calibration import (
    BINS,
    HIGHEST,
    LOWEST,
    Bin,
    brier,
    brier_of_each,
    ece,
    error_of,
    fit_temperature,
    nll,
    nll_of_each,
    reliability,
)

__all__ = [
    "Calibration",
    "Fit",
    "Reading",
    "brier",
    "calibration",
    "ece",
    "fit",
    "fit_temperature",
    "nll",
    "reliability",
]


@dataclass(frozen=True)
class Reading:
    """How good the probabilities are at one temperature.

    Attributes:
        ece, ece_equal_mass: expected calibration error, 15 bins of equal width or of equal mass.
        brier: over all classes, 0..2.
        nll: negative log-likelihood, nats.
        bins: the reliability diagram, of equal width.
        brier_interval, nll_interval: 95 %, bootstrap over images.
    """

    temperature: float
    ece: float
    ece_equal_mass: float
    brier: float
    nll: float
    bins: tuple[Bin, ...]
    brier_interval: tuple[float, float]
    nll_interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a bin without images is left out."""
        fields = {name: value for name, value in vars(self).items() if name != "bins"}
        fields |= {name: list(fields[name]) for name in ("brier_interval", "nll_interval")}
        return fields | {"bins": [dict(vars(one)) for one in self.bins if one.n]}


@dataclass(frozen=True)
class Calibration:
    """Probabilities before the temperature and after it; one of the two where it is 1."""

    before: Reading
    after: Reading | None

    @property
    def served(self) -> Reading:
        """What the classifier's probabilities are like."""
        return self.after or self.before

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "temperature": self.served.temperature,
            "before": self.before.to_json(),
            "after": self.after.to_json() if self.after else None,
        }


@dataclass(frozen=True)
class Fit:
    """A temperature and what it was fitted on.

    Attributes:
        temperature: see `metrics.calibration.fit_temperature`.
        n: images.
        nll_before, nll_after: on these very images.
    """

    temperature: float
    n: int
    nll_before: float
    nll_after: float


def calibration(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Calibration:
    """The figures before a temperature and, where it is not 1, after it.

    Args:
        logits: [n k], as the model gives them.
        labels: int64 [n].
    """
    before = _reading(logits, labels, 1.0)
    after = _reading(logits, labels, temperature) if temperature != 1 else None
    return Calibration(before, after)


def fit(logits: Tensor, labels: Tensor, least: int = 20) -> Fit:
    """Fit a temperature, with what is needed to judge it.

    Args:
        logits, labels: of images that the model was not trained on.
        least: of how many images the fit is refused below.

    Raises:
        Error: too few images, one class only, no best temperature, or as `fit_temperature`.
    """
    if len(labels) < least:
        raise Error(
            f"a temperature fitted on {len(labels)} images says little: it needs at least {least}"
        )
    if len(labels.unique()) < 2:
        raise Error("a temperature fitted on images of one class says nothing of the others")
    found = fit_temperature(logits, labels)
    if found <= LOWEST * 1.001 or found >= HIGHEST / 1.001:
        why = "all of them are right" if found < 1 else "the answers are no better than chance"
        raise Error(
            f"no temperature is the best one on these {len(labels):,} images, because {why}: fit "
            "it on more images, or on others"
        )
    return Fit(found, len(labels), nll(logits, labels), nll(logits.double() / found, labels))


def _reading(logits: Tensor, labels: Tensor, temperature: float) -> Reading:
    scaled = logits / temperature if temperature != 1 else logits
    probabilities = scaled.softmax(1)
    bins = reliability(probabilities, labels, BINS)
    squares, losses = brier_of_each(probabilities, labels), nll_of_each(scaled, labels)
    return Reading(
        temperature=temperature,
        ece=error_of(bins),
        ece_equal_mass=ece(probabilities, labels, BINS, equal_mass=True),
        brier=float(squares.mean()),
        nll=float(losses.mean()),
        bins=tuple(bins),
        brier_interval=bootstrap_interval(squares.numpy()),
        nll_interval=bootstrap_interval(losses.numpy()),
    )
