"""Average precision and AUROC against scikit-learn and torchmetrics, ties and all."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import multilabel_average_precision

from vitrail.metrics.ranking import auroc, average_precision, mean_of_known, one_vs_rest_auroc


@pytest.mark.parametrize("levels", [3, 20, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_both_are_scikit_learns_with_few_or_many_ties(levels, seed):
    numbers = np.random.default_rng(seed)
    positive = numbers.random(300) < 0.2
    scores = numbers.integers(0, levels, 300) / levels + 0.2 * positive
    assert average_precision(scores, positive) == pytest.approx(
        average_precision_score(positive, scores), abs=1e-12
    )
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_the_mean_over_classes_is_torchmetrics():
    numbers = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 7, generator=numbers)
    truth = (torch.rand(200, 7, generator=numbers) < 0.3).long()
    ours = [average_precision(scores[:, k].numpy(), truth[:, k].numpy()) for k in range(7)]
    theirs = multilabel_average_precision(scores, truth, 7)
    assert np.mean(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_one_against_the_rest_is_scikit_learns():
    numbers = np.random.default_rng(0)
    logits, labels = numbers.normal(size=(300, 5)), numbers.integers(0, 5, 300)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    theirs = roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    assert one_vs_rest_auroc(chances, labels).mean() == pytest.approx(theirs, abs=1e-12)


def test_a_question_without_sense_has_no_answer():
    scores = np.array([0.1, 0.2, 0.3])
    assert np.isnan(average_precision(scores, np.zeros(3, bool)))
    assert np.isnan(auroc(scores, np.zeros(3, bool)))
    assert np.isnan(auroc(scores, np.ones(3, bool)))
    assert average_precision(scores, np.ones(3, bool)) == 1
    assert mean_of_known(np.array([0.5, np.nan, 1.0])) == 0.75
    assert mean_of_known(np.array([np.nan])) is None
