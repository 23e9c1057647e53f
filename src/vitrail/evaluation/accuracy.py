"""Accuracy of a model on labelled images, with the mistakes kept for looking at.

Labels are matched by name, never by position: a folder whose classes sort in another order than
the model's would else be scored at chance without a word. A picture that cannot be read is not
an image of the test: it is left out of n, counted and named.
"""

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrail.data.loader import Batch
from vitrail.kit.errors import Error, did_you_mean, listing
from vitrail.metrics.accuracy import confusion, per_class, top_k
from vitrail.models.base import ImageClassifier


@dataclass(frozen=True)
class ClassAccuracy:
    """How one class fares; see `metrics.accuracy.per_class` for classes without images."""

    label: str
    n: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Answer:
    """One image and what the model makes of it: both labels, and how sure the model is.

    `picture` is uint8 [h w c], as the model saw it.
    """

    key: str
    label: str
    prediction: str
    probability: float
    picture: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Accuracy:
    """What `evaluate` found. Accuracies are fractions 0..1.

    Attributes:
        top1, top5: share of images whose class is the first, or among the first five; with fewer
            than five classes top5 is among the first min(5, k), which is all of them.
        loss: mean cross-entropy, in nats, of the logits as they are (without a temperature).
        n: images counted.
        classes: the model's class names, in the order of the logits.
        per_class: one entry a class.
        confusion: int64 [k k], row = true class, column = predicted class.
        keys, labels, predictions: of each image in the order of the data, the latter two int64 [n].
        probabilities: float32 [n], of each image's predicted class, after the temperature.
        skipped: (key, reason) of the images that could not be read.
        worst: the most confident mistakes, most confident first; ask `mistakes`.
        examples: the first images of each class, in the order of the data.
        top5_right: whether each image's class is among its first five, bool [n].
        indices: of each image in the source, int64 [n].
        brightness: the mean of each picture as the model saw it, 0..1, float32 [n].
        temperature: what the logits were divided by before they became probabilities.
        logits: float32 [n k] before the temperature, where `evaluate` was asked to keep them.
    """

    top1: float
    top5: float
    loss: float
    n: int
    classes: tuple[str, ...]
    per_class: tuple[ClassAccuracy, ...]
    confusion: Tensor
    keys: tuple[str, ...]
    labels: Tensor
    predictions: Tensor
    probabilities: Tensor
    skipped: tuple[tuple[str, str], ...]
    worst: tuple[Answer, ...]
    examples: tuple[Answer, ...]
    top5_right: Tensor
    indices: Tensor
    brightness: Tensor
    temperature: float = 1.0
    logits: Tensor | None = None

    def mistakes(self, most: int = 24) -> list[Answer]:
        """The most confident mistakes, at most as many as `evaluate` was asked to keep."""
        return list(self.worst[:most])

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values: what ``vitrail evaluate --json`` prints."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "n": self.n,
            "classes": list(self.classes),
            "per_class": [dict(vars(entry)) for entry in self.per_class],
            "confusion": self.confusion.tolist(),
            "skipped": [{"key": key, "reason": reason} for key, reason in self.skipped],
        }


def align(classes: Sequence[str], labels: Sequence[str]) -> Tensor:
    """Where each class of the data stands among the model's: int64 [classes], to index by label.

    The data may have the model's classes in any order, or some of them.

    Args:
        classes: the data's class names.
        labels: the model's class names, in the order of its logits.

    Raises:
        Error: a class that the model does not know, or a name that stands for several of its own.
    """
    if list(classes) == list(labels):
        return torch.arange(len(classes))
    count = Counter(labels)
    unknown = [name for name in classes if not count[name]]
    if unknown:
        near = did_you_mean(unknown[0], labels)
        raise Error(
            f"the model does not know {len(unknown)} of the data's {len(classes)} classes: "
            f"{listing([repr(name) for name in unknown])}{near or _its_classes(labels)}"
        )
    double = [name for name in classes if count[name] > 1]
    if double:
        raise Error(
            f"{double[0]!r} is the name of several of the model's classes, so the data's images "
            "of it cannot be told apart: give those classes names of their own"
        )
    places = {name: place for place, name in enumerate(labels)}
    return torch.tensor([places[name] for name in classes])


def evaluate(
    model: ImageClassifier,
    batches: Iterable[Batch],
    classes: Sequence[str] | None = None,
    mistakes: int = 24,
    examples: int = 12,
    temperature: float = 1.0,
    keep_logits: bool = False,
) -> Accuracy:
    """Classify every image once, in evaluation mode, on the device where the model is.

    Args:
        model: left in the mode that it was in.
        batches: of one pass over the data, each image once.
        classes: the data's class names, which are matched with the model's as `align` does. None,
            or a model without labels, takes the data's class numbers for the model's.
        mistakes: of how many of the most confident mistakes to keep the pictures.
        examples: of at most how many images to keep the pictures besides, the first of each
            class and equally many of each.
        temperature: what logits are divided by before they become probabilities; no answer and
            no loss changes with it.
        keep_logits: whether the result shall hold all logits, 4 n k bytes.

    Raises:
        Error: classes that the model does not know, no image that could be read, a class number
            that the model does not have, or logits that are not finite.
    """
    if not model.num_classes:
        raise Error("the model is an encoder without a head: fine-tune from it first")
    tally = _Tally(model, classes, mistakes, examples, temperature, keep_logits)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                tally.add(batch)
    finally:
        model.train(was_training)
    return tally.result()


def finite_logits(model: ImageClassifier, batch: Batch) -> Tensor:
    """A batch's logits, float64 [b k] on the CPU: sums must not depend on the images' order.

    Raises:
        Error: a logit that is not finite; the message names the image.
    """
    weight = next(model.parameters())
    images = model.preprocessing.normalize(batch.images.to(weight.device))
    logits = model(images.to(weight.dtype)).double().cpu()
    bad = ~logits.isfinite().all(1)
    if bad.any():
        raise Error(
            f"the model's answer for {batch.keys[int(bad.int().argmax())]} is not a finite "
            "number: its weights are broken, or the run that made them diverged"
        )
    return logits


def merged(parts: Sequence[Accuracy]) -> Accuracy:
    """One result of several that share out the images of a source between them, in its order.

    Raises:
        Error: no part.
    """
    if not parts:
        raise Error("there is no image to evaluate on")
    if len(parts) == 1:
        return parts[0]
    n = sum(part.n for part in parts)
    confusion = torch.stack([part.confusion for part in parts]).sum(0)
    figures = zip(*(figure.tolist() for figure in per_class(confusion)), strict=True)
    worst = sorted((w for part in parts for w in part.worst), key=lambda w: -w.probability)
    most = Counter[str]()
    for part in parts:
        most |= Counter(example.label for example in part.examples)
    examples: list[Answer] = []
    for example in (e for part in parts for e in part.examples):
        if sum(e.label == example.label for e in examples) < most[example.label]:
            examples.append(example)
    changed: dict[str, Any] = {
        "n": n,
        "confusion": confusion,
        "per_class": tuple(
            ClassAccuracy(name, *figure)
            for name, figure in zip(parts[0].classes, figures, strict=True)
        ),
        "worst": tuple(worst[: max(len(part.worst) for part in parts)]),
        "examples": tuple(examples[: max(len(part.examples) for part in parts)]),
    }
    for mean in ("top1", "top5", "loss"):
        changed[mean] = sum(getattr(part, mean) * part.n for part in parts) / n
    for name in (f.name for f in dataclasses.fields(Accuracy) if f.name not in changed):
        values = [getattr(part, name) for part in parts]
        if name in ("keys", "skipped"):
            changed[name] = tuple(item for value in values for item in value)
        elif isinstance(values[0], Tensor):  # one row an image
            changed[name] = torch.cat(values)
    return dataclasses.replace(parts[0], **changed)


class _Tally:
    """The counts of an evaluation under way."""

    def __init__(
        self,
        model: ImageClassifier,
        classes: Sequence[str] | None,
        mistakes: int,
        examples: int,
        temperature: float,
        keep_logits: bool,
    ):
        self.model = model
        self.places = align(classes, model.labels) if classes and model.labels else None
        self.names = _names(model, classes)
        self.most_mistakes, self.most_examples = mistakes, examples
        self.temperature, self.keep_logits = temperature, keep_logits
        self.of_a_class = max(1, examples // max(1, len(classes or self.names)))
        self.worst: list[tuple[float, int, Answer]] = []  # a heap, the least confident on top
        self.examples: list[Answer] = []
        self.examples_of = Counter[int]()
        self.keys: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self.labels: list[Tensor] = []
        self.predictions: list[Tensor] = []
        self.probabilities: list[Tensor] = []
        self.top5: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.brightness: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.loss = 0.0

    def add(self, batch: Batch) -> None:
        self.skipped += [(key, reason) for key, reason in batch.skipped]
        if not len(batch.keys):
            return
        labels = batch.labels if self.places is None else self.places[batch.labels]
        if int(labels.max()) >= self.model.num_classes:
            raise Error(
                f"{batch.keys[int(labels.argmax())]} is of class number {int(labels.max())}, but "
                f"the model has {self.model.num_classes} classes, counted from 0"
            )
        logits = finite_logits(self.model, batch)
        prediction = logits.argmax(1)
        probability = (logits / self.temperature).softmax(1).amax(1)
        self.loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        self.top5.append(top_k(logits, labels, 5))
        self.indices.append(batch.indices)
        values = batch.images.flatten(1)
        light = values.sum(1, dtype=torch.int64).cpu() / (255 * values.shape[1])
        self.brightness.append(light.float())
        if self.keep_logits:
            self.logits.append(logits.float())
        self._keep(batch, labels, prediction, probability)
        self.keys += batch.keys
        self.labels.append(labels)
        self.predictions.append(prediction)
        self.probabilities.append(probability.float())

    def _keep(
        self, batch: Batch, labels: Tensor, predictions: Tensor, probabilities: Tensor
    ) -> None:
        """Keep the pictures that somebody may want to look at."""

        def answer(i: int) -> Answer:
            names = self.names[int(labels[i])], self.names[int(predictions[i])]
            picture = batch.images[i].cpu().numpy().copy()
            return Answer(batch.keys[i], *names, float(probabilities[i]), picture)

        for i, label in enumerate(labels.tolist()):
            if len(self.examples) == self.most_examples:
                break
            if self.examples_of[label] < self.of_a_class:
                self.examples_of[label] += 1
                self.examples.append(answer(i))
        for i in torch.nonzero(predictions != labels)[:, 0].tolist():
            order = (float(probabilities[i]), -len(self.keys) - i)  # of equals the first seen
            if len(self.worst) < self.most_mistakes:
                heapq.heappush(self.worst, (*order, answer(i)))
            elif self.worst and order > self.worst[0][:2]:
                heapq.heapreplace(self.worst, (*order, answer(i)))

    def result(self) -> Accuracy:
        n = len(self.keys)
        if not n:
            why = f": {self.skipped[0][0]} {self.skipped[0][1]}" if self.skipped else ""
            raise Error(f"there is no image to evaluate on; {len(self.skipped)} were skipped{why}")
        labels, predictions = torch.cat(self.labels), torch.cat(self.predictions)
        counts = confusion(labels, predictions, self.model.num_classes)
        figures = zip(*(figure.tolist() for figure in per_class(counts)), strict=True)
        return Accuracy(
            top1=float((predictions == labels).double().mean()),
            top5=float(torch.cat(self.top5).double().mean()),
            loss=self.loss / n,
            n=n,
            classes=tuple(self.names),
            per_class=tuple(
                ClassAccuracy(name, *figure)
                for name, figure in zip(self.names, figures, strict=True)
            ),
            confusion=counts,
            keys=tuple(self.keys),
            labels=labels,
            predictions=predictions,
            probabilities=torch.cat(self.probabilities),
            skipped=tuple(self.skipped),
            worst=tuple(answer for *_, answer in sorted(self.worst, key=lambda w: w[:2])[::-1]),
            examples=tuple(self.examples),
            top5_right=torch.cat(self.top5),
            indices=torch.cat(self.indices),
            brightness=torch.cat(self.brightness),
            temperature=self.temperature,
            logits=torch.cat(self.logits) if self.keep_logits else None,
        )


def _names(model: ImageClassifier, classes: Sequence[str] | None) -> list[str]:
    if model.labels:
        return list(model.labels)
    if classes is not None and len(classes) == model.num_classes:
        return list(classes)
    return [str(i) for i in range(model.num_classes)]


def _its_classes(labels: Sequence[str]) -> str:
    return f"; its own are {listing([repr(name) for name in labels])}"
