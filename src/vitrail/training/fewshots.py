"""Watching pre-training by few-shot accuracy on other images: the ViT paper's way (section 4.1).

The features of the averaged weights go into a ridge regression in closed form, on a few images a
class of a source that the run never learns; see `evaluation.fewshot`. It reads no labels of the
run itself, so it watches runs without labels as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrail.data.loader import shares
from vitrail.data.sources import Source, Spec, open_splits
from vitrail.evaluation.features import extract
from vitrail.evaluation.fewshot import fewshot, nested_order
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.training.engine import Engine

SHOTS = (5, 10)
SEEDS = 3


@dataclass(frozen=True)
class FewShots:
    """What few-shot accuracy is measured on: the images to learn from, and those to be right on.

    Args:
        shots: images a class, ascending.
        every: steps between two looks; None for as often as at the validation set.
    """

    train: Source
    test: Source
    shots: tuple[int, ...] = SHOTS
    every: int | None = None


def open_few_shots(
    data: Spec, shots: Sequence[int] = SHOTS, every: int | None = None, seed: int = 0
) -> FewShots:
    """Data of their own, not the run's: its train split, and its test split or else val.

    Where there is neither, half of every class is put aside. Of train only as many images are
    kept as three draws can need.

    Raises:
        Error: images of several labels, a class with fewer images than shots, or what `open_splits`
            raises.
    """
    shots = tuple(sorted({*shots}))
    if not shots or shots[0] < 1 or (every is not None and every < 1):
        raise Error("few-shot accuracy takes at least one image a class, every step at most")
    splits = open_splits(data)
    if "test" not in splits and "val" not in splits:
        splits = open_splits(data, val_fraction=0.5, seed=seed)
    if "train" not in splits:
        raise Error(f"{data}: there is no train split to draw the few shots from")
    train, test = splits["train"], splits.get("test", splits.get("val"))
    assert test is not None
    if train.multi_label or test.multi_label:
        raise Error(f"{train.name}: few-shot accuracy is of images with one label each")
    numbers = np.unique(train.labels, return_inverse=True)[1]
    least = int(np.bincount(numbers).min())
    if least < shots[-1]:
        raise Error(
            f"{train.name}: {shots[-1]} shots need so many images of every class, and one has "
            f"{least}: ask for fewer by --fewshot-shots"
        )
    places = [rows[: SEEDS * shots[-1]] for rows in nested_order(numbers, seed)]
    kept = train.subset(np.sort(np.concatenate(places)))
    return FewShots(kept, test.with_classes(train.classes), shots, every)


def few_shot_accuracy(
    model: ImageClassifier, data: FewShots, batch_size: int, workers: int, engine: Engine
) -> dict[str, float]:
    """Mean accuracy over three draws by ``shot_K``, K images a class; by all processes together.

    Raises:
        Error: features that are not finite, or no picture that can be read, in every process.
    """
    parts = [
        _features(model, source, batch_size, workers, engine) for source in (data.train, data.test)
    ]
    (train_x, train_y), (test_x, test_y) = parts
    found = fewshot(train_x, train_y, test_x, test_y, shots=data.shots, seeds=SEEDS)
    return {f"shot_{k}": float(mean) for k, mean in zip(found.shots, found.mean, strict=True)}


def _features(
    model: ImageClassifier, source: Source, batch_size: int, workers: int, engine: Engine
) -> tuple[np.ndarray, np.ndarray]:
    """Of all pictures that can be read: float32 [n d], and labels int64 [n]."""
    mine = np.array(shares(len(source), engine.world)[engine.rank], np.int64)
    found: list[tuple[np.ndarray, np.ndarray] | Error] = []
    if len(mine):
        try:
            one = extract(
                model,
                source.subset(mine),
                cache=False,
                batch_size=max(64, batch_size),
                workers=workers,
            )
            found.append((one.values, one.labels))
        except Error as error:
            found.append(error)
    every = engine.gather(found)
    for one in every:
        if isinstance(one, Error):
            raise one
    good = [one for one in every if not isinstance(one, Error)]
    return np.concatenate([x for x, _ in good]), np.concatenate([y for _, y in good])
