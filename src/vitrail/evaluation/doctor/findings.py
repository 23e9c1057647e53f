"""The doctor: what is wrong with a data set, before somebody trains on it.

Looks at every picture once; says what cannot be read, what is there twice (inside of a split,
across splits, and against another set), where copies disagree about their label, how the classes
are balanced and ordered, which pictures are odd, and, with a model, which labels are probably
wrong.
Nothing is changed; `clean` gives the places to keep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitrail.data.sources import Source
from vitrail.evaluation.doctor.confirm import alike
from vitrail.evaluation.doctor.duplicates import LEVELS, Pair, duplicates, groups
from vitrail.evaluation.doctor.labels import folds_of, out_of_fold, suspects
from vitrail.evaluation.doctor.prints import Prints, Progress, look
from vitrail.evaluation.features import Features
from vitrail.evaluation.linear import LinearProbe
from vitrail.kit.errors import Error, listing

EMPTY_CONTRAST = 0.02  # standard deviation of grey, 0..1: hardly anything is to be seen
DARK, BRIGHT = 0.02, 0.98
OUTLIER = 4.5  # robust deviations (of the log) from the median
LEAST_FOR_OUTLIERS = 20
IMBALANCE = 10.0
NEAR_BY_NATURE = 0.1  # share of near duplicates from which on one has to doubt that they are some


@dataclass(frozen=True)
class Place:
    """One picture of one split."""

    split: str
    index: int


@dataclass(frozen=True)
class Odd:
    """A picture that stands out: what is odd about it, and the number that says so."""

    place: Place
    what: str
    value: float


@dataclass(frozen=True)
class Suspect:
    """A label that is probably wrong; the score is how unlikely it is, 0..1."""

    place: Place
    suggested: str
    score: float


@dataclass(frozen=True)
class Twins:
    """A pair of duplicates. `b` is of the other set where `across` says ``other``; `confirmed` says
    whether a model's features are alike too, None where there is no model to ask."""

    a: Place
    b: Place
    pair: Pair
    across: str  # "" inside of a split, "splits" or "other"
    confirmed: bool | None = None


@dataclass
class Findings:
    """Everything that was found.

    Attributes:
        splits: what was looked at.
        other: the set that it was compared with, if any: one source.
        prints: by split; of the other set under ``other``.
        unreadable: (key, reason).
        twins: duplicates, the exact ones first.
        conflicts: groups of duplicates with more than one label.
        counts: by split, class to number.
        order: sentences about the classes' names and order.
        odd: pictures that stand out.
        suspects: labels that are probably wrong, the surest first.
        out_of_fold: accuracy of the predictions that `suspects` come from; None without a model.
        level: how strict the search for near duplicates had to be (`duplicates.LEVELS`).
    """

    splits: Mapping[str, Source]
    other: Source | None
    prints: Mapping[str, Prints]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    twins: list[Twins] = field(default_factory=list)
    conflicts: list[list[Place]] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    odd: list[Odd] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    out_of_fold: float | None = None
    level: int = 0

    def key(self, place: Place) -> str:
        """A picture's name; those of the other set begin with ``other:``."""
        if place.split == "other":
            assert self.other is not None
            return f"other:{self.other.keys[place.index]}"
        return self.splits[place.split].keys[place.index]

    def label(self, place: Place) -> str:
        """A picture's class."""
        source = self.other if place.split == "other" else self.splits[place.split]
        assert source is not None
        return source.classes[int(source.labels[place.index])]

    def to_json(self) -> dict[str, Any]:
        """The content of ``doctor.json`` (contract, section Files)."""
        train = next(iter(self.counts.values()))
        used = [n for n in train.values() if n]
        return {
            "unreadable": [{"key": key, "reason": reason} for key, reason in self.unreadable],
            "duplicates": [
                {
                    "a": self.key(t.a),
                    "b": self.key(t.b),
                    "kind": "exact" if t.pair.exact else "near",
                    "where": "across" if t.across else "inside",
                    "score": t.pair.score,
                    "mirrored": t.pair.mirrored,
                    "confirmed": t.confirmed,
                    "splits": [t.a.split, t.b.split],
                    "labels": [self.label(t.a), self.label(t.b)],
                }
                for t in self.twins
            ],
            "conflicts": [
                [{"key": self.key(p), "label": self.label(p)} for p in group]
                for group in self.conflicts
            ],
            "labels": [
                {
                    "key": self.key(s.place),
                    "label": self.label(s.place),
                    "suggested": s.suggested,
                    "score": s.score,
                }
                for s in self.suspects
            ],
            "imbalance": {
                "ratio": max(used) / min(used) if used else None,
                "counts": self.counts,
            },
            "order": self.order,
            "odd": [{"key": self.key(o.place), "what": o.what, "value": o.value} for o in self.odd],
            "out_of_fold_accuracy": self.out_of_fold,
            "images": {name: len(source) for name, source in self.splits.items()},
        }

    def dropped(self) -> dict[str, set[int]]:
        """What `clean` leaves out, by split: see there."""
        gone: dict[str, set[int]] = {name: set() for name in self.splits}
        for name in self.splits:
            gone[name] |= set(np.flatnonzero(~self.prints[name].readable).tolist())
        rank = {name: k for k, name in enumerate(self.splits)}
        for twins in self.twins:
            if twins.confirmed is False:
                continue
            if twins.across == "other":
                gone[twins.a.split].add(twins.a.index)
            else:
                later = max(twins.a, twins.b, key=lambda p: (rank[p.split], p.index))
                gone[later.split].add(later.index)
        for group in self.conflicts:
            for place in group:
                if place.split != "other":
                    gone[place.split].add(place.index)
        return gone

    def clean(self) -> dict[str, np.ndarray]:
        """The places to keep, by split, int64: one of each group of duplicates.

        Left out is what cannot be read; of duplicates all but the first, where train comes before
        val and test, so that no test picture is left that was trained on (near ones that a model's
        features do not confirm stay); what the other set has
        too; and whole groups whose labels contradict each other. Suspected labels stay: a person
        has to look at those.
        """
        gone = self.dropped()
        return {
            name: np.setdiff1d(np.arange(len(source)), list(gone[name])).astype(np.int64)
            for name, source in self.splits.items()
        }

    def lines(self) -> list[str]:
        """What was found, a sentence each."""
        n = sum(map(len, self.splits.values()))
        said = [f"{n:,} pictures in {' and '.join(self.splits)}"]
        said.append(
            f"unreadable: {len(self.unreadable):,}"
            + (
                f" ({listing([f'{k}: {r}' for k, r in self.unreadable], 3)})"
                if self.unreadable
                else ""
            )
        )
        said.append(self._count("", "inside of a split"))
        if len(self.splits) > 1:
            said.append(self._count("splits", "across splits"))
        if self.other is not None:
            said.append(self._count("other", f"with {self.other.name}"))
        near = {twins.b for twins in self.twins if not twins.pair.exact and twins.across != "other"}
        if self.level:
            said.append(
                "these pictures resemble each other so much that only those count as near "
                f"duplicates that agree to {LEVELS[self.level].whole:g}; crops are not recognised"
            )
        if len(near) > NEAR_BY_NATURE * n:
            said.append(
                f"caution: {100 * len(near) / n:.0f} % of the pictures count as near duplicates, "
                "so these pictures are probably alike by nature; look at some pairs before you "
                "clean"
            )
        if self.conflicts:
            said.append(
                f"duplicates that disagree about their label: {len(self.conflicts):,} groups"
            )
        ratio = self.to_json()["imbalance"]["ratio"]
        if ratio and ratio >= IMBALANCE:
            said.append(f"classes: the largest has {ratio:.0f} times the pictures of the smallest")
        said += self.order
        kinds = sorted({odd.what for odd in self.odd})
        for kind in kinds:
            some = [self.key(odd.place) for odd in self.odd if odd.what == kind]
            said.append(f"{kind}: {len(some):,} ({listing(some, 3)})")
        if self.out_of_fold is not None:
            said.append(
                f"doubtful labels: {len(self.suspects):,} (by predictions out of fold, which agree "
                f"with {100 * self.out_of_fold:.1f} % of all; the surest come first)"
            )
        return said

    def _count(self, what: str, words: str) -> str:
        pairs = [twins for twins in self.twins if twins.across == what]
        exact = sum(twins.pair.exact for twins in pairs)
        later = {twins.a if what == "other" else twins.b for twins in pairs}
        return (
            f"duplicates {words}: {exact:,} exact and {len(pairs) - exact:,} near pairs, "
            f"{len(later):,} pictures too many"
        )


def examine(
    splits: Mapping[str, Source],
    *,
    against: Source | None = None,
    features: Mapping[str, Features] | None = None,
    model_labels: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    comparing: Progress | None = None,
) -> Findings:
    """Look at a data set.

    Args:
        splits: its sources, train first.
        against: another set, to look for the same pictures in.
        features: of every split, for labels that are probably wrong.
        model_labels: the class names of the model that they come from, to compare their order.
        threads: that decode.
        progress: called with (pictures done, pictures in all) while they are read.
        comparing: called with (pictures done, in all) while duplicates are looked for.

    Raises:
        Error: there is nothing to look at.
    """
    if not any(map(len, splits.values())):
        raise Error("there are no pictures to look at")
    sources = dict(splits) if against is None else {**splits, "other": against}
    total, done = sum(map(len, sources.values())), 0
    prints: dict[str, Prints] = {}
    for name, source in sources.items():
        before = done
        step = None if progress is None else (lambda k, _, b=before: progress(b + k, total))
        prints[name] = look(source, threads, step)
        done += len(source)
    found = Findings(splits, against, prints)
    for name, source in sources.items():
        start = "other:" if name == "other" else ""
        found.unreadable += [(start + key, reason) for key, reason in prints[name].unreadable]
        if name != "other":
            counts = np.bincount(source.labels, minlength=len(source.classes))
            found.counts[name] = dict(zip(source.classes, counts.tolist(), strict=True))
    _find_twins(found, splits, against, comparing)
    found.order = _order(splits, model_labels)
    found.odd = [odd for name in splits for odd in _odd(name, prints[name])]
    if features is not None:
        _find_suspects(found, features)
    return found


def joined(prints: Sequence[Prints]) -> Prints:
    """Several prints as one, in order."""
    return Prints(
        *(
            np.concatenate([getattr(one, name) for one in prints])
            for name in ("thumbs", "digests", "sizes", "brightness", "contrast")
        ),
        unreadable=tuple(pair for one in prints for pair in one.unreadable),
        readable=np.concatenate([one.readable for one in prints]),
    )


def _find_twins(
    found: Findings,
    splits: Mapping[str, Source],
    against: Source | None,
    progress: Progress | None,
) -> None:
    whole = joined([found.prints[name] for name in splits])
    places = [Place(name, i) for name, source in splits.items() for i in range(len(source))]
    looked = duplicates(whole, progress=progress)
    inside, found.level = looked.pairs, looked.level
    for pair in inside:
        a, b = places[pair.a], places[pair.b]
        found.twins.append(Twins(a, b, pair, "" if a.split == b.split else "splits"))
    for group in groups(len(whole), inside):
        members = [places[i] for i in group]
        if len({found.label(place) for place in members}) > 1:
            found.conflicts.append(members)
    if against is not None:
        looked = duplicates(whole, found.prints["other"], progress)
        found.level = max(found.level, looked.level)
        for pair in looked.pairs:
            found.twins.append(Twins(places[pair.a], Place("other", pair.b), pair, "other"))
    found.twins.sort(key=lambda t: (not t.pair.exact, t.across, -t.pair.score))


def _order(splits: Mapping[str, Source], model_labels: Sequence[str] | None) -> list[str]:
    said = []
    names = next(iter(splits.values())).classes
    by_number = (
        sorted(names, key=lambda name: int(name)) if all(map(str.isdecimal, names)) else names
    )
    if list(by_number) != list(names):
        said.append(
            f"classes are numbers but sorted as text ({listing(list(names), 3)}): class 1 of "
            "another program may be another one here"
        )
    lowered: dict[str, list[str]] = {}
    for name in names:
        lowered.setdefault(name.strip().lower(), []).append(name)
    for same in lowered.values():
        if len(same) > 1:
            said.append(f"classes that differ only in case or spaces: {listing(same)}")
    for split, source in splits.items():
        used = {source.classes[k] for k in np.unique(source.labels)}
        lost = [name for name in names if name not in used]
        if lost:
            said.append(f"no picture in {split} of class {listing(lost, 3)}")
    if model_labels and list(model_labels) != list(names):
        known = set(model_labels) & set(names)
        said.append(
            f"the model has other classes, or another order: {len(known)} of {len(names)} are "
            "known to it by name"
        )
    return said


def _odd(split: str, prints: Prints) -> list[Odd]:
    odd = []
    good = np.flatnonzero(prints.readable)
    for i in good.tolist():
        contrast, brightness = float(prints.contrast[i]), float(prints.brightness[i])
        if contrast < EMPTY_CONTRAST:
            what = "black" if brightness < DARK else "white" if brightness > BRIGHT else "empty"
            odd.append(Odd(Place(split, i), f"nearly {what}", contrast))
    sides = np.log(np.maximum(prints.sizes[good], 1).astype(np.float64))
    for what, values in (
        ("of unusual size", sides.sum(1) / 2),
        ("of unusual shape", sides[:, 0] - sides[:, 1]),
    ):
        if len(good) < LEAST_FOR_OUTLIERS:
            continue
        distance = np.abs(values - np.median(values))
        # A set of one size has no spread at all: a third of the sides' length is never odd.
        spread = max(1.4826 * np.median(distance), 0.25)
        for k in np.flatnonzero(distance > OUTLIER * spread).tolist():
            odd.append(Odd(Place(split, int(good[k])), what, float(np.exp(values[k]))))
    return odd


def _find_suspects(found: Findings, features: Mapping[str, Features]) -> None:
    names = list(features)
    classes = next(iter(found.splits.values())).classes
    values = np.concatenate([np.asarray(features[name].values, np.float32) for name in names])
    labels = np.concatenate([features[name].labels for name in names])
    places = [Place(name, int(i)) for name in names for i in features[name].indices]
    row = {place: k for k, place in enumerate(places)}
    known = [k for k, t in enumerate(found.twins) if t.a in row and t.b in row]
    rows = np.array([(row[found.twins[k].a], row[found.twins[k].b]) for k in known], np.int64)
    pairs = []
    for k, (a, b), same in zip(
        known, rows.reshape(-1, 2).tolist(), alike(values, rows.reshape(-1, 2)), strict=True
    ):
        twins = found.twins[k]
        pairs.append(Pair(min(a, b), max(a, b), twins.pair.exact, twins.pair.score))
        found.twins[k] = replace(twins, confirmed=twins.pair.exact or bool(same))
    folds = folds_of(labels, groups(len(labels), pairs))
    probabilities = out_of_fold(values, labels, folds, _fit, len(classes))
    found.out_of_fold = float((probabilities.argmax(1) == labels).mean())
    picked, suggested = suspects(probabilities, labels)
    for i, other in zip(picked.tolist(), suggested.tolist(), strict=True):
        score = 1 - float(probabilities[i, labels[i]])
        found.suspects.append(Suspect(places[i], classes[other], round(score, 4)))


def _fit(x: np.ndarray, y: np.ndarray) -> Any:
    return LinearProbe(solver="lbfgs", l2=100.0, iterations=100).fit(x, y).predict_proba
