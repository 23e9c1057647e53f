"""Nearest neighbours against scikit-learn's, the votes against their definitions."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vitrail.evaluation import knn
from vitrail.evaluation.knn import KNN, largest
from vitrail.kit.errors import Error


def features(n, d=16, k=4, seed=0, spread=2.0):
    numbers = np.random.default_rng(seed)
    y = numbers.integers(k, size=n)
    centres = np.random.default_rng(99).normal(size=(k, d))
    return (centres[y] + spread * numbers.normal(size=(n, d))).astype(np.float32), y


def theirs(k, temperature):
    def weights(distance):
        return np.exp((1 - distance) / temperature)

    return KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)


@pytest.mark.parametrize("k", [1, 10, 37])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_scikit_learn(k, temperature):
    x, y = features(500)
    other, _ = features(200, seed=1)
    expected = theirs(k, temperature).fit(x.astype(float), y)
    ours = KNN(k, temperature).fit(x, y)
    np.testing.assert_array_equal(ours.predict(other), expected.predict(other.astype(float)))
    shares = expected.predict_proba(other.astype(float))
    np.testing.assert_allclose(ours.predict_proba(other), shares, atol=2e-5)
    far, places = expected.kneighbors(other.astype(float))
    similar, where = ours.neighbors(other)
    np.testing.assert_array_equal(where, places)
    np.testing.assert_allclose(similar, 1 - far, atol=1e-6)


def test_many_blocks_are_one(monkeypatch):
    x, y = features(3000)
    other, _ = features(200, seed=1)
    expected = theirs(5, 0.07).fit(x.astype(float), y)
    monkeypatch.setattr(knn, "ROWS", 700)
    monkeypatch.setattr(knn, "QUERIES", 33)
    ours = KNN(5).fit(x, y)
    np.testing.assert_array_equal(ours.predict(other), expected.predict(other.astype(float)))
    np.testing.assert_array_equal(
        ours.neighbors(other)[1], expected.kneighbors(other.astype(float))[1]
    )


@pytest.mark.parametrize(("n", "k"), [(1000, 3), (1000, 7), (1013, 1), (50, 20), (4096, 32)])
def test_largest_is_topk(n, k):
    values = torch.randn(40, n)
    found, where = largest(values, k)
    torch.testing.assert_close(found.sort(1).values, values.topk(k).values.sort(1).values)
    torch.testing.assert_close(values.gather(1, where), found)
    assert (where.sort(1).values.diff(dim=1) > 0).all()


def test_largest_finds_neighbours_in_one_run():
    values = torch.zeros(2, 1024)
    values[0, 64:70] = torch.arange(1.0, 7.0)
    values[1, 1020:1024] = 5.0
    found, where = largest(values, 4)
    assert set(where[0].tolist()) == {66, 67, 68, 69}
    assert set(where[1].tolist()) == {1020, 1021, 1022, 1023}
    assert found[1].tolist() == [5.0] * 4


def test_votes_are_those_of_dino_and_dinov2():
    x, y = features(300)
    other, _ = features(60, seed=1)
    normal, others = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, other))
    similar = others @ normal.T
    order = np.argsort(-similar, 1)[:, :20]
    near = np.take_along_axis(similar, order, 1)
    exp = np.exp(near / 0.07)
    softmax = exp / exp.sum(1, keepdims=True)
    for votes, weights in (("exp", exp), ("softmax", softmax), ("uniform", np.ones_like(exp))):
        ours = KNN((5, 20), (0.07, 0.5), votes).fit(x, y).scores(other)
        assert ours.shape == (2, 2, 60, 4)
        for i, k in enumerate((5, 20)):
            expected = np.zeros((60, 4))
            for j in range(k):
                np.add.at(expected, (np.arange(60), y[order[:, j]]), weights[:, j])
            np.testing.assert_allclose(ours[i, 0], expected, rtol=2e-4, atol=1e-6)
    # DINOv2's normalisation is over the largest k, whatever the k of the vote: the same classes.
    np.testing.assert_array_equal(
        KNN((5, 20), votes="softmax").fit(x, y).predict(other),
        KNN((5, 20), votes="exp").fit(x, y).predict(other),
    )


def test_axes_follow_the_settings():
    x, y = features(100)
    assert KNN(3).fit(x, y).predict(x).shape == (100,)
    assert KNN((3, 4)).fit(x, y).predict(x).shape == (2, 100)
    assert KNN(3, (0.07, 1.0, 2.0)).fit(x, y).predict(x).shape == (3, 100)
    assert KNN((3, 4), (0.07, 1.0, 2.0)).fit(x, y).predict(x).shape == (2, 3, 100)
    tensor = KNN(3).fit(torch.from_numpy(x), y).scores(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)


def test_a_very_low_temperature_is_the_nearest_neighbour():
    x, y = features(200)
    other, _ = features(50, seed=1)
    nearest = KNN(1).fit(x, y).predict(other)
    np.testing.assert_array_equal(KNN(20, 1e-5).fit(x, y).predict(other), nearest)
    np.testing.assert_array_equal(KNN(20, 1e-5).fit(-x, y).predict(-other), nearest)


def test_float16_features_stay_small():
    x, y = features(400)
    ours = KNN(10).fit(x.astype(np.float16), y)
    assert ours.x_.dtype == torch.float16
    assert (ours.predict(x) == KNN(10).fit(x, y).predict(x)).mean() > 0.97


def test_mistakes():
    x, y = features(30)
    with pytest.raises(Error, match="40 neighbours are asked for, of 30"):
        KNN(40).fit(x, y)
    for bad in (KNN(0), KNN(()), KNN(3, 0.0), KNN(3, votes="loud")):
        with pytest.raises(Error):
            bad.fit(x, y)
    with pytest.raises(Error, match="NaN"):
        KNN(3).fit(np.full((30, 2), np.nan, np.float32), y)
    with pytest.raises(Error, match="call fit first"):
        KNN(3).predict(x)
    zero = x.copy()
    zero[0] = 0
    assert np.isfinite(KNN(30).fit(zero, y).scores(zero)).all()
