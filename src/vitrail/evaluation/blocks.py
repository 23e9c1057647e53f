"""The parts of a page that show an accuracy: every class, what is taken for what, the mistakes.

A training run's page and an evaluation's are both made of them.
"""

import numpy as np

from vitrail.evaluation.accuracy import Accuracy
from vitrail.evaluation.multilabel import MultiLabel
from vitrail.kit.page import Picture, Section, Share, confused

ROWS = 40  # classes up to which the whole table stands open


def accuracy_blocks(section: Section, result: Accuracy) -> None:
    """How many are right, every class, and what is taken for what."""
    counts = result.confusion.numpy()
    present = counts.sum(1) > 0
    section.text(
        f"{round(result.top1 * result.n):,} of {result.n:,} images are right. Always answering "
        f"with the most frequent class would give {percent(counts.sum(1).max() / result.n)}. "
        f"The mean loss is {result.loss:.3f}."
    )
    if not present.all():
        section.text(f"{(~present).sum():,} of {len(present):,} classes have no image here.")
    rows = [
        (one.label, one.n, Share(one.recall), Share(one.precision), Share(one.f1))
        for one in sorted(result.per_class, key=lambda one: one.f1)
        if one.n
    ]
    columns = ("class", "images", "recall", "precision", "F1")
    caption = (
        "Per class, the hardest first. Recall: how many of its images are found. "
        "Precision: how many of the images given its name deserve it."
    )
    section.table(columns, rows[:ROWS], caption)
    if len(rows) > ROWS:
        section.details(f"The other {len(rows) - ROWS:,} classes").table(
            columns, rows[ROWS:], "Per class, continued."
        )
    shown = np.flatnonzero(present | (counts.sum(0) > 0))
    labels = [result.classes[i] for i in shown]
    section.matrix(
        counts[np.ix_(shown, shown)],
        labels,
        "Confusion matrix: a row for each true class, a column for each answer.",
    )
    pairs = [
        f"{result.classes[i]} for {result.classes[j]} ({n:,})"
        for i, j, n in confused(counts, most=3)
    ]
    if pairs:
        section.text(f"Taken most often: {'; '.join(pairs)}.")


def multi_label_blocks(section: Section, result: MultiLabel) -> None:
    """How well each class is found, where images have any number of labels."""
    rows = [
        (one.label, one.n, *map(share, (one.average_precision, one.auroc, one.f1)))
        for one in sorted(result.per_class, key=lambda one: one.average_precision or 0)
    ]
    section.table(
        ("class", "images", "average precision", "AUROC", "F1"),
        rows,
        "Per class, the hardest first. F1 is that of answers with a probability over one half.",
    )


def multi_label_tiles(result: MultiLabel) -> list[tuple[str | None, str]]:
    """The figures that stand at the top of a page."""
    score = result.mean_average_precision
    return [
        (None if score is None else percent(score), "mean average precision"),
        (percent(result.macro_f1), "macro F1"),
        (percent(result.micro_f1), "micro F1"),
    ]


def share(value: float | None) -> Share | None:
    """A share with its bar; an empty cell where it is not known."""
    return None if value is None else Share(value)


def mistake_blocks(section: Section, result: Accuracy) -> None:
    """The most confident mistakes, with their pictures."""
    worst = result.mistakes()
    if not worst:
        section.text("None: every image was classified rightly.")
        return
    wrong = int((result.labels != result.predictions).sum())
    section.text(
        f"The {len(worst)} of {wrong:,} mistakes that the model is surest of. Look at the labels "
        "too: a mistake made with certainty is often an image with the wrong label."
    )
    section.gallery(
        [
            Picture(
                images=[mistake.picture],
                alts=[f"{mistake.label}, image {mistake.key}"],
                title=mistake.label,
                notes=(
                    f"taken for {mistake.prediction}, {percent(mistake.probability, 1)}",
                    mistake.key,
                ),
            )
            for mistake in worst
        ]
    )


def percent(share: float, digits: int = 2) -> str:
    """0.8605 as 86.05 %, unbroken."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def span(ends: tuple[float, float], digits: int = 1) -> str:
    """An interval of shares in words."""
    return f"{percent(ends[0], digits)} to {percent(ends[1], digits)}"
