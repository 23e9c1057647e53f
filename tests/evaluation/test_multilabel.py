"""Images with several labels, against scikit-learn and torchmetrics."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from tests.evaluation.test_accuracy import ReadsItsAnswer
from vitrail.data.loader import Batch
from vitrail.evaluation.multilabel import evaluate_multi_label, score
from vitrail.kit.errors import Error

NAMES = ["ash", "birch", "cedar", "elm", "fir"]


def batches(pixels, truth, size=7, skipped=()):
    for start in range(0, len(pixels), size):
        part = torch.as_tensor(pixels[start : start + size], dtype=torch.uint8)
        yield Batch(
            images=part[:, None, :, None],
            labels=torch.as_tensor(truth[start : start + size]),
            keys=[str(start + i) for i in range(len(part))],
            indices=torch.arange(start, start + len(part)),
            skipped=list(skipped) if start == 0 else [],
        )


class Signed(ReadsItsAnswer):
    """Pixel i is logit i, in tenths, less 10: half of all answers are yes."""

    def features(self, images, tape=None):
        return super().features(images) - 10


def random_truth(n=200, k=5, seed=0):
    numbers = np.random.default_rng(seed)
    truth = (numbers.random((n, k)) < np.linspace(0.1, 0.6, k)).astype(np.uint8)
    pixels = numbers.integers(0, 150, (n, k)) + 50 * truth
    return pixels, truth


def test_figures_are_scikit_learns():
    pixels, truth = random_truth()
    found = evaluate_multi_label(Signed(NAMES), batches(pixels, truth), NAMES)
    logits = pixels / 10 - 10
    said = logits > 1e-6
    assert found.n == 200
    assert found.mean_average_precision == pytest.approx(
        average_precision_score(truth, pixels, average="macro"), abs=1e-12
    )
    assert found.mean_auroc == pytest.approx(roc_auc_score(truth, pixels, average="macro"))
    assert found.macro_f1 == pytest.approx(f1_score(truth, said, average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(truth, said, average="micro"))
    assert [one.n for one in found.per_class] == truth.sum(0).tolist()
    json.dumps(found.to_json())


def test_classes_are_matched_by_name_and_the_others_left_out():
    pixels, truth = random_truth()
    straight = evaluate_multi_label(Signed(NAMES), batches(pixels, truth), NAMES)
    some = ["fir", "ash"]
    found = evaluate_multi_label(Signed(NAMES), batches(pixels, truth[:, [4, 0]]), some)
    assert [one.label for one in found.per_class] == some
    assert found.per_class[0] == straight.per_class[4]


def test_a_class_without_a_positive_has_no_precision_and_no_say():
    logits = np.array([[1.0, -1], [2, -2], [-1, -3]])
    truth = np.array([[1, 0], [0, 0], [0, 0]], bool)
    found = score(logits, truth, ["a", "b"])
    assert found.mean_average_precision == found.per_class[0].average_precision == 0.5
    assert found.per_class[1].average_precision is None
    assert score(logits, np.zeros((3, 2), bool), ["a", "b"]).mean_average_precision is None


def test_what_does_not_fit_is_said():
    pixels, truth = random_truth(10)
    with pytest.raises(Error, match="0 and 1 for 5 classes"):
        evaluate_multi_label(Signed(NAMES), batches(pixels, truth[:, :3]))
    with pytest.raises(Error, match="0 and 1"):
        evaluate_multi_label(Signed(NAMES), batches(pixels, truth + 1))
    with pytest.raises(Error, match="no image"):
        evaluate_multi_label(Signed(NAMES), [])
    with pytest.raises(Error, match="does not know 1"):
        evaluate_multi_label(Signed(NAMES), batches(pixels, truth), ["ash", "oak"])
    model = Signed(NAMES)
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(Error, match="answer for 0 is not a finite"):
        evaluate_multi_label(model.train(), batches(pixels, truth))
    assert model.training
