"""Linear probes against scikit-learn, and the grid against one rate at a time."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vitrail.evaluation import linear
from vitrail.evaluation.linear import RATES, LinearProbe
from vitrail.kit.errors import Error


def features(n=300, d=12, k=4, seed=0, spread=1.5):
    numbers = np.random.default_rng(seed)
    y = np.arange(n) % k
    centres = np.random.default_rng(99).normal(size=(k, d))
    x = centres[y] + spread * numbers.normal(size=(n, d))
    return (x * np.geomspace(0.1, 10, d) + 3).astype(np.float32), y


@pytest.mark.parametrize("l2", [0.1, 10.0])
def test_lbfgs_equals_scikit_learn(l2):
    x, y = features()
    ours = LinearProbe("lbfgs", l2=l2, dtype="float64", iterations=2000).fit(x, y)
    standard = (x - x.mean(0, dtype=float)) / (x.std(0, dtype=float) + 1e-5)
    theirs = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000).fit(standard, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_.T, atol=2e-4)
    # scikit-learn's bias is free up to a constant over the classes
    shift = ours.intercept_ - theirs.intercept_
    np.testing.assert_allclose(shift, shift.mean(), atol=2e-4)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(standard), atol=1e-4)


def test_lbfgs_in_float32_predicts_the_same():
    x, y = features()
    exact = LinearProbe("lbfgs", dtype="float64").fit(x, y)
    short = LinearProbe("lbfgs").fit(x, y)
    assert short.coef_.dtype == np.float32
    np.testing.assert_allclose(short.predict_proba(x), exact.predict_proba(x), atol=2e-3)


def test_the_grid_is_each_rate_alone():
    x, y = features()
    probe = LinearProbe(lr=(1e-3, 0.1), l2=(0.0, 0.01), epochs=4, standardize=False)
    probe.fit(x, y)
    assert [setting for setting, _ in probe.validation_] == [
        (1e-3, 0.0),
        (1e-3, 0.01),
        (0.1, 0.0),
        (0.1, 0.01),
    ]
    table = linear._Table(probe._standard, x, torch.from_numpy(y))
    rows = np.arange(len(x))
    grid = [setting for setting, _ in probe.validation_]
    side_by_side = probe._sgd(table, rows, grid)
    for i, setting in enumerate(grid):
        torch.testing.assert_close(side_by_side[i], probe._sgd(table, rows, [setting])[0])


def test_sgd_is_torch_sgd():
    """The slopes are written by hand: a plain loop with autograd gives the same weights."""
    x, y = features(64, 5, 3)
    probe = LinearProbe(lr=0.05, l2=0.1, epochs=3, batch_size=16, dtype="float64").fit(x, y)
    layer = torch.nn.Linear(5, 3, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias]}]
    optim = torch.optim.SGD(groups, lr=0.05 / 16, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 12)
    standard = torch.from_numpy((x - x.mean(0, dtype=float)) / (x.std(0, dtype=float) + 1e-5))
    generator = np.random.default_rng(0)
    for _ in range(3):
        order = np.argsort(generator.random(64))
        for i in range(0, 64, 16):
            rows = np.sort(order[i : i + 16])
            logits = layer(standard[rows])
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[rows]))
            optim.zero_grad()
            loss.backward()
            optim.step()
            schedule.step()
    np.testing.assert_allclose(probe.coef_, layer.weight.detach().T, atol=1e-6)
    np.testing.assert_allclose(probe.intercept_, layer.bias.detach(), atol=1e-6)


def test_a_good_rate_is_chosen_and_the_probe_is_good():
    x, y = features(800)
    other, truth = features(800, seed=1)
    probe = LinearProbe().fit(x, y)
    assert len(probe.validation_) == len(RATES)
    best = LogisticRegression(max_iter=2000).fit(x, y).score(other, truth)
    assert probe.score(other, truth) > best - 0.02
    assert dict(probe.validation_)[probe.lr_, probe.l2_] == max(a for _, a in probe.validation_)
    lbfgs = LinearProbe("lbfgs", l2=(1e-3, 1.0, 1e3)).fit(x, y)
    assert [setting for setting, _ in lbfgs.validation_] == [(0, 1e-3), (0, 1.0), (0, 1e3)]
    assert lbfgs.score(other, truth) > best - 0.02


def test_nothing_of_the_held_out_share_teaches_the_grid():
    _, y = features(100)
    probe = LinearProbe()
    kept, aside = probe._parts(torch.from_numpy(y))
    assert sorted([*kept, *aside]) == list(range(100))
    assert np.bincount(y[aside]).tolist() == [2, 2, 2, 2]


def test_large_features_are_read_as_they_are_needed(monkeypatch, tmp_path):
    x, y = features()
    whole = LinearProbe(epochs=2).fit(x, y)
    monkeypatch.setattr(linear, "HELD", 0)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_allclose(LinearProbe(epochs=2).fit(mapped, y).coef_, whole.coef_, atol=1e-6)


def test_same_seed_same_probe_and_clone():
    from sklearn.base import clone

    x, y = features()
    probe = LinearProbe(epochs=2, seed=5)
    first = probe.fit(x, y).coef_.copy()
    np.testing.assert_array_equal(clone(probe).fit(x, y).coef_, first)
    assert not np.array_equal(LinearProbe(epochs=2, seed=6).fit(x, y).coef_, first)


def test_mistakes():
    x, y = features()
    for bad in (
        LinearProbe("adam"),
        LinearProbe(lr=0.0),
        LinearProbe(l2=-1.0),
        LinearProbe(epochs=0),
        LinearProbe(held_out=1.0),
        LinearProbe(dtype="bf16"),
    ):
        with pytest.raises(Error):
            bad.fit(x, y)
    with pytest.raises(Error, match="one class only"):
        LinearProbe().fit(x, np.zeros(len(x), int))
    with pytest.raises(Error, match="NaN"):
        LinearProbe().fit(np.where(x > 5, np.nan, x), y)
    with pytest.raises(Error, match="every class has but one"):
        LinearProbe().fit(x[:4], y[:4])
    assert LinearProbe(lr=0.1).fit(x[:4], y[:4]).score(x[:4], y[:4]) == 1.0
