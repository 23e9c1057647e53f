"""The ridge against its definition and scikit-learn's; the protocol; mistakes of the user."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from vitrail.evaluation.fewshot import FewShot, Ridge, fewshot
from vitrail.kit.errors import Error


def features(n=120, d=40, k=5, seed=0, spread=1.0):
    """Clusters with features of very different means and scales."""
    numbers = np.random.default_rng(seed)
    y = np.arange(n) % k
    centres = numbers.normal(size=(k, d))
    x = centres[y] + spread * numbers.normal(size=(n, d))
    return (x * np.geomspace(1e-2, 1e2, d) + 30 * numbers.normal(size=d)).astype(np.float32), y


def extended(train, x):
    train, x = train.astype(np.float64), x.astype(np.float64)
    standard = (x - train.mean(0)) / (train.std(0) + 1e-5)
    return np.concatenate([standard, np.full((len(x), 1), 100.0)], 1)


def by_normal_equations(x, y, l2):
    """(X'X + l2)^-1 X'Y in float64, exactly as facts of the protocol write it."""
    wide = extended(x, x)
    targets = 2.0 * (y[:, None] == np.unique(y)) - 1
    return np.linalg.solve(wide.T @ wide + l2 * np.eye(wide.shape[1]), wide.T @ targets)


@pytest.mark.parametrize("shape", [(120, 40), (40, 120), (41, 40), (40, 40), (39, 40)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_normal_equations_in_both_forms(shape, dtype):
    x, y = features(*shape)
    for l2 in (1.0, 2.0**10):
        ridge = Ridge(l2, dtype).fit(x, y)
        expected = by_normal_equations(x, y, l2)
        assert ridge.coef_.dtype == dtype
        tolerance = 1e-6 if dtype == "float32" else 1e-9
        np.testing.assert_allclose(ridge.coef_, expected, atol=tolerance)
        other, _ = features(77, shape[1], seed=3)
        scores = extended(x, other) @ expected
        np.testing.assert_allclose(ridge.scores(other), scores, atol=1e-5 * np.abs(scores).max())


def test_equals_scikit_learn_with_the_same_column():
    for n, d in ((200, 30), (30, 60)):
        x, y = features(n, d)
        theirs = SklearnRidge(alpha=512.0, fit_intercept=False, solver="cholesky")
        theirs.fit(extended(x, x), 2.0 * (y[:, None] == np.arange(5)) - 1)
        ours = Ridge(512.0, "float64").fit(x, y)
        np.testing.assert_allclose(ours.coef_, theirs.coef_.T, atol=1e-6)
        other, _ = features(50, d, seed=1)
        predicted = theirs.predict(extended(x, other)).argmax(1)
        np.testing.assert_array_equal(ours.predict(other), predicted)


def test_several_l2_are_each_alone():
    for n, d in ((100, 20), (20, 50)):
        x, y = features(n, d)
        several = Ridge([0.5, 8, 2**10]).fit(x, y)
        assert several.coef_.shape == (3, d + 1, 5)
        assert several.scores(x).shape == (3, n, 5)
        assert several.predict(x).shape == (3, n)
        for one, l2 in enumerate((0.5, 8, 2**10)):
            alone = Ridge(l2).fit(x, y)
            np.testing.assert_allclose(several.coef_[one], alone.coef_, atol=1e-6)
            np.testing.assert_array_equal(several.predict(x)[one], alone.predict(x))


def test_takes_tensors_names_float16_and_files_and_answers_in_kind(tmp_path):
    x, y = features(60, 10, spread=0.3)
    names = np.array(["e", "a", "b", "d", "c"])[y]
    np.save(tmp_path / "x.npy", x.astype(np.float16))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    ridge = Ridge(1.0).fit(mapped, names)
    assert list(ridge.classes_) == list("abcde")
    assert ridge.score(mapped, names) > 0.95
    tensor = Ridge(1.0).fit(torch.from_numpy(x), torch.from_numpy(y))
    predicted = tensor.predict(torch.from_numpy(x))
    assert isinstance(predicted, torch.Tensor)
    assert isinstance(tensor.coef_, torch.Tensor)
    assert (predicted == torch.from_numpy(y)).float().mean() > 0.95


def test_a_feature_that_is_constant_in_training_counts_for_nothing():
    x, y = features(60, 10)
    x[:, 3] = 0.1
    other = x.copy()
    other[:, 3] = 7.0
    ridge = Ridge(1.0).fit(x, y)
    assert np.isfinite(ridge.coef_).all()
    np.testing.assert_array_equal(ridge.scores(other), ridge.scores(x))


def test_blocks_change_nothing(monkeypatch):
    x, y = features(100, 20)
    whole = Ridge(4.0).fit(x, y)
    monkeypatch.setattr("vitrail.evaluation.estimator.ROWS", 7)
    monkeypatch.setattr("vitrail.evaluation.estimator.blocks.__defaults__", (7,))
    monkeypatch.setattr("vitrail.evaluation.fewshot.ROWS", 9)
    parts = Ridge(4.0).fit(x, y)
    np.testing.assert_allclose(parts.coef_, whole.coef_, atol=1e-7)
    np.testing.assert_array_equal(parts.predict(x), whole.predict(x))


def test_scikit_learn_takes_it():
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_predict

    x, y = features(60, 10, spread=0.3)
    copy = clone(Ridge([1.0, 2.0], dtype="float64").fit(x, y))
    assert copy.get_params() == {"l2": [1.0, 2.0], "dtype": "float64"}
    assert not hasattr(copy, "coef_")
    copy.set_params(l2=3.0)
    assert repr(copy) == "Ridge(l2=3.0, dtype='float64')"
    assert (cross_val_predict(copy, x, y, cv=3) == y).mean() > 0.9
    with pytest.raises(Error, match="did you mean 'l2'"):
        copy.set_params(L2=1)


# The protocol


def test_shots_are_nested_and_seeds_differ():
    x, y = features(300, 12, 3, spread=6.0)
    drawn = []

    class Spy(Ridge):
        def fit(self, x, y):
            drawn.append({tuple(row) for row in np.asarray(x)})
            return super().fit(x, y)

    import vitrail.evaluation.fewshot as module

    real, module.Ridge = module.Ridge, Spy
    try:
        result = fewshot(x, y, x, y, shots=(1, 5, 10, 25), seeds=3)
    finally:
        module.Ridge = real
    assert [len(rows) for rows in drawn] == 3 * [3, 15, 30, 75]
    for seed in range(3):
        one, five, ten, many = drawn[4 * seed : 4 * seed + 4]
        assert one < five < ten < many
    assert drawn[3] != drawn[7] != drawn[11]
    assert result.accuracy.shape == (4, 3)
    assert (np.diff(result.mean) > 0).all()


def test_result_is_the_accuracy_of_the_drawn_images():
    x, y = features(200, 12, 4, spread=4.0)
    test_x, test_y = features(100, 12, 4, seed=0, spread=4.0)
    result = fewshot(x, y, test_x, test_y, shots=(5,), seeds=(7,), l2=3.0)
    from vitrail.evaluation.fewshot import nested_order

    rows = np.concatenate([places[:5] for places in nested_order(y, 7)])
    assert sorted(y[rows]) == sorted([0, 1, 2, 3] * 5)
    right = Ridge(3.0).fit(x[rows], y[rows]).predict(test_x) == test_y
    assert result.accuracy[0, 0] == right.mean()
    told = result.to_json()["5"]
    assert told["mean"] == right.mean()
    assert told["low"] <= told["mean"] <= told["high"]


def test_several_l2_have_an_axis_of_their_own():
    x, y = features(200, 12, 4, spread=4.0)
    both = fewshot(x, y, x, y, shots=(2, 6), seeds=2, l2=(1.0, 100.0))
    assert both.accuracy.shape == (2, 2, 2)
    for i, l2 in enumerate((1.0, 100.0)):
        alone: FewShot = fewshot(x, y, x, y, shots=(2, 6), seeds=2, l2=l2)
        np.testing.assert_array_equal(both.accuracy[i], alone.accuracy)


# Mistakes


def test_mistakes_are_one_sentence():
    x, y = features(40, 6, 4)
    nan = x.copy()
    nan[17, 2] = np.nan
    with pytest.raises(Error, match=r"NaN or an infinity \(first in row 17"):
        Ridge().fit(nan, y)
    with pytest.raises(Error, match="one class only"):
        Ridge().fit(x, np.zeros(40, int))
    with pytest.raises(Error, match="the same for every image"):
        Ridge().fit(np.full((40, 6), 0.3, np.float32), y)
    with pytest.raises(Error, match=r"40 rows of features, but labels are \[39\]"):
        Ridge().fit(x, y[:-1])
    with pytest.raises(Error, match=r"\[n d\], not \[40\]"):
        Ridge().fit(x[:, 0], y)
    with pytest.raises(Error, match="above 0"):
        Ridge(0.0).fit(x, y)
    with pytest.raises(Error, match="call fit first"):
        Ridge().predict(x)
    with pytest.raises(Error, match="features of 6 numbers, not of 5"):
        Ridge().fit(x, y).predict(x[:, :5])
    with pytest.raises(Error, match=r"25 shots need 25 .* fewer of cat \(10\), dog \(10\)"):
        fewshot(x, y, x, y, classes=["cat", "dog", "elk", "fox"])
    other = y.copy()
    other[3] = 9
    with pytest.raises(Error, match="class 9 is in test and not in train"):
        fewshot(x, y, x, other, shots=(1,))
    with pytest.raises(Error, match="test labels are"):
        fewshot(x, y, x, y[:4], shots=(1,))
