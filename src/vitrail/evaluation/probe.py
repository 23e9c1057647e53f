"""The probe: which model, which resolution and how many labels, before anything is trained.

Features of every picture are extracted once for each model and resolution; everything else is
arithmetic on them: few-shot accuracy, nearest neighbours, a linear probe, a learning curve. What a
full fine-tuning would take is estimated from the measured speed: a training step costs three
forward passes, and each picture is loaded once.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrail.data.sources import Source
from vitrail.evaluation.curve import Curve, learning_curve
from vitrail.evaluation.features import Features, data_digest, extract
from vitrail.evaluation.fewshot import SHOTS, FewShot, check_test_labels, fewshot
from vitrail.evaluation.knn import KNN
from vitrail.evaluation.linear import LinearProbe
from vitrail.kit.errors import Error, listing
from vitrail.metrics.bootstrap import bootstrap_interval, bootstrap_means
from vitrail.models.base import ImageClassifier
from vitrail.models.cost import cost
from vitrail.models.cost.memory import Step, memory

PASSES = 3  # forward passes that a training step costs
NEIGHBOURS = (10, 20, 100, 200)  # DINO's; 20 is the headline
HEADLINE = 20
SOLVED = 2e12  # operations of SGD probes beyond which L-BFGS with one penalty takes their place
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Args:
        shots: images a class; those that the smallest class cannot give are left out, and said so.
        seeds: how many.
        curve: whether to measure the learning curve.
        epochs: of the fine-tuning whose time is estimated.
        train_images: that it would see in an epoch; None: as many as there are features of.
        batch_size: of features, and of the step whose memory is estimated.
        workers: processes that decode.
        cache: as for `features.extract`.
        dtype: of the features that are kept.
    """

    shots: tuple[int, ...] = SHOTS
    seeds: int = 3
    curve: bool = True
    epochs: float = 30
    train_images: int | None = None
    batch_size: int = 64
    workers: int = 0
    cache: Any = True
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Head:
    """Accuracy of one classifier on the features.

    Attributes:
        right: bool [seeds m]: which test image was right under which seed.
        chosen: the settings that it ended with.
    """

    right: np.ndarray
    chosen: Mapping[str, Any]

    @property
    def mean(self) -> float:
        """Accuracy over the seeds, 0..1."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval, over seeds and test images."""
        return bootstrap_interval(self.right if len(self.right) > 1 else self.right[0])

    def to_json(self) -> dict[str, Any]:
        """Mean, deviation over the seeds, interval, each seed, and what was chosen."""
        by_seed = self.right.mean(1)
        low, high = self.interval
        return {
            "mean": self.mean,
            "std": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
            "low": low,
            "high": high,
            "seeds": by_seed.tolist(),
            **self.chosen,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """What the probe found for one model at one resolution.

    Attributes:
        model: what the user called it.
        size: (height, width) in pixels.
        width: numbers in a feature.
        parameters, macs: of the model; macs of one image.
        train_images, test_images: that features were made of.
        fewshot, knn, linear, curve: the measurements; None where the data are too few.
        seconds: all of this row took.
        images_per_second: of the extraction, loading included, when the features were made.
        full_train_seconds, full_train_bytes: of a full fine-tuning, estimated.
        untrained: whether the weights are random.
        notes: what to know.
    """

    model: str
    size: tuple[int, int]
    width: int
    parameters: int
    macs: int
    train_images: int
    test_images: int
    fewshot: FewShot | None
    knn: Head
    linear: Head
    curve: Curve | None
    seconds: float
    images_per_second: float
    full_train_seconds: float
    full_train_bytes: int
    untrained: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model and its resolution in words."""
        return f"{self.model} at {self.pixels}"

    @property
    def pixels(self) -> str:
        """The resolution in words: one number where it is square."""
        height, width = self.size
        return str(height) if height == width else f"{height}x{width}"

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        height, width = self.size
        return {
            "model": self.model,
            "size": height if height == width else [height, width],
            "fewshot": {} if self.fewshot is None else self.fewshot.to_json(),
            "knn": self.knn.mean,
            "linear": self.linear.mean,
            "intervals": {"knn": self.knn.to_json(), "linear": self.linear.to_json()},
            "curve": None if self.curve is None else self.curve.to_json(),
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "full_train_seconds": self.full_train_seconds,
            "full_train_bytes": self.full_train_bytes,
            "parameters": self.parameters,
            "macs": self.macs,
            "width": self.width,
            "train_images": self.train_images,
            "test_images": self.test_images,
            "untrained": self.untrained,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Report:
    """All rows, what is recommended, and what to know."""

    rows: tuple[Row, ...]
    recommendation: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """``rows``, ``recommendation`` and ``notes``: what ``vitrail probe --json`` prints."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "recommendation": self.recommendation,
            "notes": list(self.notes),
        }


@dataclass
class Prober:
    """Probes models on one pair of sources; the pictures' digests are made once.

    Args:
        train, test: the pictures to learn from, and those to measure on.
        settings: what is measured.
        tell: called with (what is being done, done, total); total 0 where it is not known.
    """

    train: Source
    test: Source
    settings: Settings = Settings()
    tell: Tell = lambda what, done, total: None
    _digests: list[str] = field(default_factory=list)

    def __call__(self, name: str, model: ImageClassifier, untrained: bool = False) -> Row:
        """Probe one model at the resolution of its preprocessing.

        Raises:
            Error: no picture that can be read, broken weights, one class only, a class in test
                that is not in train.
        """
        began = time.monotonic()
        if not self._digests:
            self.tell("reading the pictures", 0, 0)
            self._digests = [data_digest(self.train), data_digest(self.test)]
        train, test = (
            self._features(model, source, digest, f"{name}: features of {what}")
            for source, digest, what in zip(
                (self.train, self.test), self._digests, ("train", "test"), strict=True
            )
        )
        arrays = train.values, train.labels, test.values, test.labels
        classes = self.train.classes
        check_test_labels(np.unique(train.labels), test.values, test.labels, classes)
        notes = _notes(train, test)
        self.tell(f"{name}: few-shot", 0, 0)
        few, shot_notes = self._few(train, arrays)
        self.tell(f"{name}: nearest neighbours", 0, 0)
        knn = _knn(*arrays)
        self.tell(f"{name}: linear probe", 0, 0)
        linear = self._linear(*arrays)
        self.tell(f"{name}: learning curve", 0, 0)
        curve, curve_notes = self._curve(train, arrays)
        seconds = (train.seconds + test.seconds) / (len(train.indices) + len(test.indices))
        figures = cost(model)
        return Row(
            model=name,
            size=model.preprocessing.size,
            width=int(train.values.shape[1]),
            parameters=figures.parameters,
            macs=figures.macs,
            train_images=len(train),
            test_images=len(test),
            fewshot=few,
            knn=knn,
            linear=linear,
            curve=curve,
            seconds=time.monotonic() - began,
            images_per_second=1 / seconds,
            full_train_seconds=self._full_train_seconds(train),
            full_train_bytes=training_bytes(model, self.settings.batch_size),
            untrained=untrained,
            notes=(*notes, *shot_notes, *curve_notes),
        )

    def _features(self, model: ImageClassifier, source: Source, digest: str, what: str) -> Features:
        return extract(
            model,
            source,
            dtype=self.settings.dtype,
            cache=self.settings.cache,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            progress=lambda done, total: self.tell(what, done, total),
            data=digest,
        )

    def _few(self, train: Features, arrays: tuple) -> tuple[FewShot | None, list[str]]:
        counts = np.bincount(train.labels)
        counts = counts[counts > 0]
        shots = tuple(shot for shot in self.settings.shots if shot <= counts.min())
        missing = [str(shot) for shot in self.settings.shots if shot not in shots]
        notes = []
        if missing:
            notes = [
                f"no {listing(missing)}-shot accuracy: the smallest class has {counts.min()} images"
            ]
        if not shots:
            return None, notes
        few = fewshot(*arrays, shots=shots, seeds=self.settings.seeds, classes=train.classes)
        return few, notes

    def _linear(self, x: Any, y: Any, test_x: Any, test_y: Any) -> Head:
        """A rate is chosen once, and learnt with it under every seed."""
        classes, seeds = len(np.unique(y)), range(self.settings.seeds)
        first = LinearProbe(epochs=20)
        heads = len(np.atleast_1d(first.lr)) + len(seeds)
        if 4 * x.shape[1] * classes * len(x) * first.epochs * heads > SOLVED:
            probe = LinearProbe("lbfgs", iterations=100).fit(x, y)
            right = np.asarray(probe.predict(test_x)) == test_y
            return Head(right[None], {"solver": "lbfgs", "l2": probe.l2_})
        if np.bincount(y)[np.unique(y)].max() < 2:  # nothing to choose on
            first.lr = 0.01
        first.fit(x, y)
        right = [np.asarray(first.predict(test_x)) == test_y]
        for seed in seeds[1:]:
            again = LinearProbe(lr=first.lr_, epochs=first.epochs, seed=seed).fit(x, y)
            right.append(np.asarray(again.predict(test_x)) == test_y)
        return Head(np.stack(right), {"solver": "sgd", "lr": first.lr_})

    def _curve(self, train: Features, arrays: tuple) -> tuple[Curve | None, list[str]]:
        if not self.settings.curve:
            return None, []
        counts = np.bincount(train.labels)
        fewest = int(counts[counts > 0].min())
        if fewest < 4:
            return None, [
                f"no learning curve: it needs 4 images of every class, and one has {fewest}"
            ]
        seeds = max(3, self.settings.seeds)
        return learning_curve(*arrays, seeds=seeds, classes=train.classes), []

    def _full_train_seconds(self, train: Features) -> float:
        n = len(train.indices) + len(train.skipped)
        forward = train.forward_seconds / n
        loading = max(0.0, train.seconds / n - forward)
        images = self.settings.train_images or len(train)
        return images * self.settings.epochs * (PASSES * forward + loading)


def training_bytes(model: ImageClassifier, batch_size: int) -> int:
    """What a float32 training step with AdamW and an average of the weights needs at its peak."""
    return memory(model, Step(batch_size=batch_size)).peak


def recommend(rows: Sequence[Row]) -> str:
    """One sentence: the cheapest row that is not clearly worse than the best, and what it gives.

    Clearly worse: the 95 % bootstrap interval of the difference in linear accuracy, over the same
    test images, lies below 0.
    """
    trained = [row for row in rows if not row.untrained]
    if not trained:
        return (
            "Nothing can be recommended: random weights say nothing of a model; give published "
            "ones by --weights."
        )
    best = max(trained, key=lambda row: row.linear.mean)
    alike = [row for row in trained if row is best or not _clearly_below(row, best)]
    chosen = min(alike, key=lambda row: (row.full_train_seconds, -row.linear.mean))
    low, high = chosen.linear.interval
    told = f"Take {chosen.name}: {_percent(chosen.linear.mean)} with a linear head "
    told += f"({100 * low:.1f} to {100 * high:.1f})"
    if chosen is not best:
        times = best.full_train_seconds / max(1e-9, chosen.full_train_seconds)
        ahead = 100 * (best.linear.mean - chosen.linear.mean)
        told += (
            f", which {best.name} does not clearly beat (+{ahead:.1f} points at {times:.1f} times "
            "the training cost)"
        )
    elif len(trained) > 1:
        second = max((row for row in trained if row is not best), key=lambda row: row.linear.mean)
        told += f", ahead of {second.name} by {100 * (best.linear.mean - second.linear.mean):.1f}"
    if chosen.curve is not None:
        labels = chosen.curve.forecast.labels
        told += f"; twice the labels ({labels:,}): {gain_in_words(chosen.curve)}"
    return told + "."


def gain_in_words(curve: Curve) -> str:
    """What twice the labels give, in points: ``+1.8 +/- 0.6 points``."""
    ahead = curve.forecast
    return f"+{100 * ahead.gain:.1f} +/- {100 * ahead.margin:.1f} points"


def _clearly_below(row: Row, best: Row) -> bool:
    if row.linear.right.shape[1] != best.linear.right.shape[1]:
        return row.linear.interval[1] < best.linear.interval[0]
    apart = row.linear.right.mean(0) - best.linear.right.mean(0)
    return bool(np.quantile(bootstrap_means(apart), 0.975) < 0)


def _knn(x: Any, y: Any, test_x: Any, test_y: Any) -> Head:
    ks = sorted({min(k, len(x)) for k in NEIGHBOURS})
    predicted = np.asarray(KNN(ks).fit(x, y).predict(test_x))
    right = predicted == test_y
    headline = min(HEADLINE, len(x))
    by_k = {str(k): float(one.mean()) for k, one in zip(ks, right, strict=True)}
    return Head(right[[ks.index(headline)]], {"k": headline, "by_k": by_k})


def _notes(train: Features, test: Features) -> list[str]:
    notes = []
    for what, found in (("train", train), ("test", test)):
        if found.skipped:
            named = listing([f"{key} ({reason})" for key, reason in found.skipped], 3)
            notes.append(f"{len(found.skipped):,} {what} images could not be read: {named}")
    lost = set(np.unique(train.labels).tolist())
    missing = [name for k, name in enumerate(train.classes) if k not in lost]
    if missing:
        notes.append(f"no training image of class {listing(missing)}")
    if len(lost) < 2:
        raise Error("one class only has images that can be read: nothing to tell apart")
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
