"""What would help a scaling study's models most: more data, more time, or a larger model.

Each way is a difference of accuracy, paired by seed, with all else equal: the same model, config
and recipe for longer, whatever its line is called; the largest model and its smaller neighbour as
long; the same pictures seen in all, from half as many. Each is then of one doubling.

Groups are a study's runs by (line, family, duration, data), none of them without an accuracy.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitrail.studies.definition import Record
from vitrail.studies.grid import mean_of, paired, signed, verdict
from vitrail.studies.statistics import Mean

Groups = Mapping[tuple[Any, ...], Sequence[Record]]
Brought = tuple[Mean, str, str]  # by a doubling, measured from, to
LEAST_STEP = 1.25  # times: what a shorter step brings, made a doubling's, is chance made large


def compute_of(runs: Sequence[Record]) -> float:
    """exaFLOPs of a group's runs, which are those of each."""
    return sum(run["metrics"]["exaflops"] for run in runs) / len(runs)


def advise(groups: Groups) -> tuple[str, list[dict[str, Any]]]:
    """What would help most, in words, and what each way brings, with all else equal.

    What a way brings is a mean difference over seeds with its interval, for each doubling: of the
    pictures, of the time, or of the compute of a forward pass. Each is measured where a person
    would go on from: at the best model's family, its largest model, its longest duration. The
    advice is the way that brings most of those whose interval leaves 0 out.
    """
    whole = {
        key: mean.mean
        for key, runs in groups.items()
        if key[3] == "all" and (mean := mean_of(runs, "top1")) is not None
    }
    best = max(whole, key=whole.__getitem__)
    family = best[1]
    own = {key: runs for key, runs in groups.items() if key[1] == family}
    brings = [
        {"way": way, "family": family, "mean": mean, "from": start, "to": end}
        for way, measured in (
            ("more data", _of_data(own)),
            ("train longer", _of_time(own)),
            ("larger model", _of_size(own)),
        )
        if measured is not None
        for mean, start, end in [measured]
    ]
    if not brings:
        return (
            "not told: the study has one model and one duration of the best family, so there is "
            "nothing to compare",
            [],
        )
    brings.sort(key=lambda one: -one["mean"].mean)
    reasons = "; ".join(
        f"{one['way']} brings {points_of(one['mean'])} a doubling ({one['from']} to {one['to']})"
        for one in brings
    )
    sure = [one for one in brings if verdict(one["mean"]) == "better"]
    seeds = max(one["mean"].n for one in brings)
    if sure or (seeds == 1 and brings[0]["mean"].mean > 0):
        way = (sure or brings)[0]["way"]
        alone = "" if sure else "; all of it by one seed, which says nothing of chance"
        return f"{way}: of {family}, the most accurate family here, {reasons}{alone}", brings
    return f"nothing that was tried helps for certain: of {family}, {reasons}", brings


def points_of(mean: Mean) -> str:
    """``+1.20 ± 0.35 points``."""
    return f"{signed(mean)} points"


def _of_data(own: Groups) -> Brought | None:
    for key, runs in own.items():
        if key[3] == "half":
            all_of_it = own.get((*key[:3], "all"))
            gain = None if all_of_it is None else paired(all_of_it, runs, "top1")
            if gain is not None:
                return gain, "half of the pictures", "all of them"
    return None


def _of_time(own: Groups) -> Brought | None:
    """The same model for longer; of several models the costliest."""
    return _grown(own, lambda key, runs: _learner(runs), compute_of, rank=_macs, place=2)


def _of_size(own: Groups) -> Brought | None:
    """A larger model for as long; of several durations the longest."""
    return _grown(own, lambda key, runs: key[2], _macs, rank=_images, place=0)


def _grown(
    own: Groups,
    alike: Callable[[tuple[Any, ...], Sequence[Record]], str],
    size: Callable[[Sequence[Record]], float],
    rank: Callable[[Sequence[Record]], float],
    place: int,
) -> Brought | None:
    """What the last step up brings among groups that differ in one thing; None: there is none.

    Args:
        alike: what the groups that are compared have in common.
        size: what grows.
        rank: of several such sets the one in which this is greatest comes first.
        place: in a group's key, of what the step is called by.
    """
    sets: dict[str, list[tuple[float, tuple[Any, ...]]]] = {}
    for key, runs in own.items():
        if key[3] == "all":
            sets.setdefault(alike(key, runs), []).append((size(runs), key))
    for found in sorted(sets.values(), key=lambda one: -rank(own[one[0][1]])):
        more, after = max(found)
        smaller = [one for one in found if LEAST_STEP * one[0] <= more]
        if smaller:
            less, before = max(smaller)
            gain = paired(own[after], own[before], "top1")
            if gain is not None:
                return _per_doubling(gain, more / less), before[place], after[place]
    return None


def _learner(runs: Sequence[Record]) -> str:
    """What learns, and how: all that the runs of one model have alike, but for their length."""
    config = runs[0]["config"]
    alike = ("model", "config", "recipe", "settings", "image_size")
    return json.dumps([config[name] for name in alike], sort_keys=True)


def _macs(runs: Sequence[Record]) -> float:
    return runs[0]["metrics"]["macs"]


def _images(runs: Sequence[Record]) -> float:
    """Pictures seen, as far as the compute tells."""
    return compute_of(runs) / _macs(runs)


def _per_doubling(gain: Mean, ratio: float) -> Mean:
    by = math.log2(ratio)
    low, high = (None if edge is None else edge / by for edge in (gain.low, gain.high))
    return Mean(gain.mean / by, low, high, gain.n)
