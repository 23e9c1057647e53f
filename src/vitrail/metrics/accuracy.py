"""How often predictions are right: top-k, the confusion matrix, and what follows from it.

The figures are scikit-learn's (`classification_report` with ``zero_division=0``,
`confusion_matrix`); ties between scores go to the class that comes first.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class PerClass(NamedTuple):
    """Per class, each [k]: `n` is int64, the others float64 in 0..1."""

    n: Tensor
    precision: Tensor
    recall: Tensor
    f1: Tensor


def top_k(scores: Tensor, labels: Tensor, k: int = 5) -> Tensor:
    """Whether the true class is among the k best, bool [b].

    Equal scores rank by class number, so ``k=1`` is exactly ``scores.argmax(1) == labels``. With
    no more than k classes every answer is True.

    Args:
        scores: [b classes], without NaN.
        labels: int64 [b].
    """
    own = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & before)).sum(1)
    return rank < k


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Counts int64 [k k]: row = true class, column = predicted class.

    Args:
        labels, predictions: int64 [n], each in 0..classes-1.
    """
    counts = torch.bincount(labels * classes + predictions, minlength=classes * classes)
    return counts.view(classes, classes)


def per_class(counts: Tensor) -> PerClass:
    """Precision, recall, F1 and number of images of each class, from `confusion`'s counts.

    Where there is nothing to divide by, the figure is 0: precision of a class that was never
    predicted, recall of a class without images (its n is 0), F1 when both are 0.
    """
    n, predicted = counts.sum(1), counts.sum(0)
    right = counts.diagonal().double()
    return PerClass(
        n=n,
        precision=right / predicted.clamp(min=1),
        recall=right / n.clamp(min=1),
        f1=2 * right / (n + predicted).clamp(min=1),
    )


def interval(share: float, n: int, deviations: float = 1.96) -> tuple[float, float]:
    """Between which values the true accuracy lies, given a share of n images (Wilson, 1927).

    Args:
        share: the accuracy measured, 0..1.
        n: on how many images, at least 1.
        deviations: 1.96 standard deviations is 95 % of the cases.
    """
    squared = deviations**2 / n
    middle = (share + squared / 2) / (1 + squared)
    spread = math.sqrt(share * (1 - share) * squared + squared**2 / 4) / (1 + squared)
    return max(0.0, middle - spread), min(1.0, middle + spread)
