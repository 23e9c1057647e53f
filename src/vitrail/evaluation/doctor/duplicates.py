"""Duplicates: pairs of pictures that show the same photograph.

In two scales, as one reads a map. First every pair of 8 x 8 thumbnails is compared, also mirrored:
one matrix product, whose cost grows with the square of the number of pictures and is the only
thing here that does. What is compared is what is left of a thumbnail when the mean of each row and
of each column is taken away: else everything with a horizon would look like everything else with
one. The few pairs that remain are compared at 16 x 16 under small shifts and scalings of one over
the other, so that a cropped copy is laid where it belongs.

The thresholds were set on one planted set (`benchmarks/doctor.py --seed 0`) and are reported on
another. Brightness and contrast cancel out; colour is not looked at.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vitrail.evaluation.doctor.prints import SIDE, Prints

COARSE, FINE = 8, 16
CROPS = (0.025, 0.05, 0.075, 0.1)  # of a side, taken away in all
PRODUCT = 2**26  # numbers of the product that are held at a time: 256 MB
GROUP = 64  # near duplicates in a group up to which all of its pairs are listed
_FLAT = 0.5  # grey levels: variation below this counts as none


@dataclass(frozen=True)
class Level:
    """How alike two pictures have to be; correlations.

    Attributes:
        coarse_detail, coarse_whole: to be laid over each other at all.
        whole, detail: to be duplicates then.
    """

    coarse_detail: float
    coarse_whole: float
    whole: float
    detail: float


# Where most pictures resemble others (clothes on a plain ground, scans of forms), the first level
# would call them all duplicates. Then the next one is taken, until there are few pairs. A crop is
# not recognised any more at the last two.
LEVELS = (
    Level(0.78, 0.88, 0.955, 0.88),
    Level(0.92, 0.95, 0.98, 0.95),
    Level(0.97, 0.98, 0.99, 0.975),
    Level(0.99, 0.992, 0.996, 0.99),
)
MANY_CANDIDATES = 20  # pairs a picture that are looked at
MANY_PAIRS = 0.25  # near pairs a picture, in sets of a thousand and more


@dataclass(frozen=True, order=True)
class Pair:
    """Two pictures, by their places.

    Attributes:
        a, b: places; within one set a < b.
        exact: whether their contents are the same, byte by byte.
        score: correlation of the two, laid over each other: 1 for equal ones.
        mirrored: whether one is the mirror image of the other.
    """

    a: int
    b: int
    exact: bool
    score: float
    mirrored: bool = False


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Attributes:
        pairs: sorted by their places.
        level: which of `LEVELS` near duplicates had to reach; 0 where pictures are unlike enough.
    """

    pairs: list[Pair]
    level: int


def duplicates(
    prints: Prints,
    against: Prints | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """The pairs of duplicates inside of a set, or between two sets.

    Every pair of a group is listed: if a is like b, and b like c, then a and c are a pair too
    (among near duplicates in groups of up to 64; larger ones, which chains make, keep only the
    pairs that were found directly).

    Args:
        against: the other set, which the places `b` are of; None: inside of one.
        progress: called with (rows done, rows in all).
    """
    exact = list(_exact(prints, against))
    known = {(pair.a, pair.b) for pair in exact}
    near: list[Pair] = []
    number = 0
    for number, level in enumerate(LEVELS):
        found = _near(prints, against, level, number == len(LEVELS) - 1, progress)
        if found is None:
            continue
        near = [pair for pair in found if (pair.a, pair.b) not in known]
        smaller = len(prints) if against is None else min(len(prints), len(against))
        if len(near) <= MANY_PAIRS * max(1000, smaller):
            break
    every = exact + near
    if against is None:
        every += _completed(prints, every)
    return Duplicates(sorted(every), number)


def _exact(prints: Prints, against: Prints | None) -> Iterator[Pair]:
    by_digest: dict[bytes, list[int]] = {}
    for i in np.flatnonzero(prints.readable):
        by_digest.setdefault(prints.digests[i].tobytes(), []).append(int(i))
    if against is None:
        for group in by_digest.values():
            for k, a in enumerate(group):
                yield from (Pair(a, b, True, 1.0) for b in group[k + 1 :])
        return
    for j in np.flatnonzero(against.readable):
        for a in by_digest.get(against.digests[j].tobytes(), ()):
            yield Pair(a, int(j), True, 1.0)


def _near(
    prints: Prints,
    against: Prints | None,
    level: Level,
    last: bool,
    progress: Callable[[int, int], None] | None,
) -> list[Pair] | None:
    """Near duplicates at a level; None where it lets through too many to be looked at."""
    other = prints if against is None else against
    limit = MANY_CANDIDATES * max(1000, len(prints) + (0 if against is None else len(against)))
    found: list[Pair] = []
    for mirrored in (False, True):
        places, count = [], 0
        for some in _candidates(prints, other, level, against is None, mirrored, progress):
            places.append(some)
            count += len(some)
            if count > limit and not last:
                return None
        if not places:
            continue
        for part in torch.cat(places).split(4096):
            a = torch.from_numpy(prints.thumbs[part[:, 0].numpy()]).float()
            b = torch.from_numpy(other.thumbs[part[:, 1].numpy()]).float()
            whole, detail = aligned(a, b.flip(-1) if mirrored else b)
            same = (whole >= level.whole) & (detail >= level.detail)
            for (i, j), score in zip(part[same].tolist(), whole[same].tolist(), strict=True):
                found.append(Pair(i, j, False, round(min(score, 1.0), 4), mirrored))
    return found


def _candidates(
    prints: Prints,
    other: Prints,
    level: Level,
    within: bool,
    mirrored: bool,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Tensor]:
    """Blocks of int64 [m 2] of pairs whose coarse thumbnails are alike."""
    detail, whole = _coarse(prints, False)
    their_detail, their_whole = _coarse(other, mirrored)
    n, block = len(detail), max(1, PRODUCT // len(their_detail))
    for start in range(0, n, block):
        first = start if within else 0  # inside of a set each pair is looked at once
        product = detail[start : start + block] @ their_detail[first:].T
        rows, columns = torch.where(product > level.coarse_detail)
        rows, columns = rows + start, columns + first
        if within:  # a picture that is its own mirror image is no pair
            later = columns > rows
            rows, columns = rows[later], columns[later]
        alike = (whole[rows] * their_whole[columns]).sum(-1) > level.coarse_whole
        if alike.any():
            yield torch.stack([rows[alike], columns[alike]], -1)
        if progress is not None:
            done = min(start + block, n)
            progress(n + done if mirrored else done, 2 * n)


def _coarse(prints: Prints, mirrored: bool) -> tuple[Tensor, Tensor]:
    """Unit vectors of the 8 x 8 thumbnails: of their detail and of all of it, float [n 64]."""
    small = torch.empty(len(prints), COARSE, COARSE)
    for start in range(0, len(prints), 65536):
        block = torch.from_numpy(prints.thumbs[start : start + 65536]).float()
        small[start : start + 65536] = avg_pool2d(block[:, None], SIDE // COARSE)[:, 0]
    if mirrored:
        small = small.flip(-1)
    return unit(detail_of(small)), unit(small)


def aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """How alike pairs of pictures are, where one is laid over the other as well as can be.

    Args:
        a, b: grey, float [m 32 32].

    Returns:
        Correlation, and correlation of the detail, at the window where the former is largest; [m].
    """
    best, detail = torch.full((len(a),), -1.0), torch.full((len(a),), -1.0)
    for cut, whole in ((a, b), (b, a)):
        target = _WINDOWS[0] @ whole @ _WINDOWS[0].T
        unit_target, unit_detail = unit(target), unit(detail_of(target))
        by_rows = torch.einsum("wrp,mpq->wmrq", _WINDOWS, cut)
        for i, j in _COMBINATIONS:
            view = by_rows[i] @ _WINDOWS[j].T
            score = (unit(view) * unit_target).sum(-1)
            better = score > best
            if better.any():
                fine = (unit(detail_of(view[better])) * unit_detail[better]).sum(-1)
                detail[better] = fine
                best = torch.where(better, score, best)
    return best, detail


def detail_of(images: Tensor) -> Tensor:
    """What is left without the mean of each row and of each column, float [... h w]."""
    mean = images.mean((-1, -2), keepdim=True)
    return images - images.mean(-1, keepdim=True) - images.mean(-2, keepdim=True) + mean


def unit(images: Tensor) -> Tensor:
    """Centred, flattened and scaled to length 1, [... h*w]; flat pictures come out short."""
    flat = images.flatten(-2)
    flat = flat - flat.mean(-1, keepdim=True)
    length = flat.norm(dim=-1, keepdim=True)
    return flat / (length + (_FLAT * flat.shape[-1] ** 0.5) ** 2 / length.clamp(min=1e-6))


def _window(low: float, high: float) -> Tensor:
    """Means over 16 equal parts of the span low..high of 32 pixels, as a matrix [16 32]."""
    edges = torch.linspace(low, high, FINE + 1, dtype=torch.float64)
    pixels = torch.arange(SIDE, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    covered = covered.clamp(min=0)
    return (covered / covered.sum(1, keepdim=True)).float()


# Window 0 is all of it; then for each crop one to the left, in the middle and to the right.
_WINDOWS = torch.stack(
    [
        _window(0, SIDE),
        *(
            _window(SIDE * crop * at, SIDE - SIDE * crop * (1 - at))
            for crop in CROPS
            for at in (0, 0.5, 1)
        ),
    ]
)
_COMBINATIONS = [(0, 0)] + [
    (1 + 3 * crop + i, 1 + 3 * crop + j)
    for crop in range(len(CROPS))
    for i in range(3)
    for j in range(3)
]


def groups(n: int, pairs: list[Pair]) -> list[list[int]]:
    """The groups that pairs inside of one set of n make, each sorted, by their first member."""
    leader = list(range(n))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for pair in pairs:
        a, b = find(pair.a), find(pair.b)
        leader[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for i in sorted({place for pair in pairs for place in (pair.a, pair.b)}):
        members.setdefault(find(i), []).append(i)
    return list(members.values())


def _completed(prints: Prints, pairs: list[Pair]) -> list[Pair]:
    """The pairs that groups lack, with their scores."""
    known = {(pair.a, pair.b) for pair in pairs}
    missing = [
        (a, b)
        for group in groups(len(prints), pairs)
        if len(group) <= GROUP
        for k, a in enumerate(group)
        for b in group[k + 1 :]
        if (a, b) not in known
    ]
    if not missing:
        return []
    places = torch.tensor(missing)
    a = torch.from_numpy(prints.thumbs[places[:, 0].numpy()]).float()
    b = torch.from_numpy(prints.thumbs[places[:, 1].numpy()]).float()
    straight, _ = aligned(a, b)
    turned, _ = aligned(a, b.flip(-1))
    return [
        Pair(i, j, False, round(float(max(s, t)), 4), bool(t > s))
        for (i, j), s, t in zip(missing, straight, turned, strict=True)
    ]
