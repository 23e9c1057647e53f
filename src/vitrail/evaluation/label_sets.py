"""Images with several right answers: ReaL's label sets (Beyer et al. 2020) and any others.

An answer counts as right if it is in the image's set; images whose set is empty (nobody could say
what they show) are left out. Two files are read: ReaL's own `real.json`, a list of lists of class
numbers in the order of the validation files' names, and JSON lines of ``{"key", "labels"}``.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitrail.evaluation.accuracy import Accuracy
from vitrail.kit.errors import Error, did_you_mean, listing
from vitrail.metrics.bootstrap import bootstrap_interval

Sets = dict[str, frozenset[int]]


@dataclass(frozen=True)
class AnyOf:
    """Accuracy by label sets.

    Attributes:
        top1: share of images whose answer is in their set, 0..1.
        low, high: 95 %, bootstrap over images.
        n: images counted.
        left_out: images whose set is empty.
    """

    top1: float
    low: float
    high: float
    n: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def any_of(result: Accuracy, sets: Sets) -> AnyOf:
    """Score the answers of an evaluation by label sets.

    Args:
        result: of the images that the sets are for.
        sets: as `read_label_sets` gives them.

    Raises:
        Error: every set is empty.
    """
    answers = zip(result.keys, result.predictions.tolist(), strict=True)
    right = [answer in sets[key] for key, answer in answers if sets[key]]
    if not right:
        raise Error("every image's label set is empty, so there is nothing to measure")
    values = torch.tensor(right, dtype=torch.float64)
    low, high = bootstrap_interval(values.numpy())
    return AnyOf(float(values.mean()), low, high, len(right), len(result.keys) - len(right))


def read_label_sets(path: Path | str, keys: Sequence[str], classes: Sequence[str]) -> Sets:
    """The label sets of a source's images.

    Args:
        path: ``real.json``, or JSON lines of ``{"key" or "path", "labels": [...]}``. Labels are
            class names or class numbers of the model.
        keys: of all images of the source. A list without keys is in the order of their file
            names without folders (`ILSVRC2012_val_00000001.JPEG` first).
        classes: the model's class names.

    Raises:
        Error: no such file, not of these forms, another number of images, an image that is
            missing or unknown, or a label that is no class of the model.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise Error(f"{path}: not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise Error(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    raw = _in_order(path, text, keys) if text.lstrip()[:1] == "[" else _by_key(path, text, keys)
    numbers = {name: number for number, name in enumerate(classes)}
    return {
        key: frozenset(_number(label, numbers, f"{path}: image {key}") for label in labels)
        for key, labels in raw.items()
    }


def _in_order(path: Path, text: str, keys: Sequence[str]) -> dict[str, list[Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise Error(f"{path}: not a JSON file ({error})") from None
    if not all(isinstance(row, list) for row in rows):
        raise Error(f"{path}: a list of label sets is a list of lists, one for each image")
    if len(rows) != len(keys):
        raise Error(
            f"{path} has label sets for {len(rows):,} images, and the data have {len(keys):,}: "
            "it must be the file of these very images"
        )
    names = [Path(key).name for key in keys]
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise Error(
            f"{path} lists label sets in the order of file names, but {listing(double, 2)} is the "
            "name of several images: write JSON lines of key and labels instead"
        )
    order = sorted(range(len(keys)), key=names.__getitem__)
    return {keys[i]: row for i, row in zip(order, rows, strict=True)}


def _by_key(path: Path, text: str, keys: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise Error(f"{path}: line {number}: not a JSON object") from None
        key = row.get("key", row.get("path")) if isinstance(row, dict) else None
        if not isinstance(key, str) or not isinstance(row.get("labels"), list):
            raise Error(f'{path}: line {number}: a line is {{"key": image, "labels": [...]}}')
        if key in found:
            raise Error(f"{path}: line {number}: {key} has a label set already")
        found[key] = row["labels"]
    known = set(keys)
    missing, unknown = [key for key in keys if key not in found], sorted(set(found) - known)
    if missing:
        near = did_you_mean(missing[0], unknown)
        raise Error(
            f"{path} has no label set for {len(missing):,} of the data's {len(keys):,} images: "
            f"{listing(missing, 3)}{near}"
        )
    if unknown:
        raise Error(
            f"{path} has label sets for {len(unknown):,} images that are not in the data: "
            f"{listing(unknown, 3)}"
        )
    return found


def _number(label: Any, numbers: dict[str, int], where: str) -> int:
    if isinstance(label, str) and label in numbers:
        return numbers[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(numbers):
        return label
    raise Error(
        f"{where} has the label {label!r}, which is neither one of the model's class names nor a "
        f"number from 0 to {len(numbers) - 1}"
    )
