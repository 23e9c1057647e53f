"""The gate: the same pictures through the model in float32 and through what was exported.

What is compared are answers, by the names of the classes and never by their numbers, so a bundle
whose labels stand in another order fails. Two rules: the share of right answers may fall by no more
than ``max_drop`` points; and a graph that claims float32 must give the model's logits, whatever
the accuracy is, because on an untrained model or an easy set a wrong graph can be as right by luck.
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
from vitrail.models.base import ImageClassifier

LOOKED_AT = 16  # pictures whose attention is compared
EXACT = 1e-3  # of the largest logit: how far a float32 graph may be from the model
Logits = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Samples:
    """Pictures that are ready for a model, with what they show.

    Attributes:
        images: uint8 [n h w 3].
        names: n names of classes.
        keys: n names of pictures.
    """

    images: np.ndarray
    names: list[str]
    keys: list[str]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the gate found; see the module's head. Shares are 0..1, sizes bytes.

    Attributes:
        n: pictures.
        reference_top1, exported_top1: share of right answers.
        agreement: share of pictures with the same answer.
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
    """

    n: int
    reference_top1: float
    exported_top1: float
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

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the bundle."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "reasons": list(self.reasons), "passed": self.passed}


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
    images, names, keys = [], [], []
    if len(places):
        for batch in eval_batches(source.subset(places), preprocessing, 64):
            images.append(batch.images.numpy())
            names += [source.classes[label] for label in batch.labels.tolist()]
            keys += batch.keys
    if not names:
        raise Error(f"{source.name}: there is no picture left to check the export on")
    return Samples(np.concatenate(images), names, keys)


def reference_of(model: torch.nn.Module, preprocessing: Preprocessing) -> Logits:
    """A model in float32 as a function of uint8 pictures."""

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(preprocessing.normalize(torch.from_numpy(images))).float().numpy()

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
    answers = _answers(before, labels), _answers(after, theirs)
    truth = np.array(samples.names)
    tops = [float((answer == truth).mean()) for answer in answers]
    agreement = float((answers[0] == answers[1]).mean())
    scale = temperature if exported_temperature is None else exported_temperature
    eces = [
        _calibration_error(logits / t, answer == truth)
        for logits, t, answer in zip((before, after), (temperature, scale), answers, strict=True)
    ]
    reasons = _reasons(tops, max_drop, after, gap, largest, exact)
    if exact and list(labels) != theirs:
        reasons.append("its labels are not the model's, or in another order")
    return Gate(
        n=len(truth),
        reference_top1=tops[0],
        exported_top1=tops[1],
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
    reasons = gate.reasons
    if exact and not gap <= EXACT * largest:
        reasons = (*reasons, f"its attention is up to {gap:.2g} away from the model's")
    return replace(gate, attention_gap=gap, reasons=reasons)


def check_names(samples: Samples, labels: Sequence[str]) -> None:
    """Check that the model knows what the samples show.

    Raises:
        Error: a class that it does not know, with the nearest one named.
    """
    strangers = sorted(set(samples.names) - set(labels))
    if strangers:
        near = did_you_mean(strangers[0], labels) or f"; its own are {listing(list(labels))}"
        raise Error(f"the model does not know the data's class {strangers[0]!r}{near}")


def _reasons(
    tops: list[float], max_drop: float, after: np.ndarray, gap: float, largest: float, exact: bool
) -> list[str]:
    reasons = []
    lost = 100 * (tops[0] - tops[1])
    if lost > max_drop + 1e-9:
        reasons.append(
            f"top-1 falls from {100 * tops[0]:.2f} % to {100 * tops[1]:.2f} %: {lost:.2f} points, "
            f"where {max_drop:g} are allowed"
        )
    if not np.isfinite(after).all():
        reasons.append("some of its logits are not finite numbers")
    elif exact and not gap <= EXACT * max(largest, 1e-6):
        reasons.append(
            f"its logits are up to {gap:.2g} away from the model's, whose largest is "
            f"{largest:.3g}: it does not compute what the model does"
        )
    return reasons


def _answers(logits: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    # A graph with more logits than labels answers with what has no name, which is never right.
    names = [*labels, *(f"\0{place}" for place in range(len(labels), logits.shape[1]))]
    return np.array(names)[logits.argmax(1)]


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


def _calibration_error(logits: np.ndarray, right: np.ndarray) -> float:
    confidence = torch.from_numpy(logits).softmax(1).amax(1)
    return error_of(equal_width(confidence, torch.from_numpy(right)))
