import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from vitrail.metrics.accuracy import confusion, interval, per_class, top_k


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_scikit_learns(seed):
    generator = torch.Generator().manual_seed(seed)
    classes = 7
    # Class 6 has no images, class 5 is never predicted.
    labels = torch.randint(0, 6, (200,), generator=generator)
    predictions = torch.randint(0, 7, (200,), generator=generator)
    predictions[predictions == 5] = 0
    counts = confusion(labels, predictions, classes)
    names = list(range(classes))
    assert counts.tolist() == confusion_matrix(labels, predictions, labels=names).tolist()
    found = per_class(counts)
    precision, recall, f1, n = precision_recall_fscore_support(
        labels, predictions, labels=names, zero_division=0
    )
    assert found.n.tolist() == n.tolist()
    np.testing.assert_allclose(found.precision, precision, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.recall, recall, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.f1, f1, rtol=0, atol=1e-15)


def test_rows_are_the_truth_and_columns_the_answers():
    counts = confusion(torch.tensor([0, 0, 2]), torch.tensor([1, 1, 2]), 3)
    assert counts.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("k", [1, 2, 5, 9, 20])
def test_top_k_is_membership_among_the_k_best(k):
    scores = torch.randn(100, 9)
    scores[:40] = scores[:40].round()  # many ties
    labels = torch.randint(0, 9, (100,))
    best = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    expected = (best == labels.numpy()[:, None]).any(1)
    assert top_k(scores, labels, k).tolist() == expected.tolist()


def test_top_1_is_argmax_and_a_model_that_says_nothing_is_at_chance():
    scores = torch.zeros(10, 10)
    labels = torch.arange(10)
    assert top_k(scores, labels, 1).sum() == 1
    assert (top_k(scores, labels, 1) == (scores.argmax(1) == labels)).all()
    assert top_k(scores, labels, 5).sum() == 5


@pytest.mark.parametrize(("right", "n"), [(1700, 2000), (0, 10), (10, 10), (1, 3), (50, 100)])
def test_interval_equals_scipys(right, n):
    expected = binomtest(right, n).proportion_ci(method="wilson", confidence_level=0.95)
    low, high = interval(right / n, n)
    assert low == pytest.approx(expected.low, abs=1e-4)
    assert high == pytest.approx(expected.high, abs=1e-4)
    assert 0 <= low <= right / n <= high <= 1
