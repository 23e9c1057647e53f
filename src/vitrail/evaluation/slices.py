"""Slices: the kinds of images that a model does worst on, told from bad luck.

Slices are cut by the true class and by what every picture has: its size in pixels, its shape and
its brightness. With many slices one of them looks bad by chance, so each interval holds for all of
them at once (Bonferroni) and each p-value is corrected for all of them (Holm); slices of few images
are not judged at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.data.decode import read_size
from vitrail.data.examples import Source
from vitrail.kit.errors import Error
from vitrail.metrics.accuracy import interval
from vitrail.metrics.significance import deviations, fewer_right, holm

LEAST = 20  # images below which a slice is not judged
PARTS = 5  # quintiles of size and of brightness
NEAR_SQUARE = 1.15  # sides that differ by less make a square


@dataclass(frozen=True)
class Slice:
    """One kind of images.

    Attributes:
        kind: ``class``, ``size``, ``shape`` or ``brightness``.
        name: which of that kind.
        n: how many images.
        top1: accuracy on them, 0..1.
        low, high: 95 % for all slices together.
        p: the chance of so few right answers if the slice were as good as the whole, corrected
            for the number of slices.
    """

    kind: str
    name: str
    n: int
    top1: float
    low: float
    high: float
    p: float

    @property
    def worse(self) -> bool:
        """Whether it is worse than the whole, beyond chance (5 %)."""
        return self.p < 0.05


@dataclass(frozen=True)
class Slices:
    """All slices that were judged, the worst first.

    Attributes:
        looked_at: how many slices the correction is for.
        too_few: slices with fewer than ``least`` images, which were not judged.
    """

    slices: tuple[Slice, ...]
    looked_at: int
    too_few: int
    least: int

    def worst(self, most: int = 10) -> list[Slice]:
        """The slices whose accuracy is certainly low, lowest first."""
        return list(self.slices[:most])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = [dict(vars(one)) | {"worse": one.worse} for one in self.slices]
        return {
            "looked_at": self.looked_at,
            "least": self.least,
            "too_few": self.too_few,
            "rows": rows,
        }


def find_slices(
    right: np.ndarray, groups: Sequence[tuple[str, np.ndarray, Sequence[str]]], least: int = LEAST
) -> Slices:
    """Judge every slice of some cuts.

    Args:
        right: bool [n], which images are right.
        groups: cuts as (kind, int [n], names): the number of each image's slice in the names, -1
            for an image that belongs to none.
        least: images below which a slice is not judged.
    """
    right = np.asarray(right, bool)
    counted: list[tuple[str, str, int, int]] = []
    too_few = 0
    for kind, places, names in groups:
        inside = places >= 0
        n = np.bincount(places[inside], minlength=len(names))
        good = np.bincount(places[inside], weights=right[inside], minlength=len(names))
        for name, images, hits in zip(names, n.tolist(), good.tolist(), strict=True):
            if images >= least and images < len(right):
                counted.append((kind, name, images, round(hits)))
            else:
                too_few += 0 < images < least
    total = int(right.sum())
    p_values = holm([fewer_right(hits, n, total, len(right)) for *_, n, hits in counted])
    wide = deviations(0.95, len(counted))
    judged = [
        Slice(kind, name, n, hits / n, *interval(hits / n, n, wide), p)
        for (kind, name, n, hits), p in zip(counted, p_values, strict=True)
    ]
    judged.sort(key=lambda one: (one.high, one.top1, one.kind, one.name))
    return Slices(tuple(judged), len(judged), too_few, least)


def cuts(
    labels: np.ndarray,
    classes: Sequence[str],
    brightness: np.ndarray,
    sizes: np.ndarray | None = None,
) -> list[tuple[str, np.ndarray, Sequence[str]]]:
    """The cuts by class, brightness, size and shape, for `find_slices`.

    Args:
        labels: int [n].
        classes: their names.
        brightness: [n], 0..1.
        sizes: int [n 2] (height, width), as `picture_sizes` gives them; None leaves size and
            shape out, as does one size for all.
    """
    found: list[tuple[str, np.ndarray, Sequence[str]]] = [("class", labels, classes)]
    found += _parts("brightness", brightness, "{:.0%} to {:.0%} of white")
    if sizes is None:
        return found
    known = np.asarray((sizes > 0).all(1))
    shorter = np.where(known, sizes.min(1), -1)
    if len(np.unique(shorter[known])) > 1:
        found += _parts("size", shorter, "shorter side {:.0f} to {:.0f} px", known)
    ratio = sizes[:, 1] / np.maximum(sizes[:, 0], 1)
    places = np.where(ratio > NEAR_SQUARE, 2, np.where(ratio < 1 / NEAR_SQUARE, 0, 1))
    places = np.where(known, places, -1)
    if len(np.unique(places[known])) > 1:
        found.append(("shape", places, ("upright", "square", "wide")))
    return found


def picture_sizes(source: Source, indices: np.ndarray) -> np.ndarray:
    """(height, width) of pictures, int64 [n 2], from the files' headers; 0 where unknown.

    Args:
        indices: places in the source.
    """
    sizes = np.zeros((len(indices), 2), np.int64)
    for row, i in enumerate(indices.tolist()):
        try:
            image = source.image(i)
            if isinstance(image, np.ndarray):
                sizes[row] = image.shape[:2]
            else:
                width, height, _ = read_size(image)
                sizes[row] = height, width
        except Error:
            continue
    return sizes


def _parts(
    kind: str, values: np.ndarray, words: str, known: np.ndarray | None = None
) -> list[tuple[str, np.ndarray, Sequence[str]]]:
    """Values cut into quintiles; equal values stay together."""
    known = np.ones(len(values), bool) if known is None else known
    edges = np.unique(np.quantile(values[known], np.arange(1, PARTS) / PARTS))
    places = np.searchsorted(edges, values, side="left")
    names, numbers = [], np.full(len(values), -1)
    for part in np.unique(places[known]):
        inside = known & (places == part)
        numbers[inside] = len(names)
        names.append(words.format(values[inside].min(), values[inside].max()))
    return [(kind, numbers, names)] if len(names) > 1 else []
