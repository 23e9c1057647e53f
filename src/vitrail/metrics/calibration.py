"""Whether probabilities mean what they say: calibration error, Brier score, likelihood.

Everything here takes the scores of n images over k classes and their true classes. Scores whose
rows are distributions (0..1, adding up to 1) are probabilities; any others are logits, and go
through the softmax first. All arithmetic is float64, but for the edges of the bins: those are
compared in the scores' own type, as torchmetrics does.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitrail.kit.errors import Error

BINS = 15  # Guo et al. 2017
ROWS = 8192  # images at a time where all classes of each are looked at
LOWEST, HIGHEST = 0.01, 100.0  # between which a temperature is looked for

Scores = Tensor | np.ndarray


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in one interval of a reliability diagram.

    Attributes:
        low, high: the interval; of equal mass, the least and greatest confidence in it.
        n: how many images.
        confidence, accuracy: their means, 0..1; NaN where there is no image.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(
    scores: Scores, labels: Scores, bins: int = BINS, equal_mass: bool = False
) -> list[Bin]:
    """The bins of a reliability diagram: confidence against accuracy of the predicted class.

    Args:
        scores: [n k], see the module.
        labels: int64 [n].
        bins: how many.
        equal_mass: bins of as equal numbers of images as there can be, in the order of their
            confidence (Nixon et al. 2019), instead of intervals of equal width.

    Returns:
        Equal width: the bins [i/b, (i+1)/b), and one more for a confidence of exactly 1, as
        torchmetrics has it. Equal mass: at most ``bins`` bins, none of them empty.

    Raises:
        Error: shapes that do not go together, no image, or scores that are not finite.
    """
    probabilities, labels = _checked(scores, labels)
    if bins < 1:
        raise Error(f"a reliability diagram has at least one bin, not {bins}")
    confidence, prediction = probabilities.max(1)
    right = (prediction == labels).double()
    if equal_mass:
        order = confidence.argsort(stable=True)
        return [
            _bin(confidence[part].double(), right[part])
            for part in order.tensor_split(min(bins, len(order)))
        ]
    return equal_width(confidence, right, bins)


def equal_width(confidence: Tensor, right: Tensor, bins: int = BINS) -> list[Bin]:
    """`reliability` of equal width, from every image's confidence and whether it is right, [n]."""
    right = right.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    place = torch.bucketize(confidence, edges, right=True) - 1
    counts = torch.bincount(place, minlength=bins + 1)
    sums = [
        torch.bincount(place, weights=values, minlength=bins + 1)
        for values in (confidence.double(), right)
    ]
    means = [(total / counts).tolist() for total in sums]
    tops = [*edges.tolist()[1:], 1.0]
    return [
        Bin(low, high, n, mean, share)
        for low, high, n, mean, share in zip(
            edges.tolist(), tops, counts.tolist(), *means, strict=True
        )
    ]


def ece(scores: Scores, labels: Scores, bins: int = BINS, equal_mass: bool = False) -> float:
    """Expected calibration error: how far confidence and accuracy are apart, weighted by images.

    Args:
        scores, labels, bins, equal_mass: see `reliability`.
    """
    return error_of(reliability(scores, labels, bins, equal_mass))


def error_of(bins: list[Bin]) -> float:
    """The expected calibration error of a reliability diagram's bins."""
    n = sum(one.n for one in bins)
    return sum(abs(one.accuracy - one.confidence) * one.n for one in bins if one.n) / n


def brier(scores: Scores, labels: Scores) -> float:
    """Brier score over all classes: the mean of sum_k (p_k - y_k)^2, 0 best and 2 worst.

    For two classes it is twice the score of one class's probability (scikit-learn's default
    there).
    """
    return float(brier_of_each(scores, labels).mean())


def brier_of_each(scores: Scores, labels: Scores) -> Tensor:
    """The Brier score of every image, float64 [n]."""
    probabilities, labels = _checked(scores, labels)
    parts = [
        rows.double().square().sum(1) - 2 * rows.double().gather(1, own[:, None])[:, 0] + 1.0
        for rows, own in zip(probabilities.split(ROWS), labels.split(ROWS), strict=True)
    ]
    return torch.cat(parts)


def nll(scores: Scores, labels: Scores) -> float:
    """Negative log-likelihood of the true classes, the mean in nats."""
    return float(nll_of_each(scores, labels).mean())


def nll_of_each(scores: Scores, labels: Scores) -> Tensor:
    """The negative log-likelihood of every image, float64 [n].

    A probability of 0 for the true class counts as the least that float64 can hold; logits have
    no such floor.
    """
    scores, labels = _tensors(scores, labels)
    if is_distribution(scores):
        own = scores.gather(1, labels[:, None])[:, 0].double()
        return -own.clamp(min=torch.finfo(torch.float64).tiny).log()
    parts = [
        rows.double().logsumexp(1) - rows.double().gather(1, own[:, None])[:, 0]
        for rows, own in zip(scores.split(ROWS), labels.split(ROWS), strict=True)
    ]
    return torch.cat(parts)


def fit_temperature(logits: Scores, labels: Scores) -> float:
    """The temperature T for which softmax(logits / T) is likeliest (Guo et al. 2017, section 4.2).

    The likelihood is concave in 1/T, so its slope has one zero. Newton's steps find it, kept
    between the bounds that the slope's sign has shown. No answer changes.

    Args:
        logits: [n k], of images that the model was not trained on.
        labels: int64 [n].

    Returns:
        T in 0.01..100; a bound where the likelihood still rises there: every image right, or
        logits that know nothing.

    Raises:
        Error: as `reliability`; one class only; or logits of every image without a difference.
    """
    logits, labels = _tensors(logits, labels)
    if logits.shape[1] < 2:
        raise Error("a temperature needs at least two classes to be fitted on")
    if not (logits.amax(1) > logits.amin(1)).any():
        raise Error("the logits of every image are all equal: no temperature changes them")
    if (logits.argmax(1) == labels).all():
        return LOWEST  # far from there the slope cannot be told from 0 any more
    low, high, scale = 1 / HIGHEST, 1 / LOWEST, 1.0  # of 1/T
    for _ in range(100):
        slope, bend = _slopes(logits, labels, scale)
        low, high = (scale, high) if slope > 0 else (low, scale)
        step = scale + slope / bend if bend > 0 else high
        before, scale = scale, step if low < step < high else math.sqrt(low * high)
        if abs(scale / before - 1) < 1e-10:
            break
    return 1 / scale


def _slopes(logits: Tensor, labels: Tensor, scale: float) -> tuple[float, float]:
    """The first derivative of the log-likelihood by 1/T, and the second without its sign.

    Own logit less the expected one, and the variance of the logits, each summed over images.
    """
    slope = bend = 0.0
    for rows, own in zip(logits.split(ROWS), labels.split(ROWS), strict=True):
        wide = rows.double()
        chances = (wide * scale).softmax(1)
        expected = (chances * wide).sum(1)
        slope += float((wide.gather(1, own[:, None])[:, 0] - expected).sum())
        bend += float((chances * (wide - expected[:, None]).square_()).sum())
    return slope, bend


def is_distribution(scores: Tensor) -> bool:
    """Whether every row is a distribution: 0..1, adding up to 1."""
    if float(scores.min()) < 0 or float(scores.max()) > 1 + 1e-6:
        return False
    off = 1e-3 if torch.finfo(scores.dtype).eps < 1e-4 else 0.05  # half precision adds up badly
    return bool(((scores.double().sum(1) - 1).abs() < off).all())


def _checked(scores: Scores, labels: Scores) -> tuple[Tensor, Tensor]:
    scores, labels = _tensors(scores, labels)
    return (scores if is_distribution(scores) else scores.softmax(1)), labels


def _tensors(scores: Scores, labels: Scores) -> tuple[Tensor, Tensor]:
    scores, labels = torch.as_tensor(scores).detach(), torch.as_tensor(labels)
    if not scores.is_floating_point():
        scores = scores.double()
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise Error(
            f"scores are [images classes] and labels [images], not {list(scores.shape)} and "
            f"{list(labels.shape)}"
        )
    if not len(labels):
        raise Error("there is no image to measure calibration on")
    if not scores.isfinite().all():
        raise Error("some scores are not finite numbers: the model that gave them is broken")
    labels = labels.long()
    if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
        raise Error(
            f"labels lie between 0 and {scores.shape[1] - 1} for {scores.shape[1]} classes, not "
            f"between {int(labels.min())} and {int(labels.max())}"
        )
    return scores.cpu(), labels.cpu()


def _bin(confidence: Tensor, right: Tensor) -> Bin:
    low, high = float(confidence.min()), float(confidence.max())
    return Bin(low, high, len(confidence), float(confidence.mean()), float(right.mean()))
