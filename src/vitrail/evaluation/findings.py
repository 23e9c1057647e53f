"""Everything that one evaluation found, in one object: what the page and the JSON are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.data.examples import Source
from vitrail.evaluation.accuracy import Accuracy
from vitrail.evaluation.calibration import Calibration, calibration
from vitrail.evaluation.compare import Comparison
from vitrail.evaluation.label_sets import AnyOf
from vitrail.evaluation.robustness import AtSize, Robustness
from vitrail.evaluation.slices import Slices, cuts, find_slices, picture_sizes
from vitrail.metrics.bootstrap import bootstrap_interval
from vitrail.metrics.ranking import auroc, mean_of_known, one_vs_rest_auroc

RESAMPLES = 1000

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """An evaluation, whole. Shares are 0..1; intervals hold 95 %, by bootstrap over images.

    Attributes:
        accuracy: the answers and the figures that training reports too.
        macro_f1: the mean of F1 over the classes with an image or an answer (scikit-learn's).
        auroc: of two classes the area for the second one; of more the mean over classes of each
            against the rest, by probabilities after the temperature. None where it has no meaning.
        intervals: of ``top1 top5 macro_f1``.
        calibration: before and after the temperature.
        slices: by class, size, shape and brightness.
        real: by label sets, where there are any.
        robustness, sizes, comparison: where they were asked for.
        notes: sentences to be known before the figures are trusted.
    """

    accuracy: Accuracy
    macro_f1: float
    auroc: float | None
    intervals: dict[str, Interval]
    calibration: Calibration
    slices: Slices
    real: AnyOf | None = None
    robustness: Robustness | None = None
    sizes: tuple[AtSize, ...] = ()
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The accuracy's keys, and those of what else was measured."""
        parts = {"real": self.real, "corruptions": self.robustness, "comparison": self.comparison}
        return self.accuracy.to_json() | {
            "macro_f1": self.macro_f1,
            "auroc": self.auroc,
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "calibration": self.calibration.to_json(),
            "slices": self.slices.to_json(),
            **{name: part.to_json() for name, part in parts.items() if part is not None},
            **({"sizes": [one.to_json() for one in self.sizes]} if self.sizes else {}),
            "notes": list(self.notes),
        }


def examine(
    result: Accuracy,
    source: Source,
    *,
    real: AnyOf | None = None,
    robustness: Robustness | None = None,
    sizes: Sequence[AtSize] = (),
    comparison: Comparison | None = None,
    notes: Sequence[str] = (),
) -> Findings:
    """Work out everything that follows from a model's answers.

    Args:
        result: of `accuracy.evaluate` with ``keep_logits``.
        source: the images, for their sizes.
        The rest: what was measured besides.
    """
    if result.logits is None:
        raise ValueError("evaluate with keep_logits=True")
    right = (result.predictions == result.labels).numpy()
    intervals = {
        "top1": bootstrap_interval(right.astype(float)),
        "top5": bootstrap_interval(result.top5_right.double().numpy()),
        "macro_f1": macro_f1_interval(result.labels.numpy(), result.predictions.numpy()),
    }
    groups = cuts(
        result.labels.numpy(),
        result.classes,
        result.brightness.numpy(),
        picture_sizes(source, result.indices.numpy()),
    )
    return Findings(
        accuracy=result,
        macro_f1=macro_f1(result.confusion.numpy()),
        auroc=area(result),
        intervals=intervals,
        calibration=calibration(result.logits, result.labels, result.temperature),
        slices=find_slices(right, groups),
        real=real,
        robustness=robustness,
        sizes=tuple(sizes),
        comparison=comparison,
        notes=tuple(notes),
    )


def macro_f1(counts: np.ndarray) -> float:
    """The mean F1 from a confusion matrix [k k], over classes with an image or an answer."""
    return _mean_f1(counts.diagonal(), counts.sum(1) + counts.sum(0))


def macro_f1_interval(labels: np.ndarray, predictions: np.ndarray, seed: int = 0) -> Interval:
    """The 95 % percentile interval of the macro F1, by bootstrap over images.

    Args:
        labels, predictions: int [n].
    """
    numbers = np.random.default_rng(seed)
    classes = int(max(labels.max(), predictions.max())) + 1
    hit = np.where(labels == predictions, labels, classes)  # one more place for the mistakes
    found = []
    for _ in range(RESAMPLES if len(labels) <= 100_000 else RESAMPLES // 5):
        drawn = numbers.integers(0, len(labels), len(labels))
        hits = np.bincount(hit[drawn], minlength=classes + 1)[:classes]
        n = np.bincount(labels[drawn], minlength=classes)
        found.append(_mean_f1(hits, n + np.bincount(predictions[drawn], minlength=classes)))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def area(result: Accuracy) -> float | None:
    """The AUROC of an evaluation; see `Findings`."""
    if result.logits is None:
        raise ValueError("evaluate with keep_logits=True")
    chances = (result.logits.double() / result.temperature).softmax(1).numpy()
    labels = result.labels.numpy()
    if chances.shape[1] == 2:
        return mean_of_known(np.array([auroc(chances[:, 1], labels == 1)]))
    return mean_of_known(one_vs_rest_auroc(chances, labels))


def _mean_f1(hits: np.ndarray, total: np.ndarray) -> float:
    """Of right answers, and images plus answers, by class."""
    seen = total > 0
    return float((2 * hits[seen] / total[seen]).mean())
