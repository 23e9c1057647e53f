"""The bootstrap: it covers what it should, and says the same twice."""

import numpy as np

from vitrail.metrics.bootstrap import bootstrap_interval


def test_it_covers_the_truth_about_as_often_as_it_says():
    numbers = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = bootstrap_interval(numbers.random(150) < 0.7, seed=trial, resamples=300)
        inside += low <= 0.7 <= high
    assert 178 <= inside <= 199  # 190 expected


def test_the_same_seed_gives_the_same_and_blocks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).random(100)
    once = bootstrap_interval(values, seed=3)
    assert once == bootstrap_interval(values, seed=3)
    assert once != bootstrap_interval(values, seed=4)
    assert once[0] < values.mean() < once[1]
    monkeypatch.setattr("vitrail.metrics.bootstrap.DRAWS", 700)
    assert bootstrap_interval(values, seed=3) == once
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)
