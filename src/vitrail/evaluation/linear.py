"""Linear probes: a linear classifier with a softmax on features that stay as they are.

Two solvers. ``sgd`` is the protocol of DINO and DINOv2 (eval_linear.py; eval/linear.py): SGD with
momentum 0.9 and a cosine, no weight decay, and a grid of learning rates, of which the best on
held-out images is kept. All rates are trained side by side: the heads of the grid are the columns
of one matrix, so that a step is one matrix product and the features are read once for all of them.
``lbfgs`` solves the same problem with an L2 penalty to the end; it is scikit-learn's
`LogisticRegression` with C = 1 / l2, bias not penalised.

What differs from DINO: features are standardised first (`standardize=False` does not), because one
grid then suits every model; what is chosen among rates or penalties is chosen on a share of the
*training* images, never on the test, and then learnt again from all of them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vitrail.evaluation.estimator import (
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
from vitrail.evaluation.fewshot import nested_order
from vitrail.kit.errors import Error

# DINOv2's grid, eval/linear.py; times batch size / 256.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
MOMENTUM = 0.9
EPS = 1e-5
SOLVERS = ("sgd", "lbfgs")
HELD = 2**26  # standardised numbers that are kept in memory: 256 MB of float32


class LinearProbe(Estimator):
    """A linear classifier on features.

    Args:
        solver: ``sgd`` or ``lbfgs``.
        lr: learning rate or rates of ``sgd``, for a batch of 256; scaled with the batch.
        l2: penalty or penalties: l2 / 2 times the squared weights is added to the summed loss for
            ``lbfgs`` (1 / C of scikit-learn), to the mean loss for ``sgd`` (its weight decay).
            None: 0 for ``sgd``, 1 for ``lbfgs``. Several make a grid, with the rates of ``sgd``.
        epochs, batch_size: of ``sgd``; no more than a fourth of the images are a batch.
        iterations: of ``lbfgs``, at most.
        held_out: the share of the training images that a grid is chosen on.
        standardize: by the training features' mean and deviation.
        dtype: ``float32`` or ``float64``.
        seed: of the order of the images and of which are held out.

    Attributes:
        classes_: [k], sorted.
        coef_, intercept_: [d k], [k]: scores are standardised features times these.
        lr_, l2_: those that were chosen.
        validation_: of a grid, pairs ((lr, l2), accuracy on the held-out share), in its order.
    """

    def __init__(
        self,
        solver: str = "sgd",
        lr: float | Sequence[float] = RATES,
        l2: float | Sequence[float] | None = None,
        epochs: int = 30,
        batch_size: int = 256,
        iterations: int = 200,
        held_out: float = 0.1,
        standardize: bool = True,
        dtype: str = "float32",
        seed: int = 0,
    ):
        self.solver = solver
        self.lr = lr
        self.l2 = l2
        self.epochs = epochs
        self.batch_size = batch_size
        self.iterations = iterations
        self.held_out = held_out
        self.standardize = standardize
        self.dtype = dtype
        self.seed = seed

    def fit(self, x: Array, y: Any) -> Self:
        """Learn from features [n d] and labels [n] (numbers or names).

        Raises:
            Error: shapes that do not go together, NaN, one class only, features that are all
                constant, or settings that are none.
        """
        check_features(x)
        classes, numbers = check_labels(x, y)
        grid = self._grid()
        self.classes_, self.n_features_in_ = classes, x.shape[1]
        mean, std = mean_and_std(x)
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std) - EPS
        self.mean_, self.std_ = mean, std
        table = _Table(self._standard, x, numbers)
        self.validation_: list[tuple[tuple[float, float], float]] = []
        if len(grid) > 1:
            kept, aside = self._parts(numbers)
            right = self._accuracies(self._solve(table, kept, grid), table, aside)
            self.validation_ = list(zip(grid, right, strict=True))
            # Of equals the middle one: the ends of a plateau are the least safe.
            best = np.flatnonzero(np.array(right) == max(right))
            grid = [grid[best[len(best) // 2]]]
        self.lr_, self.l2_ = grid[0]
        weights = self._solve(table, np.arange(len(x)), grid)[0]
        self.coef_, self.intercept_ = like(weights[:-1], x), like(weights[-1], x)
        return self

    def scores(self, x: Array) -> Array:
        """Features [n d] to logits [n k]."""
        self._demand_fitted(x)
        weights, bias = torch.as_tensor(self.coef_), torch.as_tensor(self.intercept_)
        logits = [self._standard(part) @ weights + bias for _, part in blocks(x, None)]
        return like(torch.cat(logits), x)

    def predict_proba(self, x: Array) -> Array:
        """Features [n d] to probabilities [n k]."""
        return like(torch.as_tensor(self.scores(x)).softmax(1), x)

    def predict(self, x: Array) -> Array:
        """Features [n d] to classes [n]."""
        return self._named(torch.as_tensor(self.scores(x)).argmax(1), x)

    # What is learnt, and from what

    def _grid(self) -> list[tuple[float, float]]:
        """All settings to try, as pairs (rate, penalty); the rate is 0 for ``lbfgs``."""
        if self.solver not in SOLVERS:
            raise Error(f"solver is one of {', '.join(SOLVERS)}, not {self.solver!r}")
        default = 0.0 if self.solver == "sgd" else 1.0
        rates, penalties = numbers_of(self.lr), numbers_of(default if self.l2 is None else self.l2)
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise Error(f"lr is a number above 0, or several, not {self.lr!r}")
        if not penalties or not all(0 <= l2 < math.inf for l2 in penalties):
            raise Error(f"l2 is a number from 0 on, or several, not {self.l2!r}")
        if self.epochs < 1 or self.batch_size < 1 or self.iterations < 1:
            raise Error("epochs, batch_size and iterations are at least 1")
        if not 0 < self.held_out < 1:
            raise Error(f"held_out is a share between 0 and 1, not {self.held_out}")
        if self.solver == "lbfgs":
            return [(0.0, l2) for l2 in penalties]
        return [(rate, l2) for rate in rates for l2 in penalties]

    def _parts(self, numbers: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Rows to learn from and rows to choose on: a share of every class, at least one image
        where there are two, and none where there is one."""
        kept, aside = [], []
        for rows in nested_order(numbers.numpy(), self.seed):
            cut = min(max(1, round(self.held_out * len(rows))), len(rows) - 1)
            aside.append(rows[:cut])
            kept.append(rows[cut:])
        held = np.sort(np.concatenate(aside))
        if not len(held):
            raise Error(
                "a grid is chosen on held-out images, and every class has but one: give one lr "
                "and one l2, or more images"
            )
        return np.sort(np.concatenate(kept)), held

    def _accuracies(self, weights: Tensor, table: "_Table", rows: np.ndarray) -> list[float]:
        """Of every head of the grid [g d+1 k] on some rows."""
        right = torch.zeros(len(weights))
        for part, labels in table.batches(_cut(rows, 4096)):
            logits = torch.einsum("b d, g d k -> g b k", part, weights[:, :-1]) + weights[:, -1:]
            right += (logits.argmax(2) == labels).sum(1)
        return (right / len(rows)).tolist()

    def _standard(self, part: Tensor) -> Tensor:
        dtype = float_type(self.dtype)
        scale = ((self.std_ > 0) / (self.std_ + EPS)).to(dtype)
        return (part.to(dtype) - self.mean_.to(dtype)) * scale

    def _solve(self, table: "_Table", rows: np.ndarray, grid: list[tuple[float, float]]) -> Tensor:
        """Weights [g d+1 k] of every setting, the bias last, learnt from some rows."""
        if self.solver == "sgd":
            return self._sgd(table, rows, grid)
        return self._lbfgs(table, rows, [l2 for _, l2 in grid])

    def _sgd(self, table: "_Table", rows: np.ndarray, grid: list[tuple[float, float]]) -> Tensor:
        d, g, k = table.width, len(grid), len(self.classes_)
        dtype = float_type(self.dtype)
        size = max(1, min(self.batch_size, len(rows) // 4))
        rates = torch.tensor([lr * size / 256 for lr, _ in grid], dtype=dtype)[:, None]
        decays = torch.tensor([l2 for _, l2 in grid], dtype=dtype)[:, None]
        # The heads lie side by side, [d+1 g k]: a step is one product of [b d+1] with [d+1 gk].
        weights = torch.zeros(d + 1, g, k, dtype=dtype)
        velocity = torch.zeros_like(weights)
        generator = np.random.default_rng(self.seed)
        steps, done = self.epochs * math.ceil(len(rows) / size), 0
        for _ in range(self.epochs):
            order = rows[np.argsort(generator.random(len(rows)))]
            for part, labels in table.batches(_cut(order, size)):
                logits = (part @ weights[:-1].flatten(1) + weights[-1].flatten()).view(-1, g, k)
                slope = logits.softmax(2)
                slope[torch.arange(len(labels)), :, labels] -= 1
                slope = slope.flatten(1) / len(labels)
                velocity *= MOMENTUM
                velocity[:-1] += (part.T @ slope).view(d, g, k) + decays * weights[:-1]
                velocity[-1] += slope.sum(0).view(g, k)
                weights -= rates * (0.5 + 0.5 * math.cos(math.pi * done / steps)) * velocity
                done += 1
        return weights.transpose(0, 1).contiguous()

    def _lbfgs(self, table: "_Table", rows: np.ndarray, penalties: list[float]) -> Tensor:
        """One penalty after the other, the largest first; each begins where the last one ended."""
        d, k, n = table.width, len(self.classes_), len(rows)
        dtype = float_type(self.dtype)
        weights = torch.zeros(d + 1, k, dtype=dtype, requires_grad=True)
        solved = torch.empty(len(penalties), d + 1, k, dtype=dtype)
        for place in np.argsort(penalties)[::-1].tolist():
            solver = torch.optim.LBFGS(
                [weights],
                max_iter=self.iterations,
                tolerance_grad=1e-7,
                tolerance_change=0,
                history_size=10,
                line_search_fn="strong_wolfe",
            )

            def loss(solver: Any = solver, l2: float = penalties[place]) -> Tensor:
                solver.zero_grad()
                total = l2 / (2 * n) * weights[:-1].square().sum()
                total.backward()
                total = total.detach()
                for part, labels in table.batches(_cut(rows, 8192)):
                    logits = part @ weights[:-1] + weights[-1]
                    some = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / n
                    some.backward()
                    total = total + some.detach()
                return total

            solver.step(loss)
            solved[place] = weights.detach()
        return solved


class _Table:
    """Standardised features by rows: made once where they fit into memory, else as they are read.

    Args:
        standard: features to standardised ones.
        x: features [n d].
        numbers: int64 [n], each row's class number.
    """

    def __init__(self, standard: Callable[[Tensor], Tensor], x: Array, numbers: Tensor):
        self.standard, self.x, self.numbers = standard, x, numbers
        self.width = x.shape[1]
        self.whole: Tensor | None = None
        if len(x) * self.width <= HELD:
            self.whole = torch.cat([standard(part) for _, part in blocks(x, None)])

    def batches(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and class numbers of each list of rows, the rows in ascending order."""
        for some in batches:
            rows = np.sort(some)  # a file on a disk is read forwards
            where = torch.from_numpy(rows)
            if self.whole is not None:
                part = self.whole[where]
            elif isinstance(self.x, Tensor):
                part = self.standard(self.x[where].detach().cpu())
            else:
                part = self.standard(torch.from_numpy(self.x[rows]))
            yield part, self.numbers[where]


def _cut(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[i : i + size] for i in range(0, len(rows), size))
