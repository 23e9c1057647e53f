"""What a data-size study says in words: who leads, and whether the gap closes, turns or widens.

A gap is the difference of two models' accuracy, seed by seed, at one number of pictures. Of its
change only that is said which the t interval of the change, seed by seed, is sure of.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.kit.errors import listing
from vitrail.studies.definition import Record
from vitrail.studies.grid import by_seed, mean_of, verdict
from vitrail.studies.statistics import t_mean


def answer_of(
    lines: Sequence[str],
    sizes: Sequence[int],
    groups: Mapping[tuple[Any, ...], Sequence[Record]],
    stage: str | None,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Who leads at the smallest and at the largest size, and whether the gap closes."""
    said, compared = _alone(lines, sizes, groups, stage), []
    for size in dict.fromkeys((sizes[0], sizes[-1])):
        means = {
            line: mean.mean
            for line in lines
            if (mean := mean_of(groups.get((line, size, stage), ()), "top1")) is not None
        }
        if len(means) > 1:
            best = max(means, key=means.__getitem__)
            of = {line: groups[line, size, stage] for line in means}
            said.append(f"With {size:,} pictures {lead_in_words(best, means, of, 'top1')}.")
    for one, other in itertools.combinations(lines, 2):
        gaps: list[tuple[int, dict[int, float]]] = []
        for size in sizes:
            runs = groups.get((one, size, stage), ()), groups.get((other, size, stage), ())
            found = by_seed(*runs, "top1")
            if found:
                gaps.append((size, found))
                gap = t_mean(list(found.values())).to_json()
                compared.append({"one": one, "other": other, "images": size, **gap})
        if len(gaps) > 1:
            said.append(_gap_words(one, other, gaps))
    return said or ["No run has been measured on test pictures yet."], compared


def _alone(
    lines: Sequence[str],
    sizes: Sequence[int],
    groups: Mapping[tuple[Any, ...], Sequence[Record]],
    stage: str | None,
) -> list[str]:
    """What one model reaches by itself; nothing where there are others to compare it with."""
    if len(lines) != 1:
        return []
    found = {size: mean_of(groups.get((lines[0], size, stage), ()), "top1") for size in sizes}
    told = [f"{mean.words()} % with {size:,} pictures" for size, mean in found.items() if mean]
    return [f"{lines[0]}: {', '.join(told)}."] if told else []


def lead_in_words(
    best: str, means: Mapping[str, float], groups: Mapping[str, Sequence[Record]], name: str
) -> str:
    """Who leads, or with whom it cannot be told apart.

    Args:
        best: of ``means``, the highest.
        means: accuracy 0..1 by model or variant.
        groups: their records.
        name: of the metric.
    """
    score = f"{100 * means[best]:.2f} %"
    level = []
    for other, runs in groups.items():
        differences = list(by_seed(groups[best], runs, name).values())
        if other != best and verdict(t_mean(differences) if differences else None) != "better":
            level.append(other)
    if not level:
        return f"{best} leads, with {score}"
    return f"{best} has the most, {score}, not told apart from {listing(level, 3)}"


def _gap_words(one: str, other: str, gaps: Sequence[tuple[int, Mapping[int, float]]]) -> str:
    """The gap at the smallest and at the largest size, and what is sure of its change."""
    (small, early), (large, late) = gaps[0], gaps[-1]
    leader, behind = one, other
    if sum(early.values()) < 0:
        leader, behind = other, one
        early, late = ({seed: -gap for seed, gap in each.items()} for each in (early, late))
    first, last = (t_mean(list(each.values())) for each in (early, late))
    sure = {"better": "", "worse": "", "not told apart": ", within what seeds make of it"}
    return (
        f"{leader} against {behind}: {100 * first.mean:+.2f} points with {small:,} pictures"
        f"{sure[verdict(first)]}, {100 * last.mean:+.2f} with {large:,}{sure[verdict(last)]}; "
        f"{_change(early, late, behind)}."
    )


def _change(early: Mapping[int, float], late: Mapping[int, float], behind: str) -> str:
    """How the leader's gap changes, by seed: only what the interval of the change is sure of."""
    falls = [gap - late[seed] for seed, gap in early.items() if seed in late]
    fall = verdict(t_mean(falls) if falls else None)  # "better": the gap falls for certain
    first, last = (verdict(t_mean(list(each.values()))) for each in (early, late))
    if (first, last) == ("better", "worse"):
        return "the gap turns"
    if fall == "not told apart":
        return "no change of the gap is told apart"
    if fall == "worse":
        return "the gap widens"
    return f"the gap widens, in favour of {behind}" if last == "worse" else "the gap closes"
