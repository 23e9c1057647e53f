"""How well scores put the right images first: average precision and the area under the ROC curve.

The figures are scikit-learn's (`average_precision_score`, `roc_auc_score`), ties included: images
of one score are taken together. A class for which the question makes no sense (no image of it, or
none besides) is NaN, and the means leave it out.
"""

import numpy as np


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the precision-recall steps: sum of (R_i - R_i-1) P_i over falling thresholds.

    Args:
        scores: [n], higher for more likely.
        positive: bool [n].

    Returns:
        0..1; NaN without a positive.
    """
    positive = np.asarray(positive, bool)
    total = int(positive.sum())
    if not total:
        return float("nan")
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked, hits = np.asarray(scores)[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each group of ties
    found = hits[last]
    precision = found / (last + 1)
    return float((np.diff(found, prepend=0) / total * precision).sum())


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores higher than a negative, ties counting one half.

    Args:
        scores: [n].
        positive: bool [n].

    Returns:
        0..1; NaN without a positive or without a negative.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    hits = int(positive.sum())
    misses = len(positive) - hits
    if not hits or not misses:
        return float("nan")
    ordered, own = np.sort(scores), scores[positive]
    below, upto = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
    ranks = (below + upto + 1) / 2  # counted from 1, ties sharing the mean of theirs
    return float((ranks.sum() - hits * (hits + 1) / 2) / (hits * misses))


def one_vs_rest_auroc(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each class the AUROC of its probability against all other images, float64 [k].

    Args:
        probabilities: [n k].
        labels: int [n].
    """
    return np.array(
        [auroc(probabilities[:, k], labels == k) for k in range(probabilities.shape[1])]
    )


def mean_of_known(values: np.ndarray) -> float | None:
    """The mean of those values that are not NaN; None where there is none."""
    known = np.asarray(values)[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
