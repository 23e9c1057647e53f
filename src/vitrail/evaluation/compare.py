"""Two models on the same images: which is better, and whether that is more than chance.

Both answer every image, so the comparison is paired: images that both get right, or both wrong,
say nothing of the difference.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.evaluation.accuracy import Accuracy
from vitrail.kit.errors import Error
from vitrail.metrics.bootstrap import bootstrap_interval
from vitrail.metrics.significance import mcnemar


@dataclass(frozen=True)
class Comparison:
    """The first model against the second.

    Attributes:
        first, second: their names.
        n: images that both answered.
        top1, against_top1: accuracies on these images, 0..1.
        both, only_first, only_second, neither: how many images are right for whom.
        same_answer: share of images that get the same answer, right or wrong, 0..1.
        difference: top1 - against_top1.
        low, high: its 95 % interval, paired bootstrap over images.
        p: McNemar's exact test, two-sided.
    """

    first: str
    second: str
    n: int
    top1: float
    against_top1: float
    both: int
    only_first: int
    only_second: int
    neither: int
    same_answer: float
    difference: float
    low: float
    high: float
    p: float

    def sentence(self) -> str:
        """What came out, in words."""
        points = f"{100 * abs(self.difference):.2f} points"
        if self.p >= 0.05:
            return (
                f"No difference can be told from chance on {self.n:,} images: {self.first} is "
                f"{points} {'above' if self.difference >= 0 else 'below'} {self.second} "
                f"(95 %: {100 * self.low:+.2f} to {100 * self.high:+.2f}; McNemar's exact test "
                f"p = {self.p:.2g})."
            )
        return (
            f"{self.first} is {'better' if self.difference > 0 else 'worse'} than {self.second} "
            f"by {points} (95 %: {100 * self.low:+.2f} to {100 * self.high:+.2f}; McNemar's "
            f"exact test p = {self.p:.2g})."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def compare(
    first: Accuracy, second: Accuracy, names: tuple[str, str] = ("the first", "the second")
) -> Comparison:
    """Compare two evaluations of the same images; those that one could not read are left out.

    Args:
        first, second: of two models on one source.
        names: of the models.

    Raises:
        Error: no image in common, or other true classes for the same image.
    """
    places = {index: row for row, index in enumerate(second.indices.tolist())}
    pairs = [
        (row, places[index]) for row, index in enumerate(first.indices.tolist()) if index in places
    ]
    if not pairs:
        raise Error("the two models were measured on no image in common")
    rows, others = np.array(pairs).T
    classes, theirs = np.array(first.classes), np.array(second.classes)
    truth = classes[first.labels.numpy()[rows]]
    if (truth != theirs[second.labels.numpy()[others]]).any():
        raise Error("the two evaluations do not agree on the images' true classes")
    answers = classes[first.predictions.numpy()[rows]]
    their_answers = theirs[second.predictions.numpy()[others]]
    good, fine = answers == truth, their_answers == truth
    low, high = bootstrap_interval(good.astype(float) - fine)
    only_first, only_second = int((good & ~fine).sum()), int((fine & ~good).sum())
    return Comparison(
        first=names[0],
        second=names[1],
        n=len(rows),
        top1=float(good.mean()),
        against_top1=float(fine.mean()),
        both=int((good & fine).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~good & ~fine).sum()),
        same_answer=float((answers == their_answers).mean()),
        difference=(only_first - only_second) / len(rows),
        low=low,
        high=high,
        p=mcnemar(only_first, only_second),
    )
