"""Images with several labels at once: mean average precision and what else is usual.

Every class is a question of its own (is it in the picture?), so a logit goes through a sigmoid and
not through the softmax. A batch's labels are [b k], 1 where a class is in the picture.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vitrail.data.loader import Batch
from vitrail.evaluation.accuracy import align, finite_logits
from vitrail.kit.errors import Error
from vitrail.metrics.ranking import auroc, average_precision, mean_of_known
from vitrail.models.base import ImageClassifier


@dataclass(frozen=True)
class ClassRanking:
    """One class: its positives, average precision, AUROC, and F1 of answers over one half."""

    label: str
    n: int
    average_precision: float | None
    auroc: float | None
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class MultiLabel:
    """What `evaluate_multi_label` found. Shares are 0..1.

    Attributes:
        n: images.
        loss: mean over the images of the binary cross-entropy summed over the classes, in nats.
        mean_average_precision: over the classes with a positive; scikit-learn's
            ``average_precision_score(average="macro")`` on these.
        mean_auroc: over the classes with a positive and a negative.
        macro_f1, micro_f1: of the answers with a probability over one half.
        per_class: one entry a class.
        skipped: (key, reason) of images that could not be read.
    """

    n: int
    loss: float
    mean_average_precision: float | None
    mean_auroc: float | None
    macro_f1: float
    micro_f1: float
    per_class: tuple[ClassRanking, ...]
    skipped: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = dict(vars(self)) | {"per_class": [dict(vars(one)) for one in self.per_class]}
        return fields | {"skipped": [{"key": key, "reason": why} for key, why in self.skipped]}


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model said of some images, and what is true of them.

    Attributes:
        logits: float64 [n k].
        positive: bool [n k], whether a class is in the picture.
        names: of the k classes.
        skipped: (key, reason) of images that could not be read.
    """

    logits: np.ndarray
    positive: np.ndarray
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()


def evaluate_multi_label(
    model: ImageClassifier, batches: Iterable[Batch], classes: Sequence[str] | None = None
) -> MultiLabel:
    """Ask a model about every class of every image, in evaluation mode.

    Args:
        model: left in the mode that it was in.
        batches: of one pass over the data, labels [b k] of 0 and 1.
        classes: the data's, matched with the model's by name; the model's other classes are left
            out. None takes them for the model's.

    Raises:
        Error: classes that the model does not know, labels of another form, logits that are not
            finite, or no image.
    """
    return score_all([ask(model, batches, classes)])


def ask(
    model: ImageClassifier, batches: Iterable[Batch], classes: Sequence[str] | None = None
) -> Answers:
    """The answers alone, of all images or of one process's share of them; none is no mistake.

    Args and errors are `evaluate_multi_label`'s.
    """
    if not model.num_classes:
        raise Error("the model is an encoder without a head: fine-tune from it first")
    places = align(classes, model.labels) if classes and model.labels else None
    wide = model.num_classes if places is None else len(places)
    scores, targets, skipped = [np.zeros((0, wide))], [np.zeros((0, wide), bool)], []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                skipped += batch.skipped
                if len(batch.keys):
                    logits = finite_logits(model, batch)
                    scores.append((logits if places is None else logits[:, places]).numpy())
                    targets.append(_truth(batch, wide))
    finally:
        model.train(was_training)
    names = classes or model.labels or map(str, range(wide))
    return Answers(np.concatenate(scores), np.concatenate(targets), tuple(names), tuple(skipped))


def _truth(batch: Batch, classes: int) -> np.ndarray:
    labels = batch.labels.cpu().numpy()
    if labels.shape != (len(batch.keys), classes) or not np.isin(labels, (0, 1)).all():
        raise Error(
            f"labels of several classes are 0 and 1 for {classes} classes an image, not "
            f"{list(labels.shape)}"
        )
    return labels.astype(bool)


def score_all(parts: Sequence[Answers]) -> MultiLabel:
    """The figures of all images together.

    Raises:
        Error: there is no image.
    """
    skipped = tuple(item for part in parts for item in part.skipped)
    if not any(len(part.logits) for part in parts):
        raise Error(f"there is no image to evaluate on; {len(skipped)} were skipped")
    logits = np.concatenate([part.logits for part in parts])
    positive = np.concatenate([part.positive for part in parts])
    return score(logits, positive, parts[0].names, skipped)


def score(
    logits: np.ndarray,
    positive: np.ndarray,
    names: Sequence[str],
    skipped: tuple[tuple[str, str], ...] = (),
) -> MultiLabel:
    """The figures from logits [n k] and truth, bool [n k]."""
    said = logits > 0  # a probability over one half
    hits = (said & positive).sum(0)
    told, true = said.sum(0), positive.sum(0)
    precisions = np.array(
        [average_precision(s, p) for s, p in zip(logits.T, positive.T, strict=True)]
    )
    areas = np.array([auroc(s, p) for s, p in zip(logits.T, positive.T, strict=True)])
    f1 = 2 * hits / np.maximum(told + true, 1)
    rows = [
        ClassRanking(
            label=name,
            n=int(true[k]),
            average_precision=_known(precisions[k]),
            auroc=_known(areas[k]),
            precision=float(hits[k] / max(told[k], 1)),
            recall=float(hits[k] / max(true[k], 1)),
            f1=float(f1[k]),
        )
        for k, name in enumerate(names)
    ]
    wrong_way = np.where(positive, -logits, logits)
    return MultiLabel(
        n=len(logits),
        loss=float(np.logaddexp(0, wrong_way).sum(1).mean()),
        mean_average_precision=mean_of_known(precisions),
        mean_auroc=mean_of_known(areas),
        macro_f1=float(f1.mean()),
        micro_f1=float(2 * hits.sum() / max(int((told + true).sum()), 1)),
        per_class=tuple(rows),
        skipped=skipped,
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
