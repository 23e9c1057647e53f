"""What the estimators on features share: scikit-learn's convention, without scikit-learn.

The constructor stores its keywords and nothing else, `fit` learns and returns the estimator, and
what it learnt ends in an underscore. So `sklearn.base.clone`, `cross_val_predict` and the like take
them. Features may be arrays (memory-mapped ones too) or tensors; answers are of the same kind.
"""

import importlib
import inspect
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vitrail.kit.errors import Error, did_you_mean

ROWS = 8192  # of features that are copied or converted at a time
Array = np.ndarray | Tensor


class Estimator:
    """The base: parameters by name, and accuracy."""

    classes_: np.ndarray
    n_features_in_: int

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's keywords and their values."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self"}

    def set_params(self, **params: Any) -> Self:
        """Change keywords by name.

        Raises:
            Error: a name that the constructor does not have.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                near = did_you_mean(name, known) or f"; it has {', '.join(known)}"
                raise Error(f"{type(self).__name__} has no parameter {name!r}{near}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({given})"

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of a classifier (only it calls this)."""
        theirs: Any = importlib.import_module("sklearn.utils")
        return theirs.Tags(
            estimator_type="classifier",
            target_tags=theirs.TargetTags(required=True),
            classifier_tags=theirs.ClassifierTags(),
            input_tags=theirs.InputTags(),
        )

    def predict(self, x: Array) -> Array:
        """The class of each row."""
        raise NotImplementedError

    def score(self, x: Array, y: Any) -> float:
        """Accuracy, 0..1 (of the one setting: a grid of settings has one accuracy each)."""
        return float(np.mean(np.asarray(self.predict(x)) == np.asarray(y)))

    def _named(self, indices: Tensor, like: Array) -> Array:
        """Class numbers [...] as the classes that `fit` was given."""
        names = self.classes_[indices.numpy()]
        return torch.from_numpy(names) if isinstance(like, Tensor) else names

    def _demand_fitted(self, x: Array) -> None:
        if not hasattr(self, "classes_"):
            raise Error(f"{type(self).__name__} has not been fitted: call fit first")
        check_features(x)
        if x.shape[1] != self.n_features_in_:
            raise Error(f"fitted on features of {self.n_features_in_} numbers, not of {x.shape[1]}")


def check_features(x: Array, what: str = "features") -> None:
    """Check that features are numbers [n d], all finite.

    Raises:
        Error: another shape or type, no rows, or a NaN or infinity, with the first row named.
    """
    if not isinstance(x, np.ndarray | Tensor) or len(x.shape) != 2:
        shape = list(getattr(x, "shape", [])) or type(x).__name__
        raise Error(f"{what} are an array or a tensor [n d], not {shape}")
    if 0 in x.shape:
        raise Error(f"{what} are empty: {list(x.shape)}")
    if isinstance(x, np.ndarray) and x.dtype.kind not in "fiu":
        raise Error(f"{what} are numbers, not {x.dtype}")
    for start, part in blocks(x, None):
        if part.dtype.is_floating_point:
            bad = ~part.isfinite().all(1)
            if bad.any():
                row = start + int(bad.int().argmax())
                raise Error(
                    f"{what} hold a NaN or an infinity (first in row {row}): the model that made "
                    "them is broken, or its precision too low"
                )


def numbers_of(setting: Any) -> list[float]:
    """A setting that is one number or a sequence of them, as a list."""
    return [float(one) for one in np.atleast_1d(np.asarray(setting, float)).tolist()]


def check_labels(x: Array, y: Any, what: str = "labels") -> tuple[np.ndarray, Tensor]:
    """The classes in order, and each row's number among them: (classes [k], int64 [n]).

    Raises:
        Error: another length than the features', or one class only.
    """
    y = np.asarray(y)
    if y.shape != (len(x),):
        raise Error(f"{len(x)} rows of features, but {what} are {list(y.shape)}")
    if y.dtype.kind not in "iubUSO":
        raise Error(f"{what} are whole numbers or names, not {y.dtype}")
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise Error(f"one class only ({classes[0]}), so there is nothing to tell apart")
    return classes, torch.from_numpy(numbers.astype(np.int64))


def blocks(x: Array, dtype: torch.dtype | None, rows: int = ROWS) -> Any:
    """Pieces of features, in order: pairs of the first row and a tensor [rows d] on the CPU.

    With another dtype than the features' own, or from a read-only array, each is a copy.
    """
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(np.array(part) if not part.flags.writeable else part)
        part = part.detach().cpu()
        yield start, part if dtype is None else part.to(dtype)


def like(value: Tensor, x: Array) -> Array:
    """A tensor as the kind that the features are."""
    return value if isinstance(x, Tensor) else value.numpy()


def mean_and_std(x: Array) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of every feature over the rows: float64 [d] each.

    Around the first row, so that a mean far from zero costs no digits, and a feature that is the
    same in every row has a deviation of exactly 0.

    Raises:
        Error: every feature is constant.
    """
    first = next(iter(blocks(x, torch.float64, 1)))[1][0]
    mean, square = torch.zeros_like(first), torch.zeros_like(first)
    for start, part in blocks(x, torch.float64):
        # Chan, Golub and LeVeque's way of adding a block's variance to that of those before.
        variance, middle = torch.var_mean(part - first, 0, correction=0)
        new = start + len(part)
        square += len(part) * variance + (middle - mean) ** 2 * start * len(part) / new
        mean += (middle - mean) * len(part) / new
    mean, std = first + mean, (square / len(x)).sqrt()
    if len(x) > 1 and not std.any():
        raise Error(
            "the features are the same for every image, so they tell nothing apart: the model's "
            "weights are broken, or all pictures are one"
        )
    return mean, std


def float_type(dtype: str) -> torch.dtype:
    """``float32`` or ``float64``.

    Raises:
        Error: another word.
    """
    if dtype not in ("float32", "float64"):
        raise Error(f"dtype is 'float32' or 'float64', not {dtype!r}")
    return getattr(torch, dtype)
