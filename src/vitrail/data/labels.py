"""Labels: from what is written in the data (names, numbers, several at once) to class numbers.

One rule for every kind of source (`settle`). Class names are, the first that there is:
    1. those that the user gives (a class map), in their order;
    2. those that the data bring along (`datasets` metadata, a classes.txt beside shards);
    3. "0", "1", ... up to the highest of train, where the kind of data has class numbers (shards,
       parquet) and every label is a whole number;
    4. the names that occur in train, sorted by code point ("10" before "2", "Z" before "a").
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrail.kit.errors import Error, did_you_mean, listing

if TYPE_CHECKING:
    from vitrail.data.examples import Source

MAX_CLASS_FILE = 64 * 2**20  # bytes

Make = Callable[[np.ndarray, Sequence[str]], "Source"]
Classes = Sequence[str] | Mapping[str, int] | str | Path


@dataclass
class Part:
    """One split whose labels are not numbers yet.

    Attributes:
        written: the label of each example as text, or a tuple of labels for each.
        make: from labels (int64 [n], or uint8 [n k]) and class names to the source.
    """

    written: Sequence[str | tuple[str, ...]]
    make: Make


@dataclass
class Parts:
    """What a reader found.

    Attributes:
        name: what the user called the data.
        splits: by name.
        classes: the class names that the data bring along, in order.
        numbers: whether labels that all are whole numbers are class numbers and not names.
        several: whether an example has any number of labels.
    """

    name: str
    splits: dict[str, Part] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    numbers: bool = False
    several: bool = False


def settle(found: Parts, given: Sequence[str] | None = None) -> "dict[str, Source]":
    """Sources with numbers for labels, all splits with the same classes.

    Args:
        found: by a reader.
        given: class names of the user's, in order. Data that name their classes are matched with
            them by name; in data that only have numbers, a number is a place in this list.

    Raises:
        Error: a label that is none of the classes, or a class that train lacks.
    """
    distinct = {
        split: _distinct(part.written, found.several) for split, part in found.splits.items()
    }
    classes = found.classes if found.classes is not None else given
    every = set().union(*distinct.values())
    leading = "train" if "train" in distinct else None
    taught = distinct[leading] if leading else every
    if classes is None and found.numbers and all(map(_is_number, every)):
        classes = [str(k) for k in range(1 + max(map(int, taught), default=-1))]
    if classes is None:
        classes = sorted(taught)
    index = _places(found, classes, every, bool(given) and found.classes is None)
    sources: dict[str, Source] = {}
    for split, part in found.splits.items():
        strangers = sorted(distinct[split] - set(index))
        if strangers and (given or found.classes is not None):
            raise Error(
                f"{found.name}: class {listing(strangers)} is not among the {len(classes)} known "
                f"ones ({listing(list(classes))}){did_you_mean(strangers[0], classes)}"
            )
        if strangers:
            raise Error(
                f"{found.name}: class {listing(strangers)} in {split} is not in train: a model "
                "cannot learn it; rename it, or remove it"
            )
        numbers = _numbers(part.written, index, len(classes), found.several)
        sources[split] = part.make(numbers, tuple(classes))
    if given is not None and found.classes is not None:
        sources = {split: source.with_classes(given) for split, source in sources.items()}
    return sources


def read_classes(classes: Classes) -> tuple[str, ...]:
    """Class names in order, from a list, a mapping of name to number, or a file of either.

    Args:
        classes: names; {name: 0, 1, ...}; or the path of a text file of one name a line, or of a
            JSON file (a list of names, or an object of name to number).

    Raises:
        Error: the file cannot be read, a name occurs twice, or the numbers are not 0, 1, ...
    """
    if isinstance(classes, str | Path):
        path = Path(classes).expanduser()
        return _checked(str(path), _parsed(path, _text_of(path)))
    return _checked("the classes", classes)


def count_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many examples have each class, int64 [k]; labels are int64 [n] or multi-hot [n k]."""
    if labels.ndim == 2:
        return labels.sum(axis=0, dtype=np.int64)
    return np.bincount(labels, minlength=classes)


def _distinct(written: Sequence, several: bool) -> set[str]:
    if several:
        return {name for names in written for name in names}
    return set(written)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _places(
    found: Parts, classes: Sequence[str], every: set[str], named_by_user: bool
) -> dict[str, int]:
    """What is written to class numbers."""
    index = {name: k for k, name in enumerate(classes)}
    if every <= set(index) or not (found.numbers or named_by_user):
        return index
    if not all(map(_is_number, every)):
        return index
    beyond = sorted((int(text) for text in every if int(text) >= len(classes)), reverse=True)
    if beyond and (found.classes is not None or named_by_user):
        raise Error(
            f"{found.name}: a label is {beyond[0]}, but there are {len(classes)} classes, counted "
            f"from 0 ({listing(list(classes))})"
        )
    return {text: int(text) for text in every if int(text) < len(classes)}


def _numbers(written: Sequence, index: dict[str, int], classes: int, several: bool) -> np.ndarray:
    if not several:
        return np.fromiter((index[name] for name in written), np.int64, len(written))
    hot = np.zeros((len(written), classes), np.uint8)
    for row, names in zip(hot, written, strict=True):
        for name in names:
            row[index[name]] = 1
    return hot


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CLASS_FILE:
            raise Error(f"{path}: over {MAX_CLASS_FILE // 2**20} MiB is no list of classes")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Error(f"{path}: not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise Error(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None


def _parsed(path: Path, text: str) -> Iterable[str] | Mapping[str, int]:
    if path.suffix.lower() != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        raise Error(f"{path}: not JSON") from None
    if not isinstance(read, list | dict):
        raise Error(f"{path}: a list of class names, or an object of name to number, is needed")
    return read


def _checked(where: str, classes: Iterable[str] | Mapping[str, int]) -> tuple[str, ...]:
    if isinstance(classes, Mapping):
        numbers = list(classes.values())
        if any(type(k) is not int for k in numbers) or sorted(numbers) != list(range(len(numbers))):
            raise Error(f"{where}: class numbers are 0, 1, ... to {len(numbers) - 1}, each once")
        names = sorted(classes, key=classes.__getitem__)
    else:
        names = list(classes)
    if any(not isinstance(name, str) or not name for name in names):
        raise Error(f"{where}: class names are words, none of them empty")
    if len(set(names)) < len(names):
        double = next(name for k, name in enumerate(names) if name in names[:k])
        raise Error(f"{where}: class {double!r} stands there twice")
    if not names:
        raise Error(f"{where}: there are no class names")
    return tuple(names)
