"""Calibration figures against torchmetrics, scikit-learn and a plain search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from vitrail.evaluation import calibration as named
from vitrail.kit.errors import Error
from vitrail.metrics.calibration import brier, ece, fit_temperature, nll, reliability


def scores(n=500, k=10, spread=3.0, seed=0, dtype=torch.float32):
    """Logits that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator, dtype=torch.float64) * spread
    logits[torch.arange(n), labels] += spread
    return logits.to(dtype), labels


def test_the_names_of_the_contract():
    for name in ("ece", "brier", "nll", "fit_temperature"):
        assert callable(getattr(named, name))


@pytest.mark.parametrize("k", [2, 3, 10, 100])
@pytest.mark.parametrize("bins", [1, 10, 15, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ece_is_torchmetrics(k, bins, dtype):
    # A large spread gives confidences of exactly 1 in float32, which have a bin of their own.
    for spread in (0.1, 1.0, 8.0):
        logits, labels = scores(400, k, spread, dtype=dtype)
        probabilities = logits.softmax(1)
        theirs = multiclass_calibration_error(probabilities, labels, k, n_bins=bins, norm="l1")
        assert ece(probabilities, labels, bins) == pytest.approx(float(theirs), abs=2e-6)
        assert ece(logits, labels, bins) == pytest.approx(float(theirs), abs=2e-6)


def test_confidences_on_the_edges_of_bins_go_where_torchmetrics_puts_them():
    tops = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    probabilities = torch.stack([tops, 1 - tops], 1)
    labels = torch.tensor([0, 0, 1, 0, 0, 1])
    theirs = multiclass_calibration_error(probabilities, labels, 2, n_bins=10, norm="l1")
    assert ece(probabilities, labels, 10) == pytest.approx(float(theirs), abs=1e-7)
    assert [one.n for one in reliability(probabilities, labels, 10)][-1] == 1


@pytest.mark.parametrize("n", [7, 100, 331])
def test_equal_mass_is_the_direct_computation(n):
    logits, labels = scores(n, 5, 1.0, dtype=torch.float64)
    probabilities = logits.softmax(1).numpy()
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels.numpy()
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(15, n))
    direct = sum(len(p) / n * abs(confidence[p].mean() - right[p].mean()) for p in parts)
    assert ece(probabilities, labels, equal_mass=True) == pytest.approx(direct, abs=1e-12)
    bins = reliability(probabilities, labels, equal_mass=True)
    assert max(one.n for one in bins) - min(one.n for one in bins) <= 1
    assert sum(one.n for one in bins) == n


@pytest.mark.parametrize("k", [2, 3, 10])
def test_brier_and_nll_are_scikit_learns(k):
    logits, labels = scores(300, k, 2.0, dtype=torch.float64)
    probabilities = logits.softmax(1).numpy()
    theirs = brier_score_loss(labels, probabilities, scale_by_half=False)
    assert brier(probabilities, labels) == pytest.approx(theirs, abs=1e-12)
    loss = log_loss(labels, probabilities, labels=range(k))
    assert nll(probabilities, labels) == pytest.approx(loss, abs=1e-12)
    assert nll(logits, labels) == pytest.approx(loss, abs=1e-12)


def test_probabilities_in_half_precision_are_not_taken_for_logits():
    logits, labels = scores(300, 1000, 2.0)
    for dtype in (torch.float16, torch.bfloat16):
        low = logits.softmax(1).to(dtype)
        assert ece(low, labels) == pytest.approx(ece(logits, labels), abs=0.01)
        assert nll(low, labels) == pytest.approx(nll(logits, labels), rel=0.05)


def test_two_classes_score_twice_the_score_of_one():
    logits, labels = scores(200, 2, 1.0, dtype=torch.float64)
    probabilities = logits.softmax(1).numpy()
    one = brier_score_loss(labels, probabilities[:, 1])
    assert brier(probabilities, labels) == pytest.approx(2 * one, abs=1e-12)


def test_logits_have_no_floor_and_probabilities_have_one():
    logits, labels = torch.tensor([[0.0, 2000.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert nll(logits, labels) == pytest.approx((2000 + np.log1p(np.exp(-1))) / 2)
    assert 300 < nll(logits.softmax(1), labels) < 400


@pytest.mark.parametrize("spread", [0.3, 1.0, 6.0])
@pytest.mark.parametrize("k", [2, 10])
def test_the_temperature_is_that_of_a_plain_search(k, spread):
    logits, labels = scores(400, k, spread, dtype=torch.float64)
    logits *= 3  # far too sure

    def loss(log_t):
        return nll(logits / np.exp(log_t), labels)

    best = minimize_scalar(loss, bounds=(-4.6, 4.6), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(np.exp(best.x), rel=1e-5)
    assert nll(logits / found, labels) <= best.fun + 1e-12


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(0.05, 20), seed=st.integers(0, 1000))
def test_scaled_logits_give_the_scaled_temperature_and_never_another_answer(factor, seed):
    logits, labels = scores(200, 4, 1.0, seed, torch.float64)
    plain, scaled = fit_temperature(logits, labels), fit_temperature(logits * factor, labels)
    if 0.02 < plain * factor < 50:
        assert scaled == pytest.approx(plain * factor, rel=1e-6)
    assert torch.equal((logits * factor / scaled).argmax(1), logits.argmax(1))
    assert nll(logits * factor / scaled, labels) <= nll(logits * factor, labels) + 1e-12


def test_a_temperature_without_a_maximum_is_at_its_bound():
    labels = torch.tensor([0, 1, 2, 0])
    right = torch.eye(3)[labels] * 5
    assert fit_temperature(right, labels) == pytest.approx(0.01)
    assert fit_temperature(-right, labels) == pytest.approx(100)
    for logits in (right, -right):
        with pytest.raises(Error, match="no temperature is the best one on these 40 images"):
            named.fit(logits.repeat(10, 1), labels.repeat(10))


@pytest.mark.parametrize(
    ("logits", "labels", "sentence"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1]), r"\[3, 2\] and \[2\]"),
        (torch.zeros(0, 2), torch.zeros(0), "no image"),
        (torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]), "not finite"),
        (torch.rand(2, 3), torch.tensor([0, 3]), "between 0 and 2 for 3 classes"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 1]), "all equal"),
        (torch.rand(3, 1), torch.tensor([0, 0, 0]), "two classes"),
    ],
)
def test_bad_scores_are_said(logits, labels, sentence):
    with pytest.raises(Error, match=sentence):
        fit_temperature(logits, labels)


def test_too_little_to_fit_on_is_said():
    logits, labels = scores(30, 3)
    with pytest.raises(Error, match="fitted on 10 images"):
        named.fit(logits[:10], labels[:10])
    with pytest.raises(Error, match="one class"):
        named.fit(logits, torch.zeros(30, dtype=torch.int64))


def test_before_and_after():
    logits, labels = scores(500, 5, 1.0)
    temperature = fit_temperature(logits * 4, labels)
    found = named.calibration(logits * 4, labels, temperature)
    assert found.after is not None
    assert found.after.nll < found.before.nll
    assert found.after.ece < found.before.ece
    low, high = found.after.nll_interval
    assert low < found.after.nll < high
    fields = found.to_json()
    assert fields["temperature"] == temperature
    assert sum(one["n"] for one in fields["after"]["bins"]) == 500
    assert named.calibration(logits, labels).after is None
