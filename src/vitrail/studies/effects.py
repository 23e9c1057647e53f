"""What an ablation shows: a table for each comparison, differences paired by seed, figures, words.

Of a variant with several rates the one counts that is best on validation, averaged over seeds,
among those with a figure for the most seeds; test pictures choose nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitrail.kit.chart import MOST, Line, interval_chart, line_chart
from vitrail.kit.errors import listing
from vitrail.studies.definition import Definition, Figure, Record, Shown, Table
from vitrail.studies.gaps import lead_in_words
from vitrail.studies.grid import (
    FINAL,
    alike,
    bands,
    curve,
    mean_of,
    paired,
    signed,
    verdict,
)
from vitrail.studies.statistics import Mean

SHAPES = ("depth", "width", "mlp_width", "patch")  # one chart over the compute, as in the paper


@dataclass(frozen=True)
class Row:
    """A variant with its runs.

    Args:
        label: of the variant.
        rate: the learning rate that counts.
        runs: its records, one a seed, as far as there are any.
        by_rate: those of every rate.
        cell, published: as of `comparisons.Variant`.
    """

    label: str
    rate: str
    runs: Sequence[Record]
    by_rate: Mapping[str, Sequence[Record]]
    cell: tuple[str, str] | None
    published: float | None

    def figure(self, name: str) -> Any:
        """A figure that is the same for every seed, such as ``macs``."""
        return alike(self.runs, name)


def show(definition: Definition, records: Sequence[Record], intervals: bool) -> Shown:
    """A table for each comparison, what each change is worth, and the answer in words."""
    by_id = {record["id"]: record for record in records}
    answer: list[str] = []
    tables: list[Table] = []
    figures: list[Figure] = []
    facts: dict[str, Any] = {}
    shapes: dict[str, tuple[list[Row], str]] = {}
    for told in definition.facts["comparisons"]:
        rows = [_row(variant, by_id) for variant in told["variants"]]
        measured = _measure(rows)
        if measured is None:
            continue
        name, words = measured
        tables.append(_table(told, rows, name, words, intervals))
        if any(row.cell for row in rows):
            tables.append(_crossed(told, rows, name, intervals))
        if told["name"] in SHAPES:
            shapes[told["title"]] = rows, name
        figures += _figures(told, rows, name, words)
        answer += _answer(told, rows, name)
        facts[told["title"]] = _facts(rows, name)
    if shapes:
        figures.append(_shapes(shapes))
    return Shown(answer or ["No run has been measured yet."], tables, figures, facts)


def _row(variant: Mapping[str, Any], by_id: Mapping[str, Record]) -> Row:
    runs = {
        rate: [by_id[id] for id in ids if id in by_id] for rate, ids in variant["rates"].items()
    }
    on_val = {rate: mean_of(found, FINAL, False) for rate, found in runs.items()}
    # A rate is not chosen for the seeds that happened to come through.
    fullest = max((mean.n for mean in on_val.values() if mean is not None), default=0)
    known = {
        rate: mean.mean for rate, mean in on_val.items() if mean is not None and mean.n == fullest
    }
    rate = max(known, key=known.__getitem__) if known else next(iter(runs))
    cell = variant["cell"]
    return Row(
        variant["label"],
        rate,
        runs[rate],
        runs,
        None if cell is None else (cell[0], cell[1]),
        variant["published"],
    )


def _measure(rows: Sequence[Row]) -> tuple[str, str] | None:
    """What accuracy there is: on test pictures, else on validation ones, which flatters sweeps."""
    for name, words in (("top1", "test"), (FINAL, "validation")):
        if any(mean_of(row.runs, name) is not None for row in rows):
            return name, words
    return None


def _table(
    told: Mapping[str, Any], rows: Sequence[Row], name: str, words: str, intervals: bool
) -> Table:
    swept = any(len(row.by_rate) > 1 for row in rows)
    published = any(row.published is not None for row in rows)
    cells = []
    for row in rows:
        mean, gap = mean_of(row.runs, name, intervals), _gap(row, rows[0], name)
        cells.append(
            [
                row.label,
                *([float(row.rate)] if swept else []),
                None if mean is None else mean.words(),
                None if gap is None else signed(gap, intervals),
                "the baseline" if row is rows[0] else verdict(gap) if intervals and gap else None,
                *([None if row.published is None else f"{100 * row.published:.1f}"] * published),
                row.figure("parameters"),
                None if row.figure("macs") is None else round(row.figure("macs") / 1e6, 1),
                0 if mean is None else mean.n,
            ]
        )
    columns = (
        "variant",
        *(["learning rate"] if swept else []),
        f"{words} accuracy, %",
        "difference",
        "",
        *(["published"] if published else []),
        "parameters",
        "million MACs",
        "seeds",
    )
    how = ", ± 95 % t intervals; differences are taken seed by seed" if intervals else ""
    chosen = " Learning rates are the best ones on validation pictures." if swept else ""
    caption = f"{told['asks']} {told['model']}; means over seeds{how}.{chosen} ({told['source']}.)"
    return Table(columns, cells, caption)


def _gap(row: Row, baseline: Row, name: str) -> Mean | None:
    return None if row is baseline else paired(row.runs, baseline.runs, name)


def _crossed(told: Mapping[str, Any], rows: Sequence[Row], name: str, intervals: bool) -> Table:
    """The same in the paper's form, two directions."""
    placed = {row.cell: row for row in rows if row.cell is not None}
    columns = list(dict.fromkeys(cell[1] for cell in placed))
    cells = []
    for first in dict.fromkeys(cell[0] for cell in placed):
        found = [placed.get((first, column)) for column in columns]
        means = [None if row is None else mean_of(row.runs, name, intervals) for row in found]
        cells.append([first, *(None if mean is None else mean.words() for mean in means)])
    return Table(["", *columns], cells, f"The same in the paper's form. {told['asks']}")


def _figures(told: Mapping[str, Any], rows: Sequence[Row], name: str, words: str) -> list[Figure]:
    found = []
    slug = told["title"].replace(" ", "-")
    if any(len(row.by_rate) > 1 for row in rows):
        curves = []
        for row in rows[:MOST]:
            means = {float(rate): mean_of(runs, name) for rate, runs in row.by_rate.items()}
            points = [(rate, mean) for rate, mean in means.items() if mean is not None]
            if points:
                curves.append(_shares(row.label, points))
        svg = line_chart(
            curves,
            title=f"{told['title']}: {words} accuracy over the learning rate",
            x_label="learning rate",
            percent=True,
            log_x=True,
            x_format="g",
            x_ticks=sorted({x for line in curves for x in line.x}),
        )
        caption = f"{told['title']}: {words} accuracy over the learning rate{bands(curves)}."
        found.append(Figure(f"ablation-{slug}-rates", svg, caption))
    gaps = [(row.label, _gap(row, rows[0], name)) for row in rows[1:]]
    drawn = [
        (label, 100 * gap.mean, gap.low and 100 * gap.low, gap.high and 100 * gap.high)
        for label, gap in gaps
        if gap is not None
    ]
    if drawn:
        svg = interval_chart(
            drawn,
            title=f"{told['title']}: differences to {rows[0].label}",
            x_label=f"points above {rows[0].label}",
        )
        bars = "; bars are 95 % t intervals" if any(low is not None for *_, low, _ in drawn) else ""
        caption = (
            f"{told['title']}: {words} accuracy less that of {rows[0].label}, seed by seed{bars}."
        )
        found.append(Figure(f"ablation-{slug}-differences", svg, caption))
    return found


def _shares(name: str, points: Sequence[tuple[float, Mean]]) -> Line:
    """A line whose band stays among shares: with two seeds an interval knows no such bounds."""
    line = curve(name, points)
    low, high = [max(0.0, y) for y in line.low], [min(1.0, y) for y in line.high]
    return replace(line, low=low, high=high)


def _shapes(shapes: Mapping[str, tuple[Sequence[Row], str]]) -> Figure:
    """Depth, widths and patches over what they cost, as in the paper's appendix D.2."""
    curves = []
    for title, (rows, name) in list(shapes.items())[:MOST]:
        points = [
            (row.figure("macs") / 1e6, mean)
            for row in rows
            if row.figure("macs") and (mean := mean_of(row.runs, name)) is not None
        ]
        if points:
            curves.append(_shares(title, points))
    svg = line_chart(
        curves,
        title="Accuracy over compute, by what is scaled",
        x_label="million multiply-adds a picture",
        percent=True,
        log_x=True,
        x_format=",.3g",
        x_ticks=sorted({x for line in curves for x in line.x}),
    )
    return Figure("ablation-shape", svg, "Accuracy over the compute of one picture.")


def _answer(told: Mapping[str, Any], rows: Sequence[Row], name: str) -> list[str]:
    """Who leads and by how much, and what a rate in common would have made of it."""
    baseline = rows[0]
    means = {row.label: mean_of(row.runs, name) for row in rows}
    known = {label: mean.mean for label, mean in means.items() if mean is not None}
    if not known:
        return []
    best = max(known, key=known.__getitem__)
    of = {row.label: row.runs for row in rows if row.label in known}
    said = [f"{told['title']}: {lead_in_words(best, known, of, name)}."]
    for row in rows[1:]:
        gap = _gap(row, baseline, name)
        if gap is None:
            continue
        sure = {"better": "better", "worse": "worse"}.get(verdict(gap), "not told apart")
        text = f"{row.label} against {baseline.label}: {signed(gap)} points, {sure}"
        shared = row.by_rate.get(baseline.rate)
        if shared and row.rate != baseline.rate:
            at_one = paired(shared, baseline.runs, name)
            if at_one is not None:
                text += (
                    f", each at its own rate ({row.rate} and {baseline.rate}); both at "
                    f"{baseline.rate} it would be {signed(at_one)}"
                )
        said.append(f"{text}.")
    ends = [f"{row.label} ({row.rate})" for row in rows if _at_the_end(row)]
    if ends:
        said.append(
            f"At the end of the learning rates that were tried, so that a wider sweep may find a "
            f"better one: {listing(ends, 6)}."
        )
    return said


def _at_the_end(row: Row) -> bool:
    """Whether the rate that counts is the least or the greatest of several."""
    rates = sorted(row.by_rate, key=float)
    return len(rates) > 1 and row.rate in (rates[0], rates[-1])


def _facts(rows: Sequence[Row], name: str) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        gap, mean = _gap(row, rows[0], name), mean_of(row.runs, name)
        found.append(
            {
                "variant": row.label,
                "rate": float(row.rate),
                "measure": name,
                "accuracy": mean and mean.to_json(),
                "difference": gap and gap.to_json(),
                "verdict": None if gap is None else verdict(gap),
                "published": row.published,
                "rates": {
                    rate: each and each.to_json()
                    for rate, runs in row.by_rate.items()
                    for each in [mean_of(runs, name)]
                },
            }
        )
    return found
