"""A study's data: opened once, decoded once, cut the same way for every run.

Small pictures of one size are decoded once and kept as one array, so that a run of seconds does not
begin with decoding again. Validation is held out before any subset is drawn: it is the same for
every run, and no subset holds any of it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.data.decode import decode
from vitrail.data.sources import ArraySource, Source, Spec, hold_out, open_splits
from vitrail.kit.errors import Error
from vitrail.studies.subsets import subset_rows

MOST_BYTES = 2 * 2**30  # of decoded pictures kept in memory, of one split
SPLIT_SEED = 0


@dataclass
class StudyData:
    """What a study's runs learn from and are measured on.

    Args:
        train: validation apart.
        val: held out, or the data's own.
        test: the data's own, or None.
        identity: what tells the data from others, plain JSON values.
    """

    train: Source
    val: Source | None
    test: Source | None
    identity: Mapping[str, Any]

    @property
    def side(self) -> int | None:
        """The shorter side of the first picture, in pixels."""
        first = self.train.image(0)
        picture = decode(first) if isinstance(first, bytes) else first
        return min(picture.shape[:2])

    def subset(self, images: int | None, seed: int, rest: bool = False) -> Source:
        """The training pictures of a run: a subset, or with ``rest`` all that it does not hold.

        Raises:
            Error: what `subset_rows` raises, or the rest of all pictures.
        """
        if images is None or images == len(self.train):
            if rest:
                raise Error("a run learns from the pictures outside of a subset that holds all")
            return self.train
        rows = subset_rows(self.train, images, seed)
        if rest:
            rows = np.setdiff1d(np.arange(len(self.train)), rows)
        return self.train.subset(rows)

    def images_of(self, images: int | None, rest: bool = False) -> int:
        """How many pictures a run learns from, as of `subset`."""
        whole = len(self.train)
        return whole - (images or whole) if rest else images or whole

    def decoded(self, largest: int | None, seeds: Sequence[int]) -> "StudyData":
        """The same with the pictures in memory, where they are small and of one size.

        Args:
            largest: the most training pictures of any run; None for all.
            seeds: of the subsets.
        """
        rows = np.arange(len(self.train))
        if largest is not None and largest < len(self.train):
            rows = np.unique(np.concatenate([subset_rows(self.train, largest, s) for s in seeds]))
        return StudyData(
            in_memory(self.train, rows),
            None if self.val is None else in_memory(self.val),
            None if self.test is None else in_memory(self.test),
            self.identity,
        )


def open_data(data: Spec, held_out: float, most_test: int | None, **columns: Any) -> StudyData:
    """Open the data of a study.

    Args:
        held_out: see `Definition`; 0 for no validation.
        most_test: see `Definition`.
        columns: as of `open_splits`.

    Raises:
        Error: what `open_splits` raises, no train split, several labels a picture, or no test
            picture left.
    """
    if most_test is not None and most_test < 1:
        raise Error(f"--most-test is at least 1 picture, not {most_test}")
    splits = open_splits(data, **columns)
    if "train" not in splits:
        raise Error(f"{data}: there is no train split, only {' and '.join(splits)}")
    if splits["train"].multi_label:
        raise Error(f"{data}: a study takes data with one label a picture")
    whole = {name: _digest(source) for name, source in splits.items()}
    identity = {
        "classes": len(splits["train"].classes),
        "splits": {name: len(source) for name, source in splits.items()},
        "sha256": hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest(),
    }
    if "test" not in splits and "val" in splits:  # one of them is needed to compare by
        splits["test"] = splits.pop("val")
    if held_out:
        splits = hold_out(splits, held_out, SPLIT_SEED)
    test = splits.get("test")
    if test is not None and most_test is not None and most_test < len(test):
        places = np.linspace(0, len(test) - 1, most_test).round().astype(np.int64)
        test = test.subset(places)
    return StudyData(splits["train"], splits.get("val"), test, identity)


def in_memory(source: Source, rows: np.ndarray | None = None) -> Source:
    """A source whose pictures are one array, if they are small, all of one size, and readable.

    Args:
        rows: only these are decoded; asking for others afterwards is an error of ours. The source
            stays as long as it was, so that subsets stay the same.
    """
    rows = np.arange(len(source)) if rows is None else rows
    if isinstance(source, ArraySource) or not len(rows):
        return source
    pictures = source.arrays(rows)
    if pictures is None:
        pictures = _decoded(source, rows)
    if pictures is None:
        return source
    return Held(source, rows, pictures)


class Held(Source):
    """A source some of whose pictures lie decoded in memory."""

    def __init__(self, source: Source, rows: np.ndarray, pictures: np.ndarray):
        self.name, self.classes, self.ignored = source.name, source.classes, source.ignored
        self.labels, self.keys = source.labels, source.keys
        self.source, self.pictures = source, pictures
        self.places = np.full(len(source), -1, np.int64)
        self.places[rows] = np.arange(len(rows))

    def image(self, i: int) -> bytes | np.ndarray:
        """The i-th picture."""
        place = self.places[i]
        return self.source.image(i) if place < 0 else self.pictures[place]

    def size(self, i: int) -> int:
        """The number of bytes of the i-th picture."""
        return self.pictures[0].nbytes

    def arrays(self, indices: np.ndarray) -> np.ndarray | None:
        """These pictures, if all of them lie in memory."""
        places = self.places[indices]
        return None if (places < 0).any() else self.pictures[places]


def _decoded(source: Source, rows: np.ndarray) -> np.ndarray | None:
    pictures: np.ndarray | None = None
    for place, row in enumerate(rows):
        try:
            raw = source.image(int(row))
            picture = decode(raw) if isinstance(raw, bytes) else raw
        except Error:
            return None  # the runs say what cannot be read, as every run does
        if pictures is None:
            if picture.nbytes * len(rows) > MOST_BYTES:
                return None
            pictures = np.empty((len(rows), *picture.shape), np.uint8)
        if picture.shape != pictures.shape[1:]:
            return None
        pictures[place] = picture
    return pictures


def _digest(source: Source) -> str:
    """A hash of the keys and labels: on every machine the same, wherever the data lie."""
    total = hashlib.sha256(json.dumps(list(source.classes)).encode())
    total.update(np.ascontiguousarray(source.labels).tobytes())
    for key in source.keys:
        total.update(key.encode() + b"\0")
    return total.hexdigest()
