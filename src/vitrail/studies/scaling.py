"""`study scaling`: accuracy against compute, models x durations (ViT paper, section 4.4).

Every run sees the same pictures; what differs is the model and how long it learns. Shown are each
family's accuracy over exaFLOPs, the Pareto front of all, a power law of each family's own front
with its bootstrap interval, and how many times the compute one family takes for the accuracy of
another.

Besides, the largest model of every family learns for the longest duration from half of the
pictures. So what twice the data, twice the time and a larger model bring is measured, each with all
else equal, and the answer in words is the one that brings most: ``more data``, ``train longer`` or
``larger model``.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.kit.chart import Line, line_chart
from vitrail.kit.errors import Error
from vitrail.models.base import checked_config
from vitrail.models.cost import cost
from vitrail.models.zoo import FAMILIES, resolve
from vitrail.studies.data_size import side_for
from vitrail.studies.definition import (
    Ask,
    Candidate,
    Definition,
    Figure,
    Kind,
    Point,
    Record,
    Shown,
    Table,
)
from vitrail.studies.folder import safe_id
from vitrail.studies.grid import candidates, fixed_settings, grouped, mean_of, paired, verdict
from vitrail.studies.presets import SCALING
from vitrail.studies.statistics import (
    FEWEST,
    Mean,
    PowerLaw,
    common_accuracy,
    compute_ratio,
    fit_power_law,
    pareto,
)

FAMILY_NAMES = {
    "vit": "ViT",
    "bit": "BiT ResNet",
    "resnet": "ResNet",
    "hybrid": "hybrid",
    "cvt": "CvT",
    "botnet": "BoTNet",
    "t2t": "T2T-ViT",
    "pvt": "PVT",
    "pvt_v2": "PVT v2",
}
CNNS = ("BiT ResNet", "ResNet")


def define(ask: Ask) -> Definition:
    """The runs of a scaling study.

    Raises:
        Error: an unknown preset or model, or sizes, which this kind does not take.
    """
    if ask.sizes:
        raise Error("scaling uses all of the pictures: --sizes belongs to data-size")
    factors = SCALING.get(ask.preset).factors
    ask = SCALING.applied(ask)
    models = candidates(ask, SCALING.models)
    durations = ask.durations or _doublings(ask)
    points = []
    largest = _largest(models, ask)
    for one, duration, seed in itertools.product(models, durations, ask.all_seeds):
        duration = times(duration, factors.get(one.label, 1))
        common = {
            "line": one.label,
            "model": one.model,
            "config": one.config,
            "recipe": ask.recipe or "scratch",
            "image_size": ask.image_size or side_for(one, ask.side),
            "duration": duration,
            "seed": seed,
            "settings": {**fixed_settings(ask), **one.settings},
        }
        axes = {"family": FAMILY_NAMES[one.family], "duration": duration, "data": "all"}
        id = safe_id(one.label, duration, f"seed{seed}")
        points.append(Point(id=id, axes=axes, **common))
        if one.label in largest and duration == times(durations[-1], factors.get(one.label, 1)):
            # The same pictures seen in all, from half as many.
            halved = {**common, "images": ask.train_images // 2}
            if duration.endswith("epochs"):
                halved["duration"] = times(duration, 2)
            points.append(Point(id=f"{id}-half", axes={**axes, "data": "half"}, **halved))
    return Definition(
        kind="scaling", points=tuple(points), facts={"train_images": ask.train_images}
    )


def times(duration: str, factor: float) -> str:
    """A duration, longer."""
    value, unit = duration.split()
    return f"{float(value) * factor:g} {unit}"


def _doublings(ask: Ask) -> tuple[str, ...]:
    """Three durations, each twice the one before; the longest is 20 epochs or half a million."""
    most = min(500_000, 20 * ask.train_images)
    return tuple(f"{most // part} examples" for part in (4, 2, 1))


def macs_of(one: Candidate, image_size: int | None) -> int:
    """Multiply-adds of a model's forward pass."""
    entry = resolve(one.model)[1]
    fields = {**entry.config, **_tupled(one.config)}
    if image_size is not None:
        fields["image_size"] = image_size
    return cost(checked_config(FAMILIES[entry.family][0], fields)).macs


def _tupled(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def _largest(models: Sequence[Candidate], ask: Ask) -> set[str]:
    """The label of each family's costliest model."""
    found: dict[str, tuple[int, str]] = {}
    for one in models:
        macs = macs_of(one, ask.image_size or side_for(one, ask.side))
        found[one.family] = max(found.get(one.family, (0, "")), (macs, one.label))
    return {label for _, label in found.values()}


def show(definition: Definition, records: Sequence[Record], intervals: bool) -> Shown:
    """Accuracy against compute, laws, ratios, and the answer in words."""
    # A run that failed has neither an accuracy nor a compute.
    known = [record for record in records if record["metrics"].get("top1") is not None]
    groups = grouped(known, "family", "duration", "data")
    whole = {key: runs for key, runs in groups.items() if key[3] == "all"}
    if not whole:
        return Shown(["No run has been measured on test pictures yet."])
    cells = {
        key: (_compute(runs), mean)
        for key, runs in whole.items()
        if (mean := mean_of(runs, "top1", intervals)) is not None
    }
    keys = list(cells)
    accuracy = [cells[key][1].mean for key in keys]
    front = [keys[i] for i in pareto([cells[key][0] for key in keys], accuracy)]
    laws = fit_families(whole)
    ratios = _ratios(whole, laws)
    advice, brings = advise(groups)
    tables = [_table(cells, front, whole), *_law_tables(laws, ratios), *_brings_table(brings)]
    figures = [_figure(cells, front, laws)]
    said = [advice, *_front_words(front, cells), *_ratio_words(ratios)]
    facts = {
        "advice": advice.partition(":")[0],
        "front": [{"line": key[0], "duration": key[2]} for key in front],
        "laws": {
            family: {
                "exponent": law.exponent,
                "low": law.interval[0],
                "high": law.interval[1],
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
        "brings": [{**one, **_plain(one["mean"])} for one in brings],
    }
    return Shown(said, tables, figures, facts)


def _plain(mean: Mean) -> dict[str, Any]:
    return {"mean": mean.mean, "low": mean.low, "high": mean.high, "n": mean.n}


def _compute(runs: Sequence[Record]) -> float:
    """exaFLOPs of a group's runs, which are those of each."""
    return sum(run["metrics"]["exaflops"] for run in runs) / len(runs)


def fit_families(groups: Mapping[tuple[Any, ...], Sequence[Record]]) -> dict[str, PowerLaw]:
    """A law for each family whose front, or whose runs, have enough different computes.

    The front, since a law of what compute can buy is not one of models that are too small or too
    large for it; all of the family's groups where the front is too short for a fit.
    """
    laws = {}
    for family in dict.fromkeys(key[1] for key in groups):
        own = [runs for key, runs in groups.items() if key[1] == family]
        computes = [_compute(runs) for runs in own]
        errors = [[1 - run["metrics"]["top1"] for run in runs] for runs in own]
        best = pareto(computes, [1 - sum(one) / len(one) for one in errors])
        rows = best if len(best) >= FEWEST else range(len(own))
        if len({round(math.log(computes[i]), 6) for i in rows}) >= FEWEST:
            laws[family] = fit_power_law([computes[i] for i in rows], [errors[i] for i in rows])
    return laws


def _ratios(
    groups: Mapping[tuple[Any, ...], Sequence[Record]], laws: Mapping[str, PowerLaw]
) -> list[tuple[str, str, Any]]:
    """(family, against, ratio) in the middle of the accuracies that both reach."""
    reached: dict[str, list[float]] = {}
    for key, runs in groups.items():
        mean = mean_of(runs, "top1")
        if mean is not None:
            reached.setdefault(key[1], []).append(mean.mean)
    found = []
    for of, to in itertools.combinations(laws, 2):
        if to in CNNS and of not in CNNS:
            of, to = to, of
        common = common_accuracy(reached[of], reached[to])
        if common is None:
            continue
        for share in (0.25, 0.5, 0.75):
            accuracy = common[0] + share * (common[1] - common[0])
            ratio = compute_ratio(laws[of], laws[to], accuracy)
            if ratio is not None:
                found.append((of, to, ratio))
    return found


def advise(
    groups: Mapping[tuple[Any, ...], Sequence[Record]],
) -> tuple[str, list[dict[str, Any]]]:
    """What would help most, in words, and what each way brings, with all else equal.

    What a way brings is a mean difference over seeds with its interval, for each doubling: of the
    pictures, of the time, or of the compute of a forward pass. Each is measured where a person
    would go on from: at the best model's family, its largest model, its longest duration.
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
    first = brings[0]
    reasons = "; ".join(
        f"{one['way']} brings {_points(one['mean'])} a doubling ({one['from']} to {one['to']})"
        for one in brings
    )
    if first["mean"].mean <= 0 or (
        first["mean"].low is not None and verdict(first["mean"]) != "better"
    ):
        return (
            f"nothing that was tried helps for certain: of {family}, {reasons}",
            brings,
        )
    return f"{first['way']}: of {family}, the most accurate family here, {reasons}", brings


def _points(mean: Mean) -> str:
    half = "" if mean.half is None else f" ± {100 * mean.half:.2f}"
    return f"{100 * mean.mean:+.2f}{half} points"


Brought = tuple[Mean, str, str]


def _of_data(own: Mapping[tuple[Any, ...], Sequence[Record]]) -> Brought | None:
    for key, runs in own.items():
        if key[3] == "half":
            all_of_it = own.get((*key[:3], "all"))
            gain = None if all_of_it is None else paired(all_of_it, runs, "top1")
            if gain is not None:
                return gain, "half of the pictures", "all of them"
    return None


def _of_time(own: Mapping[tuple[Any, ...], Sequence[Record]]) -> Brought | None:
    whole = {key: runs for key, runs in own.items() if key[3] == "all"}
    lines = {key[0]: max(_macs(r) for k, r in whole.items() if k[0] == key[0]) for key in whole}
    for line in sorted(lines, key=lines.__getitem__, reverse=True):
        runs = sorted((_compute(r), key) for key, r in whole.items() if key[0] == line)
        if len(runs) > 1:
            (less, before), (more, after) = runs[-2:]
            gain = paired(whole[after], whole[before], "top1")
            if gain is not None:
                return _per_doubling(gain, more / less), before[2], after[2]
    return None


def _of_size(own: Mapping[tuple[Any, ...], Sequence[Record]]) -> Brought | None:
    whole = {key: runs for key, runs in own.items() if key[3] == "all"}
    longest = sorted({key[2] for key in whole}, key=lambda d: float(d.split()[0]), reverse=True)
    for duration in longest:
        runs = sorted((_macs(r), key) for key, r in whole.items() if key[2] == duration)
        if len(runs) > 1 and runs[-1][0] > runs[-2][0]:
            (less, before), (more, after) = runs[-2:]
            gain = paired(whole[after], whole[before], "top1")
            if gain is not None:
                return _per_doubling(gain, more / less), before[0], after[0]
    return None


def _macs(runs: Sequence[Record]) -> float:
    return runs[0]["metrics"]["macs"]


def _per_doubling(gain: Mean, ratio: float) -> Mean:
    by = math.log2(ratio)
    low, high = (None if edge is None else edge / by for edge in (gain.low, gain.high))
    return Mean(gain.mean / by, low, high, gain.n)


def _table(
    cells: Mapping[tuple[Any, ...], tuple[float, Any]],
    front: Sequence[tuple[Any, ...]],
    groups: Mapping[tuple[Any, ...], Sequence[Record]],
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
        "Every model and duration, by compute: 6 x MACs x pictures, as in the paper's Table 6."
    )
    return Table(columns, rows, caption)


def _law_tables(
    laws: Mapping[str, PowerLaw], ratios: Sequence[tuple[str, str, Any]]
) -> list[Table]:
    found = []
    if laws:
        rows = [
            [
                family,
                f"{law.exponent:.3f}",
                f"{law.interval[0]:.3f} to {law.interval[1]:.3f}",
                f"{100 * law.scale:.1f}",
                f"{law.middle:.2e}",
                f"{law.span[0]:.1e} to {law.span[1]:.1e}",
            ]
            for family, law in laws.items()
        ]
        columns = ("family", "exponent b", "95 % interval", "error there, %", "at exaFLOPs")
        caption = (
            "Power laws of the error, error ~ compute^-b, on each family's front; bootstrap over "
            "groups and seeds."
        )
        found.append(Table((*columns, "measured"), rows, caption))
    if ratios:
        rows = [
            [
                f"{of} against {to}",
                f"{100 * r.accuracy:.1f}",
                f"{r.ratio:.2f}",
                f"{r.low:.2f} to {r.high:.2f}",
            ]
            for of, to, r in ratios
        ]
        columns = ("families", "at accuracy, %", "compute ratio", "95 % interval")
        caption = "How many times the compute of the second the first takes to be as accurate."
        found.append(Table(columns, rows, caption))
    return found


def _brings_table(brings: Sequence[Mapping[str, Any]]) -> list[Table]:
    if not brings:
        return []
    rows = [[b["way"], _points(b["mean"]), b["from"], b["to"], b["mean"].n] for b in brings]
    columns = ("way", "brings a doubling", "measured from", "to", "seeds")
    family = brings[0]["family"]
    return [Table(columns, rows, f"What each way brings, of {family}, with all else equal.")]


def _figure(
    cells: Mapping[tuple[Any, ...], tuple[float, Any]],
    front: Sequence[tuple[Any, ...]],
    laws: Mapping[str, PowerLaw],
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
    lines = lines[:7]
    lines.append(Line("Pareto front", [x for x, _ in best], [y for _, y in best]))
    every = sorted(compute for compute, _ in cells.values())
    svg = line_chart(
        [Line(lines[0].name, lines[0].x, lines[0].y, dots=True, joined=False), *lines[1:]],
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
        "Test accuracy against training compute, means over seeds; the line is the Pareto front.",
    )


def _front_words(
    front: Sequence[tuple[Any, ...]], cells: Mapping[tuple[Any, ...], tuple[float, Any]]
) -> list[str]:
    families = list(dict.fromkeys(key[1] for key in front))
    first, last = front[0], front[-1]
    return [
        f"The Pareto front begins with {first[0]} at {cells[first][0]:.2g} exaFLOPs "
        f"({100 * cells[first][1].mean:.2f} %) and ends with {last[0]} at {cells[last][0]:.2g} "
        f"({100 * cells[last][1].mean:.2f} %); on it are {', '.join(families)}."
    ]


def _ratio_words(ratios: Sequence[tuple[str, str, Any]]) -> list[str]:
    middle = [one for i, one in enumerate(ratios) if i % 3 == 1]
    return [
        f"At {100 * r.accuracy:.1f} % {of} takes {r.ratio:.2f} times the compute of {to} "
        f"(95 % interval {r.low:.2f} to {r.high:.2f})."
        for of, to, r in middle
    ]


KIND = Kind("scaling", "Accuracy and compute", define, show)
