"""Scan: look at the data before training on them, and say what is there and what is wrong.

Every file up to a limit is read once: its header, whether it is whole, and a hash of its bytes.
Of more files an evenly spaced sample is read, and the sentences say so.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vitrail.data.decode import check
from vitrail.data.examples import Source
from vitrail.kit.errors import Error, listing

LIMIT = 20_000  # files; a file takes some 0.1 ms when it lies in memory, some ms on a spinning disk

_MODES = {
    "L": "grey",
    "1": "black and white",
    "P": "palette",
    "RGB": "colour",
    "RGBA": "with transparency",
    "LA": "grey with transparency",
    "CMYK": "CMYK",
    "I;16": "16-bit grey",
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a scan found.

    Attributes:
        images: how many examples the source has.
        classes: class name to number of examples, in the order of the classes.
        examined: how many examples were read: all, or a sample.
        smallest, median, largest: (width, height) in pixels; smallest and largest by area, the
            median of each side by itself. None when nothing could be read.
        modes: kind of picture (grey, colour, ...) to number, the commonest first.
        unreadable: (key, reason) of the files that will be left out.
        unreadable_at: their places in the source.
        ignored: names of files among the pictures that are none.
        labels: of a multi-label source, how many an image has on average, and how many images
            have none; else None.
        digests: a 64-bit hash of each example's bytes, [n]; None when only a sample was read.
    """

    images: int
    classes: dict[str, int]
    examined: int
    smallest: tuple[int, int] | None
    median: tuple[int, int] | None
    largest: tuple[int, int] | None
    modes: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
    unreadable_at: tuple[int, ...]
    ignored: tuple[str, ...]
    labels: tuple[float, int] | None = None
    digests: np.ndarray | None = field(default=None, repr=False, compare=False)

    def lines(self) -> list[str]:
        """The sentences that `train` begins with."""
        images = _count(self.images, "image")
        lines = [f"{images} in {len(self.classes)} classes, {self._spread()}"]
        if self.labels:
            each, without = self.labels
            lines = [
                f"{images} with any of {len(self.classes)} labels, {self._spread()}; "
                f"{each:.3g} an image, {without:,} have none"
            ]
        if self.examined < self.images:
            lines.append(
                f"looked into {self.examined:,} of them, evenly spaced; the rest when they are used"
            )
        if self.smallest and self.median and self.largest:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.modes.items())
            if len(self.modes) == 1:
                kinds = f"all {next(iter(self.modes))}"
            if self.smallest == self.largest:
                lines.append(f"size {_by(self.largest)}; {kinds}")
            else:
                lines.append(
                    f"sizes {_by(self.smallest)} to {_by(self.largest)}, median "
                    f"{_by(self.median)}; {kinds}"
                )
        if self.unreadable:
            named = listing([f"{key} ({reason})" for key, reason in self.unreadable])
            count = _count(len(self.unreadable), "file")
            lines.append(f"{count} cannot be read and will be left out: {named}")
        if self.ignored:
            lines.append(
                f"{_count(len(self.ignored), 'other entry', 'other entries')} passed over: "
                f"{listing(list(self.ignored))}"
            )
        return lines

    def _spread(self) -> str:
        fewest = min(self.classes, key=self.classes.__getitem__)
        most = max(self.classes, key=self.classes.__getitem__)
        low, high = self.classes[fewest], self.classes[most]
        return f"{low:,} each" if low == high else f"from {low:,} ({fewest}) to {high:,} ({most})"


def scan(source: Source, limit: int = LIMIT) -> Found:
    """Read up to ``limit`` examples of a source and report.

    Damage in the middle of a JPEG shows only when it is decoded; the loader then skips and names
    it. All else that makes a file unreadable is found here.
    """
    n = len(source)
    whole = n <= limit
    places = np.arange(n) if whole else np.unique(np.linspace(0, n - 1, limit).astype(np.int64))
    sizes: list[tuple[int, int]] = []
    modes: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    digests = np.zeros(n, np.uint64)
    for i in map(int, places):
        try:
            image = source.image(i)
            digests[i] = digest(image)
            width, height, mode = _array(image) if isinstance(image, np.ndarray) else check(image)
        except Error as error:
            bad.append((i, str(error)))
            continue
        sizes.append((width, height))
        modes[_MODES.get(mode, mode)] += 1
    counts = source.counts()
    sides = np.array(sizes or [(0, 0)])
    return Found(
        images=n,
        classes={name: int(k) for name, k in zip(source.classes, counts, strict=True)},
        examined=len(places),
        smallest=min(sizes, key=_area) if sizes else None,
        median=(int(np.median(sides[:, 0])), int(np.median(sides[:, 1]))) if sizes else None,
        largest=max(sizes, key=_area) if sizes else None,
        modes=dict(modes.most_common()),
        unreadable=tuple((source.keys[i], reason) for i, reason in bad),
        unreadable_at=tuple(i for i, _ in bad),
        ignored=source.ignored,
        labels=_several(source.labels) if source.multi_label else None,
        digests=digests if whole else None,
    )


def readable(source: Source, found: Found) -> Source:
    """The source without the examples that its scan could not read.

    Raises:
        Error: no example of some class would be left.
    """
    if not found.unreadable_at:
        return source
    kept = source.subset(np.setdiff1d(np.arange(len(source)), found.unreadable_at))
    lost = np.flatnonzero((source.counts() > 0) & (kept.counts() == 0))
    if len(lost):
        names = [source.classes[k] for k in lost]
        key, reason = found.unreadable[0]
        raise Error(
            f"{source.name}: no image of class {listing(names)} can be read ({key}: {reason})"
        )
    return kept


def digest(image: bytes | np.ndarray) -> int:
    """A 64-bit hash of an example's bytes, or of its pixels."""
    data = image if isinstance(image, bytes) else np.ascontiguousarray(image).data
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def _several(hot: np.ndarray) -> tuple[float, int]:
    each = hot.sum(axis=1)
    return float(each.mean()), int((each == 0).sum())


def _array(image: np.ndarray) -> tuple[int, int, str]:
    height, width = image.shape[:2]
    grey = (image[..., :1] == image).all()
    return width, height, "L" if grey else "RGB"


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
