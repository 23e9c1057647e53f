"""The gate: the same pictures through the model in float32 and through what was exported.

What is compared are answers, by the names of the classes and never by their numbers, so a bundle
whose labels stand in another order fails. Two rules: the share of right answers may fall by no more
than ``max_drop`` points; and a graph that claims float32 must give the model's logits, whatever
the accuracy is, because on an untrained model or an easy set a wrong graph can be as right by luck.
Where pictures have several labels, the figure is mean average precision, and an answer is whether a
class is in a picture. When something is refused, `blame` tells which step of the making lost it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from vitrail.data.draws import order
from vitrail.data.examples import Source
from vitrail.data.loader import eval_batches
from vitrail.export.runtime import Runtime, TorchRuntime
from vitrail.kit.errors import Error, did_you_mean, listing
from vitrail.kit.preprocess import Preprocessing
from vitrail.metrics.calibration import equal_width, error_of
from vitrail.metrics.ranking import average_precision
from vitrail.models.base import ImageClassifier

LOOKED_AT = 16  # pictures whose attention is compared
EXACT = 1e-3  # of the largest logit: how far a float32 graph may be from the model
TOP1, MAP = "top-1", "mean average precision"
Logits = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Samples:
    """Pictures that are ready for a model, with what they show.

    Attributes:
        images: uint8 [n h w 3].
        names: n names of classes; empty where pictures have several labels.
        keys: n names of pictures.
        classes: the data's.
        positive: bool [n k], whether a class of these is in a picture, where there may be several;
            else None.
    """

    images: np.ndarray
    names: list[str]
    keys: list[str]
    classes: tuple[str, ...] = ()
    positive: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """What one step of making a bundle did: the figure after it, and how far it moved a logit."""

    name: str
    figure: float
    moved: float


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the gate found; see the module's head. Shares are 0..1, sizes bytes.

    Attributes:
        n: pictures.
        reference_top1, exported_top1: share of right answers; None where pictures have several
            labels.
        reference_map, exported_map: mean average precision, where they have; else None.
        agreement: share of pictures with the same answer; of several labels, of the questions
            whether a class is in a picture.
        max_logit_gap: the largest difference of a logit, absolute.
        max_logit: the largest logit, absolute, to see it by.
        reference_ece, exported_ece: calibration error of the probabilities (15 bins).
        reference_ms, exported_ms: milliseconds a picture, in batches of ``batch_size``; each
            runtime with its own threads, on a machine that may be busy.
        reference_bytes, exported_bytes: of the weights and of the bundle's files.
        max_drop: what was allowed, in points.
        attention_gap: the largest difference of a map of attention, on the first pictures; None
            where there is none.
        reasons: why it is refused; empty when it passed.
        steps: from the model to the bundle, where it was looked at (`blame`).
    """

    n: int
    reference_top1: float | None
    exported_top1: float | None
    reference_map: float | None = None
    exported_map: float | None = None
    agreement: float
    max_logit_gap: float
    max_logit: float
    reference_ece: float
    exported_ece: float
    reference_ms: float
    exported_ms: float
    batch_size: int
    reference_bytes: int
    exported_bytes: int
    max_drop: float
    reasons: tuple[str, ...]
    attention_gap: float | None = None
    steps: tuple[Step, ...] = ()

    @property
    def figures(self) -> tuple[str, float, float]:
        """What is compared (its name, before, after): top-1, or mean average precision."""
        if self.reference_top1 is not None and self.exported_top1 is not None:
            return TOP1, self.reference_top1, self.exported_top1
        assert self.reference_map is not None
        assert self.exported_map is not None
        return MAP, self.reference_map, self.exported_map

    @property
    def lost(self) -> bool:
        """Whether more is lost than was allowed."""
        _, before, after = self.figures
        return _too_much(before, after, self.max_drop)

    def walked(self, steps: Sequence[Step], reason: str | None) -> "Gate":
        """The same with what each step did, and perhaps one more reason."""
        return replace(self, steps=tuple(steps)).because(reason)

    def because(self, reason: str | None) -> "Gate":
        """The same with one more reason."""
        return replace(self, reasons=(*self.reasons, reason)) if reason else self

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the bundle."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        told = {"reasons": list(self.reasons), "passed": self.passed}
        return {**asdict(self), **told, "steps": [asdict(step) for step in self.steps]}


def draw_samples(
    source: Source, preprocessing: Preprocessing, n: int, skip: int = 0, seed: int = 0
) -> Samples:
    """``n`` pictures of a source, drawn evenly over it by a fixed seed; fewer where it has fewer.

    Args:
        skip: how many of the drawn order to leave out, such as those that another step looks at.

    Raises:
        Error: there are none that can be read.
    """
    places = order(seed, 0, len(source))[skip : skip + n]
    images, labels, keys = [], [], []
    if len(places):
        for batch in eval_batches(source.subset(places), preprocessing, 64):
            images.append(batch.images.numpy())
            labels.append(batch.labels.numpy())
            keys += batch.keys
    if not keys:
        raise Error(f"{source.name}: there is no picture left to check the export on")
    shown, truth = np.concatenate(images), np.concatenate(labels)
    if not source.multi_label:
        names = [source.classes[label] for label in truth.tolist()]
        return Samples(shown, names, keys, source.classes)
    if not truth.any():
        raise Error(f"{source.name}: none of the {len(keys)} pictures drawn has a label")
    return Samples(shown, [], keys, source.classes, truth.astype(bool))


def reference_of(model: torch.nn.Module, preprocessing: Preprocessing) -> Logits:
    """A model in float32 as a function of uint8 pictures."""

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(preprocessing.normalize(torch.from_numpy(images))).float().numpy()

    return logits


def folded_of(folded: torch.nn.Module) -> Logits:
    """A folded model as a function of uint8 pictures."""

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return folded(torch.from_numpy(images)).float().numpy()

    return logits


def compare(
    samples: Samples,
    reference: Logits,
    exported: Logits,
    *,
    labels: Sequence[str],
    exported_labels: Sequence[str] | None = None,
    temperature: float = 1.0,
    exported_temperature: float | None = None,
    exported_images: np.ndarray | None = None,
    exact: bool,
    max_drop: float = 0.5,
    batch_size: int = 16,
    sizes: tuple[int, int] = (0, 0),
) -> Gate:
    """Run both over the samples and judge; see the module's head.

    Args:
        reference, exported: uint8 [b h w 3] to logits [b k].
        labels, exported_labels: of each, in the order of its logits.
        exported_images: what the export sees, where its resize and crop are others.
        exact: whether the export claims to compute what the model does.
        max_drop: points of top-1 that may be lost.
        sizes: bytes of each, to be told.

    Raises:
        Error: samples of classes that the model does not know.
    """
    check_names(samples, labels)
    theirs = list(labels if exported_labels is None else exported_labels)
    before, before_ms = _run(reference, samples.images, batch_size)
    after, after_ms = _run(
        exported, samples.images if exported_images is None else exported_images, batch_size
    )
    same_shape = before.shape == after.shape
    gap = float(np.abs(before - after).max()) if same_shape else float("inf")
    largest = float(np.abs(before).max())
    scale = temperature if exported_temperature is None else exported_temperature
    views = [_view(samples, before, labels), _view(samples, after, theirs)]
    tops = [view.figure for view in views]
    agreement = float((views[0].answers == views[1].answers).mean())
    eces = [view.calibration_error(t) for view, t in zip(views, (temperature, scale), strict=True)]
    several = samples.positive is not None
    named = MAP if several else TOP1
    reasons = _reasons(named, tops, max_drop, after, gap, largest, exact)
    if exact and list(labels) != theirs:
        reasons.append("its labels are not the model's, or in another order")
    return Gate(
        n=len(samples.keys),
        reference_top1=None if several else tops[0],
        exported_top1=None if several else tops[1],
        reference_map=tops[0] if several else None,
        exported_map=tops[1] if several else None,
        agreement=agreement,
        max_logit_gap=gap if np.isfinite(gap) else -1.0,
        max_logit=largest,
        reference_ece=eces[0],
        exported_ece=eces[1],
        reference_ms=round(before_ms, 4),
        exported_ms=round(after_ms, 4),
        batch_size=batch_size,
        reference_bytes=sizes[0],
        exported_bytes=sizes[1],
        max_drop=max_drop,
        reasons=tuple(reasons),
    )


def with_attention(
    gate: Gate, images: np.ndarray, model: ImageClassifier, exported: Runtime, exact: bool
) -> Gate:
    """The gate's finding with what became of the map of attention, on a few of the pictures.

    Args:
        images: uint8 [n h w 3].
        exact: as for `compare`.
    """
    shown = images[:LOOKED_AT]
    _, expected = TorchRuntime(model, next(model.parameters()).device).with_attention(shown)
    _, got = exported.with_attention(shown)
    gap, largest = float(np.abs(got - expected).max()), float(expected.max())
    other = exact and not gap <= EXACT * largest
    reason = f"its attention is up to {gap:.2g} away from the model's" if other else None
    return replace(gate, attention_gap=gap).because(reason)


def check_kind(source: Source, several: bool) -> None:
    """Check that a model and data both have several labels a picture, or both one.

    Raises:
        Error: one has, and the other has not.
    """
    if source.multi_label and not several:
        raise Error(f"{source.name} has several labels a picture, and the model gives one")
    if several and not source.multi_label:
        raise Error(
            f"the model gives a picture several labels, and {source.name} has one each: check it "
            "on pictures with several"
        )


def check_names(samples: Samples, labels: Sequence[str]) -> None:
    """Check that the model knows what the samples show.

    Raises:
        Error: a class that it does not know, with the nearest one named.
    """
    shown = set(samples.names)
    if samples.positive is not None:
        shown = {samples.classes[place] for place in np.flatnonzero(samples.positive.any(0))}
    strangers = sorted(shown - set(labels))
    if strangers:
        near = did_you_mean(strangers[0], labels) or f"; its own are {listing(list(labels))}"
        raise Error(f"the model does not know the data's class {strangers[0]!r}{near}")


def measured(samples: Samples, logits: Logits, labels: Sequence[str]) -> tuple[np.ndarray, float]:
    """Logits float64 [n k] of samples, and the figure that they are worth."""
    rows, _ = _run(logits, samples.images, 16)
    return rows, _view(samples, rows, labels).figure


def _too_much(before: float, after: float, max_drop: float) -> bool:
    return 100 * (before - after) > max_drop + 1e-9


def _reasons(
    named: str,
    tops: list[float],
    max_drop: float,
    after: np.ndarray,
    gap: float,
    largest: float,
    exact: bool,
) -> list[str]:
    reasons = []
    first, left = tops
    if _too_much(first, left, max_drop):
        reasons.append(
            f"{named} falls from {100 * first:.2f} % to {100 * left:.2f} %: "
            f"{100 * (first - left):.2f} points, where {max_drop:g} are allowed"
        )
    if not np.isfinite(after).all():
        reasons.append("some of its logits are not finite numbers")
    elif exact and not gap <= EXACT * max(largest, 1e-6):
        reasons.append(
            f"its logits are up to {gap:.2g} away from the model's, whose largest is "
            f"{largest:.3g}: it does not compute what the model does"
        )
    return reasons


@dataclass(frozen=True)
class _View:
    """Logits of samples, and what they are worth."""

    logits: np.ndarray
    answers: np.ndarray
    right: np.ndarray
    figure: float
    several: bool

    def calibration_error(self, temperature: float) -> float:
        scaled = torch.from_numpy(self.logits) / temperature
        if self.several:  # the surer of yes and no, of every question
            chances = scaled.sigmoid()
            confidence = torch.maximum(chances, 1 - chances).flatten()
        else:
            confidence = scaled.softmax(1).amax(1)
        return error_of(equal_width(confidence, torch.from_numpy(self.right.flatten())))


def _view(samples: Samples, logits: np.ndarray, labels: Sequence[str]) -> _View:
    if samples.positive is not None:
        return _several(samples.positive, samples.classes, logits, labels)
    # A graph with more logits than labels answers with what has no name, which is never right.
    names = [*labels, *(f"\0{place}" for place in range(len(labels), logits.shape[1]))]
    answers = np.array(names)[logits.argmax(1)]
    right = answers == np.array(samples.names)
    return _View(logits, answers, right, float(right.mean()), False)


def _several(
    positive: np.ndarray, classes: Sequence[str], logits: np.ndarray, labels: Sequence[str]
) -> _View:
    """Each class that some picture has is a ranking of all, and a question to each of them."""
    asked = np.flatnonzero(positive.any(0)).tolist()
    scores = np.full((len(positive), len(asked)), -np.inf)  # of what nobody answers
    for column, place in enumerate(asked):
        if classes[place] in labels:
            scores[:, column] = logits[:, list(labels).index(classes[place])]
    truth = positive[:, asked]
    precisions = [average_precision(row, true) for row, true in zip(scores.T, truth.T, strict=True)]
    answers = scores > 0
    return _View(scores, answers, answers == truth, float(np.mean(precisions)), True)


def _run(logits: Logits, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, float]:
    """Logits float64 [n k], and milliseconds a picture without the first batch."""
    rows = [logits(images[:batch_size])]
    start, done = time.perf_counter(), 0
    for begin in range(batch_size, len(images), batch_size):
        part = images[begin : begin + batch_size]
        rows.append(logits(part))
        done += len(part)
    if not done:  # one batch only: once more, now that everything is warm
        logits(images[:batch_size])
        done = min(batch_size, len(images))
    taken = 1000 * (time.perf_counter() - start) / done
    return np.concatenate(rows).astype(np.float64), taken
