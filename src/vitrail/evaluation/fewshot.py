"""Few-shot accuracy in closed form: ridge regression to targets of -1 and +1.

The protocol of the ViT paper (section 4.1) and of big_vision (evaluators/fewshot_lsr.py): features
are standardised with the training shots' statistics, a constant feature of 100 is appended (so the
bias is hardly held back), and

    W = argmin |X W - Y|^2 + l2 |W|^2,    Y = 2 onehot - 1

is solved through one eigendecomposition for any number of l2. What is special here:
- Standardised columns have mean zero, so the constant column is orthogonal to all of them: its row
  of W is 100 sum(Y) / (10^4 n + l2), exactly, and the rest is a problem without it. That takes the
  one huge eigenvalue (10^4 n) out of the arithmetic.
- Y is never made: sums over the rows of each class are all that is needed of it.
- Sums and eigenvectors are float64 whatever the features are; `dtype` is that of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vitrail.evaluation.estimator import (
    ROWS,
    Array,
    Estimator,
    blocks,
    check_features,
    check_labels,
    float_type,
    like,
    mean_and_std,
    numbers_of,
)
from vitrail.kit.errors import Error, listing
from vitrail.metrics.bootstrap import bootstrap_interval

SHOTS = (1, 5, 10, 25)
L2 = 2.0**10
BIAS = 100.0  # the constant feature
EPS = 1e-5  # added to the deviations


class Ridge(Estimator):
    """Ridge regression on standardised features to targets of -1 and +1 (the module says more).

    Args:
        l2: the penalty, above 0; a sequence gives `coef_`, `scores` and `predict` a leading axis,
            at the price of one matrix product each.
        dtype: ``float32`` or ``float64``: of `coef_` and `scores`.

    Attributes:
        classes_: [k], sorted.
        mean_, std_: float64 [d] of the training features.
        coef_: [d+1 k] (or [l d+1 k]), the last row for the constant feature of 100.
    """

    def __init__(self, l2: float | Sequence[float] = L2, dtype: str = "float32"):
        self.l2 = l2
        self.dtype = dtype

    def fit(self, x: Array, y: Any) -> Self:
        """Learn from features [n d] and labels [n] (numbers or names).

        Where n < d the n-by-n Gram matrix is decomposed, else the d-by-d one.

        Raises:
            Error: shapes that do not go together, NaN, one class only, features that are all
                constant, or an l2 that is not above 0.
        """
        check_features(x)
        penalties = self._penalties()
        self.classes_, numbers = check_labels(x, y)
        self.mean_, self.std_ = mean_and_std(x)
        self.n_features_in_ = x.shape[1]
        k, n = len(self.classes_), len(x)
        solve = self._from_rows if n < x.shape[1] else self._from_columns
        left, values, right = solve(x, numbers, k)
        left, right = left.to(float_type(self.dtype)), right.to(float_type(self.dtype))
        counts = torch.bincount(numbers, minlength=k).double()
        coefs = torch.empty(len(penalties), x.shape[1] + 1, k, dtype=left.dtype)
        for coef, l2 in zip(coefs, penalties, strict=True):
            torch.mm(left, right / (values + l2).to(left.dtype)[:, None], out=coef[:-1])
            coef[-1] = BIAS * (2 * counts - n) / (BIAS**2 * n + l2)
        self.coef_ = like(coefs[0] if np.ndim(self.l2) == 0 else coefs, x)
        return self

    def scores(self, x: Array) -> Array:
        """Features [n d] to scores [n k] (or [l n k]): standardised, extended, times `coef_`."""
        self._demand_fitted(x)
        coef = torch.as_tensor(self.coef_)
        parts = []
        for _, part in blocks(x, torch.float64):
            part = self._standard(part).to(coef.dtype)
            parts.append(part @ coef[..., :-1, :] + BIAS * coef[..., -1:, :])
        return like(torch.cat(parts, -2), x)

    def predict(self, x: Array) -> Array:
        """Features [n d] to classes [n] (or [l n]): those of the highest score."""
        self._demand_fitted(x)
        # By blocks: scores of a million images in 1,000 classes are 4 GB.
        tops = [
            torch.as_tensor(self.scores(x[i : i + ROWS])).argmax(-1) for i in range(0, len(x), ROWS)
        ]
        return self._named(torch.cat(tops, -1), x)

    def _penalties(self) -> list[float]:
        penalties = numbers_of(self.l2)
        if not penalties or not all(0 < l2 < np.inf for l2 in penalties):
            raise Error(f"l2 is a number above 0, or several, not {self.l2!r}")
        return penalties

    def _standard(self, part: Tensor) -> Tensor:
        """Float64 rows, standardised. A feature that was constant in training counts for nothing.

        (Its coefficients are 0 in any case; but 0 times a huge number is no good way to say it.)
        """
        return (part - self.mean_).mul_((self.std_ > 0) / (self.std_ + EPS))

    def _from_columns(self, x: Array, numbers: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """n >= d: X'X = Q V Q', and W = Q (V + l2)^-1 Q' X'Y. Returns Q, V and Q'X'Y."""
        d = x.shape[1]
        gram = torch.zeros(d, d, dtype=torch.float64)
        sums = torch.zeros(k, d, dtype=torch.float64)
        for start, part in blocks(x, torch.float64):
            part = self._standard(part)
            gram.addmm_(part.T, part)
            sums.index_add_(0, numbers[start : start + len(part)], part)
        values, vectors = torch.linalg.eigh(gram)
        # X'Y is 2 X' onehot - X'1, and the last is zero.
        return vectors, values.clamp(min=0), vectors.T @ (2 * sums.T)

    def _from_rows(self, x: Array, numbers: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """n < d: XX' = Q V Q', and W = X'Q (V + l2)^-1 Q'Y. Returns X'Q, V and Q'Y."""
        n = len(x)
        standard = torch.cat([self._standard(part) for _, part in blocks(x, torch.float64)])
        values, vectors = torch.linalg.eigh(standard @ standard.T)
        sums = torch.zeros(k, n, dtype=torch.float64).index_add_(0, numbers, vectors)
        right = 2 * sums.T - vectors.sum(0)[:, None]
        return standard.T @ vectors, values.clamp(min=0), right


@dataclass(frozen=True, eq=False)
class FewShot:
    """What `fewshot` measured. Accuracies are fractions 0..1.

    Attributes:
        shots: images a class, ascending.
        seeds: of the draws.
        accuracy: float64 [shots seeds]; with several l2, [l shots seeds].
        right: bool [shots seeds m] (or [l ...]): which test image was right.
    """

    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    accuracy: np.ndarray
    right: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over the seeds: [shots] (or [l shots])."""
        return self.accuracy.mean(-1)

    def interval(self, shot: int) -> tuple[float, float]:
        """95 % bootstrap interval of the mean at this many shots, over seeds and test images.

        Raises:
            Error: several l2: choose one first.
        """
        if self.right.ndim != 3:
            raise Error("an interval is that of one l2")
        return bootstrap_interval(self.right[self.shots.index(shot)])

    def to_json(self) -> dict[str, dict[str, Any]]:
        """By number of shots: mean, std over the seeds, low and high, and each seed's accuracy."""
        told = {}
        for shot, by_seed in zip(self.shots, self.accuracy, strict=True):
            low, high = self.interval(shot)
            told[str(shot)] = {
                "mean": float(by_seed.mean()),
                "std": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
                "low": low,
                "high": high,
                "seeds": [float(one) for one in by_seed],
            }
        return told


def fewshot(
    train_x: Array,
    train_y: Any,
    test_x: Array,
    test_y: Any,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int | Sequence[int] = 3,
    l2: float | Sequence[float] = L2,
    dtype: str = "float32",
    classes: Sequence[str] | None = None,
) -> FewShot:
    """The few-shot protocol: k images a class, nested shots, several seeds, accuracy on all tests.

    For each seed the images of each class are permuted once, and the first k are the shots: the
    5-shot images are among the 10-shot ones.

    Args:
        train_x, test_x: features [n d], [m d], of all images.
        train_y, test_y: labels.
        shots: images a class.
        seeds: how many (0, 1, ...), or which.
        l2, dtype: as for `Ridge`.
        classes: the names of classes that are numbers, for messages.

    Raises:
        Error: a class with fewer images than shots, a class in test that is not in train, or what
            `Ridge.fit` raises.
    """
    shots = tuple(sorted(set(shots)))
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not shots or shots[0] < 1 or not seeds:
        raise Error(f"at least one image a class and one seed, not shots {shots}, seeds {seeds}")
    check_features(train_x, "training features")
    check_features(test_x, "test features")
    names, numbers = check_labels(train_x, train_y, "training labels")
    truth = check_test_labels(names, test_x, test_y, classes)
    counts = np.bincount(numbers)
    if counts.min() < shots[-1]:
        few = [f"{_name(names[i], classes)} ({counts[i]})" for i in _below(counts, shots[-1])]
        raise Error(
            f"{shots[-1]} shots need {shots[-1]} training images of every class, and there are "
            f"fewer of {listing(few)}: ask for fewer shots, or give more images"
        )
    right = []
    for seed in seeds:
        order = nested_order(numbers.numpy(), seed)
        for shot in shots:
            rows = np.sort(np.concatenate([places[:shot] for places in order]))
            model = Ridge(l2, dtype).fit(_rows(train_x, rows), numbers[torch.from_numpy(rows)])
            right.append(np.asarray(model.predict(test_x)) == truth)
    table = np.stack(right, -2)  # [(l) seeds*shots m]
    table = table.reshape(*table.shape[:-2], len(seeds), len(shots), table.shape[-1])
    table = np.moveaxis(table, -3, -2)
    return FewShot(shots, seeds, table.mean(-1), table)


def nested_order(numbers: np.ndarray, seed: int) -> list[np.ndarray]:
    """The rows of each class, permuted: the first k of each are the k shots of this seed."""
    generator = np.random.default_rng(seed)
    # Keys and not `permutation`, whose stream may change with the version of numpy.
    keys = generator.random(len(numbers))
    by_class = np.lexsort((keys, numbers))
    return np.split(by_class, np.cumsum(np.bincount(numbers))[:-1])


def check_test_labels(
    names: np.ndarray, test_x: Array, test_y: Any, classes: Sequence[str] | None = None
) -> np.ndarray:
    """Test labels as numbers among the training classes: int64 [m].

    Raises:
        Error: another length than the features', or a class in test that is not in train.
    """
    test_y = np.asarray(test_y)
    if test_y.shape != (len(test_x),):
        raise Error(
            f"{len(test_x)} rows of test features, but the test labels are {list(test_y.shape)}"
        )
    unknown = sorted(set(np.unique(test_y).tolist()) - set(names.tolist()))
    if unknown:
        raise Error(
            f"class {listing([str(_name(one, classes)) for one in unknown])} is in test and not "
            "in train, so it cannot be learnt: add images of it to train, or leave it out of test"
        )
    return np.searchsorted(names, test_y)


def _below(counts: np.ndarray, least: int) -> list[int]:
    return [int(i) for i in np.flatnonzero(counts < least)]


def _name(label: Any, classes: Sequence[str] | None) -> Any:
    return label if classes is None else classes[int(label)]


def _rows(x: Array, rows: np.ndarray) -> Array:
    return x[torch.from_numpy(rows)] if isinstance(x, Tensor) else x[rows]
