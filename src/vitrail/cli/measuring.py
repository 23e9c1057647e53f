"""The work of `vitrail evaluate`: what is opened, what is measured on it, and in which order."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.decode import SUFFIXES, decode
from vitrail.data.examples import read_file
from vitrail.data.folder import SPLITS
from vitrail.data.loader import eval_batches, order
from vitrail.data.sources import Source, missing_split, open_splits
from vitrail.evaluation.accuracy import Accuracy
from vitrail.evaluation.accuracy import evaluate as measure
from vitrail.evaluation.calibration import fit
from vitrail.evaluation.compare import compare
from vitrail.evaluation.findings import Findings, examine
from vitrail.evaluation.label_sets import Sets, any_of, read_label_sets
from vitrail.evaluation.robustness import AtSize, Robustness, at_size, robustness
from vitrail.evaluation.severities import CORRUPTIONS
from vitrail.evaluation.subsets import Among, imagenet_groups, read_class_map
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.weights.folder import load_model
from vitrail.weights.read import description_of
from vitrail.weights.resized import resized
from vitrail.weights.temperature import read_temperature, write_temperature


@dataclass(frozen=True)
class Opened:
    """A model, the view of it that answers in the data's classes, and its temperature."""

    model: ImageClassifier
    view: ImageClassifier
    temperature: float


class Bench:
    """The images to be measured on, and how."""

    def __init__(
        self, images: Source, batch_size: int, workers: int, device: str, class_map: Path | None
    ):
        self.images, self.class_map = images, class_map
        self.batch_size, self.workers, self.device = batch_size, workers, device
        self.notes: list[str] = []  # for the page too
        self.told: list[str] = []  # for stderr, once nothing can fail any more

    def say(self, note: str) -> None:
        """Something to be known before the figures are trusted."""
        if note and note not in self.told:
            self.told.append(note)
            self.notes.append(note[0].upper() + note[1:] + ".")

    def open(self, source: str, name: str | None, which: str) -> Opened:
        """A model that answers in the classes of the images."""
        model = load_model(source, name=name, which=which).to(self.device)
        temperature = read_temperature(source, which)
        return Opened(model, self.view_of(model, temperature), temperature)

    def view_of(self, model: ImageClassifier, temperature: float) -> ImageClassifier:
        """The model, or a view of it in the data's classes."""
        classes = self.images.classes
        if self.class_map is not None:
            groups = read_class_map(self.class_map, classes, model)
            return Among(model, groups, classes, temperature)
        found = imagenet_groups(classes, model)
        if found is None:
            return model
        self.say(found[1])
        return Among(model, found[0], classes)

    def measure(self, opened: Opened, images: Source | None = None, **asked: Any) -> Accuracy:
        """The answers of a model to images, by default those of the bench."""
        images = self.images if images is None else images
        view = opened.view
        batches = eval_batches(images, view.preprocessing, self.batch_size, workers=self.workers)
        return measure(view, batches, images.classes, temperature=opened.temperature, **asked)


def calibrated(
    bench: Bench,
    opened: Opened,
    source: str,
    data: str,
    split: str,
    which: str,
    on: str,
    options: Mapping[str, Any],
) -> Opened:
    """Fit a temperature on held-out images, store it, and go on with it."""
    if opened.view.num_classes < opened.model.num_classes:
        raise Error(
            "a temperature is fitted on all of the model's classes, and these data have only "
            f"{opened.view.num_classes:,} of {opened.model.num_classes:,}"
        )
    images, where = _held_out(bench, source, data, split, on, options)
    asked = {"mistakes": 0, "examples": 0, "keep_logits": True}
    found = bench.measure(replace(opened, temperature=1.0), images, **asked)
    assert found.logits is not None
    fitted = fit(found.logits, found.labels)
    facts = {
        "on": where,
        "n": fitted.n,
        "nll_before": fitted.nll_before,
        "nll_after": fitted.nll_after,
    }
    kind = write_temperature(source, which, fitted.temperature, facts)
    bench.told.append(
        f"temperature {fitted.temperature:.4f} fitted on {fitted.n:,} images of {where}: NLL "
        f"{fitted.nll_before:.4f} before, {fitted.nll_after:.4f} after; stored in {source} for "
        f"its {kind} weights. Bundles and predictions that were made before have the old one: make "
        "them again"
    )
    return replace(opened, temperature=fitted.temperature)


def _held_out(
    bench: Bench, source: str, data: str, split: str, on: str, options: Mapping[str, Any]
) -> tuple[Source, str]:
    """The images to fit a temperature on, and their name."""
    if on.lower() not in SPLITS:
        splits = open_splits(on, least_classes=1, **options)
        return splits.get("val") or splits.get("test") or splits["train"], on
    images, _ = split_to_measure(source, data, on, options)
    same = SPLITS[on.lower()] == SPLITS[split.lower()]
    if same or set(images.keys) <= set(bench.images.keys):
        bench.say(
            "the temperature was fitted on images that are measured here too, so the calibration "
            "after it flatters"
        )
    return images, SPLITS[on.lower()]


@dataclass(frozen=True)
class Asked:
    """What is measured besides the accuracy, opened and checked before anything is measured.

    Attributes:
        sets: label sets, or None.
        at: the model at other sizes.
        corruptions: their names, or None.
        severities: of the corruptions.
        corruption_images: on how many images; None for all.
        ice: photographs for frost.
        seed: of the corruptions and of the choice of images for them.
    """

    sets: Sets | None
    at: dict[int, ImageClassifier]
    corruptions: list[str] | None
    severities: tuple[int, ...]
    corruption_images: int | None
    ice: list[np.ndarray]
    seed: int


def photographs_in(folder: Path) -> list[np.ndarray]:
    """The pictures of a folder, in the order of their names."""
    if not folder.is_dir():
        raise Error(f"{folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise Error(f"{folder}: there are no pictures of ice in it")
    try:
        return [decode(read_file(path)) for path in files]
    except Error as error:
        raise Error(f"{folder}: a picture of ice cannot be read ({error})") from None


def label_sets_for(bench: Bench, opened: Opened, path: Path) -> Sets:
    """The label sets of the bench's images."""
    view = opened.view
    own = view.labels or [str(number) for number in range(view.num_classes)]
    return read_label_sets(path, bench.images.keys, own)


def findings_of(
    bench: Bench, opened: Opened, other: Opened | None, names: tuple[str, str], asked: Asked
) -> Findings:
    """Measure all that was asked for."""
    result = bench.measure(opened, keep_logits=True)
    return examine(
        result,
        bench.images,
        real=None if asked.sets is None else any_of(result, asked.sets),
        robustness=_under_corruptions(bench, opened, result, asked),
        sizes=_swept(bench, opened, asked.at, result),
        comparison=None if other is None else compare(result, bench.measure(other), names),
        notes=bench.notes,
    )


def _under_corruptions(
    bench: Bench, opened: Opened, result: Accuracy, asked: Asked
) -> Robustness | None:
    if asked.corruptions is None:
        return None
    images, most = bench.images, asked.corruption_images
    if most is not None and most < len(images):
        images = images.subset(sorted(order(asked.seed, 0, len(images))[:most].tolist()))
    return robustness(
        opened.view,
        images,
        result,
        asked.corruptions,
        asked.severities,
        seed=asked.seed,
        photographs=asked.ice,
        batch_size=bench.batch_size,
        workers=bench.workers,
        say=lambda line: print(line, file=sys.stderr),
    )


def at_sizes(opened: Opened, sizes: tuple[int, ...]) -> dict[int, ImageClassifier]:
    """The model at every size that was asked for; a size that it cannot have is said at once."""
    return {size: resized(opened.model, size) for size in sorted(set(sizes))}


def _swept(
    bench: Bench, opened: Opened, models: dict[int, ImageClassifier], result: Accuracy
) -> list[AtSize]:
    """The rows of a resolution sweep, the model's own size among them."""
    if not models:
        return []
    own = opened.model.preprocessing.size
    rows = [at_size(opened.model, result, own=True)]
    for size, model in models.items():
        if (size, size) != own:
            view = replace(opened, model=model, view=bench.view_of(model, opened.temperature))
            rows.append(at_size(model, bench.measure(view, mistakes=0, examples=0), own=False))
            print(f"{size} px: top-1 {100 * rows[-1].top1:.2f} %", file=sys.stderr)
    return sorted(rows, key=lambda row: row.size)


def corruption_names(given: tuple[str, ...]) -> list[str]:
    """The corruptions that were named; all of them where none was."""
    return list(CORRUPTIONS) if given in ((), ("all",)) else list(given)


def split_to_measure(
    model: str, data: str, split: str, options: Mapping[str, Any]
) -> tuple[Source, str]:
    """The images to measure a model on, and a note where they are not plainly what was asked.

    ``options`` are `open_splits`'s own.
    """
    wanted = SPLITS.get(split.lower())
    if wanted is None:
        raise Error(f"no split is called {split!r}: it is train, val or test")
    splits = open_splits(data, least_classes=1, **options)
    if wanted not in splits and wanted == "val":
        # The share that training held out is a function of its recorded fraction and seed.
        facts = (description_of(model) or {}).get("data", {})
        fraction, seed = facts.get("val_fraction", 0), facts.get("split_seed", 0)
        splits = open_splits(data, val_fraction=fraction, seed=seed, least_classes=1, **options)
    if wanted not in splits and list(splits) == ["train"] and wanted == "test":
        return splits["train"], (
            f"{data} has no splits: all of its images are measured, also any that the model was "
            "trained on"
        )
    if wanted not in splits:
        raise missing_split(wanted, splits)
    return splits[wanted], ""
