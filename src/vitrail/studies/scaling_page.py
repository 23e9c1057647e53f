"""What a scaling study shows: accuracy over compute, the front, power laws, and ratios of compute.

Fronts are taken on validation pictures where there are any, and shown on test pictures: the best of
many on the same pictures is flattered. Laws and ratios are of each family's own front.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.kit.chart import MOST, Line, line_chart
from vitrail.studies.definition import Definition, Figure, Record, Shown, Table
from vitrail.studies.grid import FINAL, grouped, mean_of
from vitrail.studies.scaling_advice import Groups, advise, compute_of, points_of
from vitrail.studies.statistics import (
    FEWEST,
    FEWEST_FOR_INTERVAL,
    Mean,
    PowerLaw,
    Ratio,
    common_accuracy,
    compute_ratio,
    fit_power_law,
    pareto,
)

CNNS = ("BiT ResNet", "ResNet")
DRAWN = 25  # points of a law's curve
NOT_TOLD = "not told"  # an interval, of too few groups


def show(definition: Definition, records: Sequence[Record], intervals: bool) -> Shown:
    """Accuracy against compute, laws, ratios, and the answer in words."""
    # A run that failed has neither an accuracy nor a compute.
    known = [record for record in records if record["metrics"].get("top1") is not None]
    groups = grouped(known, "family", "duration", "data")
    whole = {key: runs for key, runs in groups.items() if key[3] == "all"}
    if not whole:
        return Shown(["No run has been measured on test pictures yet."])
    cells = {
        key: (compute_of(runs), mean)
        for key, runs in whole.items()
        if (mean := mean_of(runs, "top1", intervals)) is not None
    }
    front = front_of(whole)
    fits = fit_families(whole)
    laws = {family: fit.law for family, fit in fits.items()}
    ratios = _ratios(fits)
    advice, brings = advise(groups)
    tables = [_table(cells, front, whole), *_law_tables(laws, ratios), *_brings_table(brings)]
    figures = [_figure(cells, front), *_law_figures(laws)]
    said = [advice, *_front_words(front, cells), *_ratio_words(ratios)]
    facts = {
        "advice": advice.partition(":")[0],
        "front": [{"line": key[0], "duration": key[2]} for key in front],
        "laws": {
            family: {
                "exponent": law.exponent,
                "low": law.interval and law.interval[0],
                "high": law.interval and law.interval[1],
                "scale": law.scale,
                "at_exaflops": law.middle,
            }
            for family, law in laws.items()
        },
        "ratios": [
            {"of": of, "to": to, "accuracy": r.accuracy, "ratio": r.ratio}
            | {"low": r.low, "high": r.high}
            for of, to, r in ratios
        ],
        "brings": [{**one, **one["mean"].to_json()} for one in brings],
    }
    return Shown(said, tables, figures, facts)


def front_of(groups: Groups) -> list[tuple[Any, ...]]:
    """The keys of the groups that nothing cheaper or as cheap is as good as, the cheapest first.

    By accuracy on validation pictures where all groups have one, else by that on test pictures.
    """
    known = all(mean_of(runs, FINAL) is not None for runs in groups.values())
    name = FINAL if known else "top1"
    keys = [key for key, runs in groups.items() if mean_of(runs, name) is not None]
    means = [mean.mean for key in keys if (mean := mean_of(groups[key], name)) is not None]
    return [keys[i] for i in pareto([compute_of(groups[key]) for key in keys], means)]


@dataclass(frozen=True)
class Fit:
    """A family's law.

    Args:
        law: of its front.
        reached: the test accuracies of the front's groups.
    """

    law: PowerLaw
    reached: Sequence[float]


def fit_families(groups: Groups) -> dict[str, Fit]:
    """A law for each family whose front, or whose runs, have enough different computes.

    The front, since a law of what compute can buy is not one of models that are too small or too
    large for it; all of the family's groups where the front is too short for a fit. Families are
    resampled apart, each by random numbers of its own, since their runs have nothing in common.
    """
    found = {}
    for family in dict.fromkeys(key[1] for key in groups):
        own = {key: runs for key, runs in groups.items() if key[1] == family}
        front = front_of(own)
        fitted = front if _differ(own, front) >= FEWEST else list(own)
        if _differ(own, fitted) < FEWEST:
            continue
        errors = {key: [1 - run["metrics"]["top1"] for run in own[key]] for key in own}
        law = fit_power_law(
            [compute_of(own[key]) for key in fitted],
            [errors[key] for key in fitted],
            seed=int.from_bytes(hashlib.sha256(family.encode()).digest()[:4], "big"),
        )
        found[family] = Fit(law, [1 - sum(errors[key]) / len(errors[key]) for key in front])
    return found


def _differ(groups: Groups, keys: Sequence[tuple[Any, ...]]) -> int:
    """How many different amounts of compute there are."""
    return len({round(math.log(compute_of(groups[key])), 6) for key in keys})


def _ratios(fits: Mapping[str, Fit]) -> list[tuple[str, str, Ratio]]:
    """(family, against, ratio) in the middle of the accuracies that both fronts reach."""
    found = []
    for of, to in itertools.combinations(fits, 2):
        if to in CNNS and of not in CNNS:
            of, to = to, of
        common = common_accuracy(fits[of].reached, fits[to].reached)
        if common is None:
            continue
        for share in (0.25, 0.5, 0.75):
            accuracy = common[0] + share * (common[1] - common[0])
            ratio = compute_ratio(fits[of].law, fits[to].law, accuracy)
            if ratio is not None:
                found.append((of, to, ratio))
    return found


def _table(
    cells: Mapping[tuple[Any, ...], tuple[float, Mean]],
    front: Sequence[tuple[Any, ...]],
    groups: Groups,
) -> Table:
    rows = []
    for key, (compute, mean) in sorted(cells.items(), key=lambda item: item[1][0]):
        metrics = groups[key][0]["metrics"]
        rows.append(
            [
                key[0],
                key[2],
                metrics["parameters"],
                float(f"{metrics['macs'] / 1e6:.3g}"),
                f"{compute:.3g}",
                mean.words(),
                mean.n,
                key in front,
            ]
        )
    columns = ("model", "duration", "parameters", "million MACs", "exaFLOPs", "accuracy, %")
    columns += ("seeds", "on the front")
    caption = (
        "Every model and duration, by compute: 6 x MACs x pictures, as in the paper's Table 6, so "
        "a last block counts whole where only a class token of it is computed. The front is that "
        "of validation pictures, where there are any."
    )
    return Table(columns, rows, caption)


def _law_tables(
    laws: Mapping[str, PowerLaw], ratios: Sequence[tuple[str, str, Ratio]]
) -> list[Table]:
    found = []
    if laws:
        rows = [
            [
                family,
                f"{law.exponent:.3f}",
                _span(law.interval, ".3f"),
                f"{100 * law.scale:.1f}",
                f"{law.middle:.2e}",
                f"{law.span[0]:.1e} to {law.span[1]:.1e}",
            ]
            for family, law in laws.items()
        ]
        columns = ("family", "exponent b", "95 % interval", "error there, %", "at exaFLOPs")
        caption = (
            "Power laws of the error, error ~ compute^-b, of each family's fitted front; bootstrap "
            "over the front's groups and their seeds, from "
            f"{FEWEST_FOR_INTERVAL} groups on, and fewer tell no interval."
        )
        found.append(Table((*columns, "measured"), rows, caption))
    if ratios:
        rows = [
            [
                f"{of} against {to}",
                f"{100 * r.accuracy:.1f}",
                _times(r.ratio),
                NOT_TOLD if r.interval is None else " to ".join(map(_times, r.interval)),
            ]
            for of, to, r in ratios
        ]
        columns = ("families", "at accuracy, %", "compute ratio", "95 % interval")
        caption = (
            "How many times the compute of the second the first takes to be as accurate, by the "
            "laws of their fitted fronts."
        )
        found.append(Table(columns, rows, caption))
    return found


def _span(interval: tuple[float, float] | None, form: str) -> str:
    return NOT_TOLD if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _times(ratio: float) -> str:
    """A ratio of compute in words; beyond a thousand it is but a law that hardly falls."""
    if not 1e-3 <= ratio <= 1e3:
        return "over 1,000" if ratio > 1 else "under 0.001"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _interval_words(ratio: Ratio) -> str:
    if ratio.interval is None:
        return f"an interval takes {FEWEST_FOR_INTERVAL} groups of each"
    return f"95 % interval {_times(ratio.interval[0])} to {_times(ratio.interval[1])}"


def _brings_table(brings: Sequence[Mapping[str, Any]]) -> list[Table]:
    if not brings:
        return []
    rows = [[b["way"], points_of(b["mean"]), b["from"], b["to"], b["mean"].n] for b in brings]
    columns = ("way", "brings a doubling", "measured from", "to", "seeds")
    family = brings[0]["family"]
    return [Table(columns, rows, f"What each way brings, of {family}, with all else equal.")]


def _figure(
    cells: Mapping[tuple[Any, ...], tuple[float, Mean]],
    front: Sequence[tuple[Any, ...]],
) -> Figure:
    lines = []
    for family in dict.fromkeys(key[1] for key in cells):
        points = sorted(
            (compute, mean.mean) for key, (compute, mean) in cells.items() if key[1] == family
        )
        lines.append(
            Line(family, [x for x, _ in points], [y for _, y in points], dots=True, joined=False)
        )
    best = sorted((cells[key][0], cells[key][1].mean) for key in front)
    lines = lines[: MOST - 1]
    lines.append(Line("Pareto front", [x for x, _ in best], [y for _, y in best]))
    every = sorted(compute for compute, _ in cells.values())
    svg = line_chart(
        lines,
        title="test accuracy against compute",
        x_label="exaFLOPs",
        percent=True,
        log_x=True,
        x_ticks=every,
        x_format=".1e",
        size=(560, 340),
    )
    return Figure(
        "scaling-compute",
        svg,
        "Test accuracy against training compute, means over seeds; the line joins what is on the "
        "Pareto front, which is that of validation pictures where there are any.",
    )


def _law_figures(laws: Mapping[str, PowerLaw]) -> list[Figure]:
    """Each family's law with its band, over the compute that was measured and no further."""
    lines = []
    for family, law in list(laws.items())[:MOST]:
        compute = [float(x) for x in np.geomspace(*law.span, DRAWN)]
        band = None if law.interval is None else 1 - law.band(compute)
        lines.append(
            Line(
                family,
                compute,
                [1 - law.error(x) for x in compute],
                low=() if band is None else band[:, 1].tolist(),
                high=() if band is None else band[:, 0].tolist(),
            )
        )
    if not lines:
        return []
    svg = line_chart(
        lines,
        title="test accuracy by each family's power law",
        x_label="exaFLOPs",
        percent=True,
        log_x=True,
        x_ticks=sorted(x for law in laws.values() for x in law.span),
        x_format=".1e",
        size=(560, 340),
    )
    banded = any(len(line.low) for line in lines)
    words = (
        "The power law of each family's fitted front, as accuracy, over the compute that was "
        "measured" + ("; bands are 95 % by bootstrap." if banded else ".")
    )
    return [Figure("scaling-laws", svg, words)]


def _front_words(
    front: Sequence[tuple[Any, ...]], cells: Mapping[tuple[Any, ...], tuple[float, Mean]]
) -> list[str]:
    families = list(dict.fromkeys(key[1] for key in front))
    first, last = front[0], front[-1]
    return [
        f"The Pareto front begins with {first[0]} at {cells[first][0]:.2g} exaFLOPs "
        f"({100 * cells[first][1].mean:.2f} %) and ends with {last[0]} at {cells[last][0]:.2g} "
        f"({100 * cells[last][1].mean:.2f} %); on it are {', '.join(families)}."
    ]


def _ratio_words(ratios: Sequence[tuple[str, str, Ratio]]) -> list[str]:
    """Each pair of families in the middle of the accuracies that it has a ratio at."""
    pairs: dict[tuple[str, str], list[Ratio]] = {}
    for of, to, ratio in ratios:
        pairs.setdefault((of, to), []).append(ratio)
    middle = [(of, to, found[len(found) // 2]) for (of, to), found in pairs.items()]
    return [
        f"At {100 * r.accuracy:.1f} % {of} takes {_times(r.ratio)} times the compute of {to} "
        f"(by their fitted fronts; {_interval_words(r)})."
        for of, to, r in middle
    ]
