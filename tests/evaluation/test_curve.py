"""The learning curve and what it foresees, on worlds whose truth is known."""

import numpy as np
import pytest

from vitrail.evaluation.curve import (
    PowerLaw,
    curve_of,
    image_covariance,
    learning_curve,
    subset_covariance,
)
from vitrail.evaluation.fewshot import Ridge
from vitrail.kit.errors import Error

SIZES = (50, 100, 200, 400, 800, 1600)


def world(seed, width=30, classes=5, spread=3.0):
    """Clusters of Gaussian features: a function that draws n images of them afresh."""
    centres = np.random.default_rng(seed).normal(size=(classes, width))

    def draw(n, seed):
        numbers, y = np.random.default_rng(seed), np.arange(n) % classes
        return (centres[y] + spread * numbers.normal(size=(n, width))).astype(np.float32), y

    return draw


@pytest.mark.parametrize(("labels", "width", "spread"), [(400, 30, 3.0), (200, 60, 4.0)])
def test_interval_covers_what_twice_the_labels_give(labels, width, spread):
    """20 sets of labels: the truth, from fresh ones, is in the interval of nearly all of them."""
    draw = world(0, width, spread=spread)
    x, y = draw(20_000, 999)

    def expected(n):
        return np.mean([Ridge().fit(*draw(n, 10_000 + i)).score(x, y) for i in range(12)])

    truth = expected(2 * labels) - expected(labels)
    ahead = [learning_curve(*draw(labels, i), *draw(1500, 500 + i)).forecast for i in range(20)]
    covered = sum(one.low <= truth <= one.high for one in ahead)
    assert covered >= 17
    # An interval that says nothing would cover as well.
    assert np.mean([one.margin for one in ahead]) < 1.5 * truth
    assert abs(np.mean([one.gain for one in ahead]) - truth) < 0.5 * truth
    assert {one.labels for one in ahead} == {2 * labels}


@pytest.mark.parametrize("exponent", [0.1, 0.4, 0.9])
def test_a_power_law_is_found_whatever_its_exponent(exponent):
    numbers = np.random.default_rng(0)
    n = np.array(SIZES, float)

    def truth(n):
        return 0.85 - 0.3 * (n / 50) ** -exponent

    gain, covered, margins = truth(3200) - truth(1600), 0, []
    for _ in range(40):
        covariance = np.diag(1e-3 / n) + 1e-6
        means = numbers.multivariate_normal(truth(n), covariance)
        ahead = PowerLaw(SIZES, means, covariance).forecast(2.0)
        covered += ahead.low <= gain <= ahead.high
        margins.append(ahead.margin)
    assert covered >= 36
    assert np.mean(margins) < 0.02


def test_more_noise_gives_a_wider_interval():
    n = np.array(SIZES, float)
    means = 0.9 - 0.4 * (n / 50) ** -0.5
    margins = [
        PowerLaw(SIZES, means, scale * np.eye(6)).forecast(2.0).margin
        for scale in (1e-7, 1e-5, 1e-3)
    ]
    assert margins[0] < margins[1] < margins[2]


def test_nothing_is_foreseen_above_all_right_or_below_now():
    top = PowerLaw(SIZES, np.array([0.9, 0.95, 0.97, 0.98, 0.985, 0.99]), 1e-5 * np.eye(6))
    assert top.accuracy(2.0)[2] <= 1
    falling = PowerLaw(SIZES, np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), 1e-9 * np.eye(6))
    assert falling.forecast(2.0).gain >= 0
    right = np.ones((4, 3, 50), bool)
    perfect = curve_of((10, 20, 40, 80), right)
    assert perfect.forecast.gain == pytest.approx(0, abs=1e-3)
    assert np.isfinite(perfect.band).all()


def test_covariances_are_those_of_simulation():
    """Means over seeds of nested subsets of one pool: a linear statistic, drawn 4,000 times."""
    numbers = np.random.default_rng(0)
    sizes, seeds, pool, means, spreads = (8, 16, 32), 3, 32, [], []
    for _ in range(4000):
        values = numbers.normal(size=pool)
        order = [numbers.permutation(pool) for _ in range(seeds)]
        table = np.array([[values[rows[:n]].mean() for rows in order] for n in sizes])
        means.append(table.mean(1))
        spreads.append(subset_covariance(sizes, table))
    np.testing.assert_allclose(np.mean(spreads, 0), np.cov(np.array(means).T), atol=0.004)


def test_image_covariance_is_that_of_a_bootstrap():
    numbers = np.random.default_rng(0)
    right = numbers.random((3, 2, 400)) < numbers.random(400)
    drawn = [right[..., numbers.integers(400, size=400)].mean((1, 2)) for _ in range(4000)]
    np.testing.assert_allclose(image_covariance(right), np.cov(np.array(drawn).T), atol=5e-5)


def test_curve_is_measured_on_nested_halves():
    draw = world(0)
    x, y = draw(320, 1)
    curve = learning_curve(x, y, *draw(500, 2), seeds=3)
    assert curve.sizes == (10, 20, 40, 80, 160, 320)
    assert curve.accuracy.shape == (6, 3)
    assert len(set(curve.accuracy[-1])) == 1
    assert curve.accuracy[-1, 0] == Ridge().fit(x, y).score(*draw(500, 2))
    told = curve.to_json()
    assert told["twice"]["labels"] == 640
    assert told["twice"]["low"] <= told["twice"]["gain"] <= told["twice"]["high"]


def test_too_few_images():
    draw = world(0)
    with pytest.raises(Error, match="at least 4 training images of every class, and one has 3"):
        learning_curve(*draw(15, 0), *draw(20, 1))
    with pytest.raises(Error, match="2 seeds"):
        learning_curve(*draw(100, 0), *draw(20, 1), seeds=1)
