"""Labels that are probably wrong: confident learning on predictions made out of fold.

A picture is suspected when the model, which never saw it with its label, is as sure of another
class as it usually is of that class's own pictures (Northcutt et al., Confident Learning,
arXiv 1911.00068). What the predictions come from is up to the caller.
"""

from collections.abc import Callable, Sequence

import numpy as np

from vitrail.kit.errors import Error

FOLDS = 5


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pictures whose label is probably wrong, the surest first.

    How many there are, confident learning says: a class's threshold is the mean probability of that
    class over the pictures labelled so, and a picture counts as mislabelled where, among the
    classes whose threshold it reaches, the likeliest is not its label. Which ones, is said by the
    probability of the label itself: so many with the least, of those that are taken for another
    class. (On planted errors a fourth more of them came first than by the difference to the
    likeliest class; cleanlab calls it pruning by self-confidence.)

    Args:
        probabilities: [n k], of each class, made without the picture itself.
        labels: int64 [n].

    Returns:
        (places [m], suggested labels [m]).
    """
    n, classes = probabilities.shape
    own = probabilities[np.arange(n), labels]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, own, minlength=classes)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    doubted = (reached.max(1) >= 0) & (reached.argmax(1) != labels)
    answers = probabilities.argmax(1)
    places = np.flatnonzero(answers != labels)
    places = places[np.argsort(own[places], kind="stable")][: int(doubted.sum())]
    return places, answers[places]


def folds_of(labels: np.ndarray, groups: Sequence[Sequence[int]], seed: int = 0) -> np.ndarray:
    """Which of `FOLDS` each picture is in, int64 [n]: every class spread, every group together.

    Duplicates have to be in one fold: else a picture's own copy, with the same wrong label, would
    vouch for it.

    Raises:
        Error: fewer pictures than folds.
    """
    n = len(labels)
    if n < 2 * FOLDS:
        raise Error(f"{n} pictures are too few to look for wrong labels: it takes {2 * FOLDS}")
    generator = np.random.default_rng(seed)
    folds = np.empty(n, np.int64)
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        # Each class begins at another fold, so that small ones do not fill the first.
        folds[places] = (np.arange(len(places)) + generator.integers(FOLDS)) % FOLDS
    for group in groups:
        folds[list(group)] = folds[group[0]]
    return folds


def out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    fit: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]],
    classes: int,
) -> np.ndarray:
    """Probabilities [n k] of every picture by a classifier that was learnt without its fold.

    Args:
        features: [n d].
        labels: int64 [n].
        folds: int64 [n].
        fit: from features and labels to a function from features to probabilities, whose columns
            are the sorted labels that it was given.
        classes: k.
    """
    probabilities = np.zeros((len(labels), classes), np.float32)
    for fold in np.unique(folds):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        predict = fit(features[rest], labels[rest])
        columns = np.unique(labels[rest])
        probabilities[np.ix_(held, columns)] = predict(features[held])
    return probabilities
