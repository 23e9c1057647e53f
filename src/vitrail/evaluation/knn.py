"""k nearest neighbours by cosine, with DINO's and DINOv2's votes.

Each of the k nearest training images votes for its class with weight exp(similarity / temperature)
(DINO, eval_knn.py), or with the softmax of similarity / temperature over the nearest max(k) images
(DINOv2, eval/knn.py: the same order of classes, on another scale). Several k and temperatures cost
one search.

Only a block of images meets a block of training images at a time, so memory is flat. Of each block
of similarities the k largest are found through the maxima of short runs: the k largest numbers lie
in the k runs with the largest maxima, so only these are looked into. That reads the block once
instead of sorting it.
"""

from collections.abc import Sequence
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
    like,
    numbers_of,
)
from vitrail.kit.errors import Error

VOTES = ("exp", "softmax", "uniform")
QUERIES, ROWS, RUN = 512, 16384, 32  # sides of a block of similarities; the length of a run


class KNN(Estimator):
    """Nearest neighbours by cosine similarity.

    Args:
        k: how many neighbours vote; a sequence gives `scores` and `predict` a leading axis.
        temperature: of the votes; a sequence gives an axis too, after that of k.
        votes: ``exp``, ``softmax`` or ``uniform`` (each neighbour one vote).

    Attributes:
        classes_: [k], sorted.
        x_: float32 or float16 [n d], the training features, each of length 1. (A feature of length
            0 stays 0: it is equally far from all.)
        y_: int64 [n], their class numbers.
    """

    def __init__(
        self,
        k: int | Sequence[int] = 20,
        temperature: float | Sequence[float] = 0.07,
        votes: str = "exp",
    ):
        self.k = k
        self.temperature = temperature
        self.votes = votes

    def fit(self, x: Array, y: Any) -> Self:
        """Keep features [n d] and labels [n]; float16 features are kept as they are.

        Raises:
            Error: shapes that do not go together, NaN, one class only, or more neighbours than
                images.
        """
        check_features(x)
        classes, numbers = check_labels(x, y)
        ks, _ = self._settings()
        if max(ks) > len(x):
            raise Error(f"{max(ks)} neighbours are asked for, of {len(x)} training images")
        small = x.dtype in (np.float16, torch.float16)
        self.x_ = torch.empty(x.shape, dtype=torch.float16 if small else torch.float32)
        for start, part in blocks(x, torch.float32):
            self.x_[start : start + len(part)] = torch.nn.functional.normalize(part, dim=1)
        self.classes_, self.y_, self.n_features_in_ = classes, numbers, x.shape[1]
        return self

    def neighbors(self, x: Array, k: int | None = None) -> tuple[Array, Array]:
        """The nearest training images of each row: similarities and places, [m k] each.

        Nearest first. Of equally near ones any may be left out at the end.

        Args:
            x: features [m d].
            k: how many; None for the largest of the constructor's.
        """
        self._demand_fitted(x)
        k = max(self._settings()[0]) if k is None else k
        if not 1 <= k <= len(self.x_):
            raise Error(f"{k} neighbours are asked for, of {len(self.x_)} training images")
        found = [self._nearest(part, k) for _, part in blocks(x, torch.float32, QUERIES)]
        values, places = (torch.cat(parts) for parts in zip(*found, strict=True))
        return like(values, x), like(places, x)

    def scores(self, x: Array) -> Array:
        """Votes for each class, float32 [m classes], with the axes of k and temperature before."""
        self._demand_fitted(x)
        return like(torch.cat(list(self._scored(x)), -2), x)

    def predict_proba(self, x: Array) -> Array:
        """The votes as shares of all: [m classes], with the axes of k and temperature before."""
        votes = torch.as_tensor(self.scores(x))
        return like(votes / votes.sum(-1, keepdim=True), x)

    def predict(self, x: Array) -> Array:
        """The class with the most votes, [m], with the axes of k and temperature before."""
        self._demand_fitted(x)
        # By blocks: the votes of a million images for 1,000 classes are 4 GB.
        return self._named(torch.cat([s.argmax(-1) for s in self._scored(x)], -1), x)

    def _settings(self) -> tuple[list[int], list[float]]:
        ks, temperatures = numbers_of(self.k), numbers_of(self.temperature)
        if not ks or not all(k >= 1 and k.is_integer() for k in ks):
            raise Error(f"k is a whole number from 1 on, or several, not {self.k!r}")
        if not temperatures or not all(0 < t < np.inf for t in temperatures):
            raise Error(f"temperature is a number above 0, or several, not {self.temperature!r}")
        if self.votes not in VOTES:
            raise Error(f"votes are one of {', '.join(VOTES)}, not {self.votes!r}")
        return [int(k) for k in ks], temperatures

    def _scored(self, x: Array) -> Any:
        ks, temperatures = self._settings()
        for _, part in blocks(x, torch.float32, QUERIES):
            votes = self._votes(*self._nearest(part, max(ks)), ks, temperatures)
            votes = votes[:, 0] if np.ndim(self.temperature) == 0 else votes
            yield votes[0] if np.ndim(self.k) == 0 else votes

    def _votes(
        self, similar: Tensor, places: Tensor, ks: list[int], temperatures: list[float]
    ) -> Tensor:
        """Neighbours [m k] to votes [ks temperatures m classes]."""
        near = self.y_[places]
        votes = torch.zeros(len(ks), len(temperatures), len(similar), len(self.classes_))
        for j, temperature in enumerate(temperatures):
            weights = ((similar - similar[:, :1]) / temperature).exp()
            if self.votes == "exp":
                # At a low temperature this overflows or vanishes, and only the ratios count.
                scale = (similar[:, :1] / temperature).exp()
                weights = weights * torch.where(scale.isfinite() & (scale > 1e-30), scale, 1.0)
            elif self.votes == "softmax":
                weights = weights / weights.sum(1, keepdim=True)
            else:
                weights = torch.ones_like(weights)
            for i, k in enumerate(ks):
                votes[i, j].scatter_add_(1, near[:, :k], weights[:, :k])
        return votes

    def _nearest(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Float32 [m d] to the k largest similarities, in order, and their places: [m k] each."""
        x = torch.nn.functional.normalize(x, dim=1)
        values = torch.empty(len(x), 0)
        places = torch.empty(len(x), 0, dtype=torch.int64)
        room = torch.empty(len(x) * min(ROWS, len(self.x_)))
        for start in range(0, len(self.x_), ROWS):
            rows = self.x_[start : start + ROWS].float()
            similar = room[: len(x) * len(rows)].view(len(x), len(rows))
            some, where = largest(torch.mm(x, rows.T, out=similar), min(k, len(rows)))
            values, places = torch.cat([values, some], 1), torch.cat([places, where + start], 1)
            if values.shape[1] > k:
                values, kept = values.topk(k, sorted=True)
                places = places.gather(1, kept)
        values, order = values.sort(dim=1, descending=True, stable=True)
        return values, places.gather(1, order)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of [m n] and where they are, in no order: `topk`, but faster."""
    n = values.shape[1]
    whole = n // RUN * RUN
    if whole < 4 * k * RUN:
        return values.topk(k, sorted=False)
    runs = values[:, :whole].unflatten(1, (-1, RUN))
    best = runs.amax(-1).topk(k, sorted=False).indices  # [m k]
    inside = runs.gather(1, best[..., None].expand(-1, -1, RUN)).flatten(1)
    where = (best[..., None] * RUN + torch.arange(RUN)).flatten(1)
    if whole < n:
        inside = torch.cat([inside, values[:, whole:]], 1)
        where = torch.cat([where, torch.arange(whole, n).expand(len(values), -1)], 1)
    found, at = inside.topk(k, sorted=False)
    return found, where.gather(1, at)
