"""The probe's page: one HTML file with the table, the curves, and what would cost what."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrail.evaluation.curve import Curve
from vitrail.evaluation.probe import Report, Row, gain_in_words
from vitrail.kit.chart import Line, line_chart
from vitrail.kit.page import Page, Section, Share, Value

LINES = 4  # of a chart


def write_page(
    path: Path | str,
    report: Report,
    *,
    data: str,
    measured_on: str,
    epochs: float,
    facts: Mapping[str, Any] | None = None,
    command: str = "",
    footer: str = "",
) -> None:
    """Write ``report.html``, whole or not at all.

    Args:
        path: the file.
        report: what was found.
        data: what the user called the data.
        measured_on: the split that accuracies are of, in words.
        epochs: of the fine-tuning whose cost is estimated.
        facts: further lines of the list at the end.
        command: what was typed.
        footer: a last line, such as the version.
    """
    best = max(report.rows, key=lambda row: (not row.untrained, row.linear.mean))
    page = Page(
        f"Probe of {data}",
        lead=report.recommendation.replace("+/-", "\N{PLUS-MINUS SIGN}"),
        headline=_headline(best, report),
        footer=footer,
    )
    _accuracies(page.section("Accuracy"), report, measured_on)
    _few_shot(page.section("Few images"), report.rows)
    _more_labels(page.section("More labels"), report.rows)
    _costs(page.section("Cost"), report.rows, epochs)
    _how(page.section("How it was measured"), report, facts or {}, command)
    page.save(path)


def duration(seconds: float) -> str:
    """Seconds as a person says them, to two figures."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return (
                f"{seconds / size:.2g} {unit}"
                if seconds < 100 * size
                else f"{seconds / size:.0f} {unit}"
            )
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def size_in_words(count: float) -> str:
    """Bytes as a person says them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _headline(best: Row, report: Report) -> list[tuple[Value, str]]:
    tiles: list[tuple[Value, str]] = [
        (Share(best.linear.mean), f"linear head, {best.name}"),
    ]
    if best.curve is not None:
        gain = _plus_minus(best.curve).removesuffix(" points")
        tiles.append((gain, f"points with {best.curve.forecast.labels:,} labels, twice as many"))
    tiles.append((duration(best.full_train_seconds), "to fine-tune it fully, estimated"))
    return tiles


def _accuracies(section: Section, report: Report, measured_on: str) -> None:
    for note in dict.fromkeys(report.notes):
        section.note(note)
    rows = []
    for row in report.rows:
        shots = row.fewshot.shots if row.fewshot else ()
        most = shots[-1] if shots else None
        few = Share(row.fewshot.mean[-1]) if row.fewshot else None
        low, high = row.linear.interval
        rows.append(
            (
                row.model + (" (random weights)" if row.untrained else ""),
                row.pixels,
                few if most else None,
                Share(row.knn.mean),
                Share(row.linear.mean),
                f"{100 * low:.1f} to {100 * high:.1f}",
            )
        )
    most = max((row.fewshot.shots[-1] for row in report.rows if row.fewshot), default=0)
    columns = ("model", "pixels", f"{most}-shot", "kNN", "linear", "95 % interval of linear")
    section.table(columns, rows, caption=f"Accuracy on {measured_on}.")
    section.text(
        "Nothing of the models is trained: their features are taken once, as they are. "
        "Fine-tuning usually ends above the linear head."
    )


def _few_shot(section: Section, rows: Sequence[Row]) -> None:
    drawn = [row for row in rows if row.fewshot is not None]
    if not drawn:
        section.text("The smallest class has too few images for any number of shots.")
        return
    charts = []
    for some in _fours(drawn):
        lines = []
        for row in some:
            few = row.fewshot
            assert few is not None
            spans = [few.interval(shot) for shot in few.shots]
            low, high = zip(*spans, strict=True)
            lines.append(Line(row.name, few.shots, few.mean.tolist(), True, "", low, high))
        title = "Accuracy over images a class"
        charts.append((title, _chart(lines, title, "images a class", log_x=_several(lines))))
    section.charts(charts)
    table = []
    shots = sorted({shot for row in drawn if row.fewshot for shot in row.fewshot.shots})
    for row in drawn:
        told = row.fewshot.to_json() if row.fewshot else {}
        cells = [Share(told[str(s)]["mean"]) if str(s) in told else None for s in shots]
        table.append((row.name, *cells))
    section.table(
        ("model", *(f"{shot}-shot" for shot in shots)),
        table,
        caption=(
            "Ridge regression in closed form on a few images a class, the mean over the seeds. "
            "Bands: 95 % bootstrap intervals over seeds and test images."
        ),
    )


def _more_labels(section: Section, rows: Sequence[Row]) -> None:
    drawn = [row for row in rows if row.curve is not None]
    if not drawn:
        section.text("No learning curve was measured.")
        return
    charts = []
    for some in _fours(drawn, 2):
        lines = []
        for row in some:
            curve = row.curve
            assert curve is not None
            low, high = curve.band.T.tolist()
            mean = curve.accuracy.mean(1).tolist()
            lines.append(Line(row.name, curve.sizes, mean, True, "", low, high))
            labels, means, lows, highs = zip(*curve.further, strict=True)
            # From the last point that was measured, not from the law's value there.
            means = (mean[-1], *means[1:])
            lines.append(Line("expected", labels, means, False, "", lows, highs))
        # The first line's x are the ticks: let them reach to twice the labels.
        ticks = [*lines[0].x, lines[1].x[-1]]
        gap = float("nan")
        first = lines[0]
        lines[0] = Line(
            first.name, ticks, [*first.y, gap], True, "", [*first.low, gap], [*first.high, gap]
        )
        title = "Accuracy over labels, and what twice as many would give"
        charts.append((title, _chart(lines, title, "labelled images", log_x=True)))
    section.charts(charts)
    table = []
    for row in drawn:
        assert row.curve is not None
        ahead = row.curve.forecast
        table.append(
            (
                row.name,
                row.curve.sizes[-1],
                Share(row.curve.accuracy[-1].mean()),
                ahead.labels,
                _plus_minus(row.curve),
                f"{100 * ahead.low:+.1f} to {100 * ahead.high:+.1f}",
            )
        )
    columns = ("model", "labels", "accuracy", "twice", "expected gain", "95 % interval")
    section.table(
        columns,
        table,
        caption=(
            "The ridge on nested halves of the labels, and a bending power law through the points. "
            "The gain is that of a head on these features; fine-tuning may gain more."
        ),
    )


def _costs(section: Section, rows: Sequence[Row], epochs: float) -> None:
    table = [
        (
            row.name,
            f"{row.parameters / 1e6:.3g} M",
            row.macs / 1e9,
            _rate(row.images_per_second),
            duration(row.full_train_seconds),
            size_in_words(row.full_train_bytes),
        )
        for row in rows
    ]
    columns = ("model", "parameters", "GMACs", "images/s", "fine-tuning", "memory")
    section.table(
        columns,
        table,
        caption=(
            f"Images a second are those of the feature extraction on this machine. Fine-tuning is "
            f"estimated from it for {epochs:g} epochs: three forward passes a step, and loading. "
            "Memory is that of a float32 step with AdamW."
        ),
    )


def _how(section: Section, report: Report, facts: Mapping[str, Any], command: str) -> None:
    listed: dict[str, Any] = dict(facts)
    for row in report.rows:
        for note in row.notes:
            listed[row.name] = "; ".join(row.notes) or note
    section.facts(listed)
    if command:
        section.code(command)


def _chart(lines: Sequence[Line], title: str, x_label: str, log_x: bool) -> str:
    return line_chart(
        lines, title=title, x_label=x_label, percent=True, log_x=log_x, size=(560, 300)
    )


def _plus_minus(curve: Curve) -> str:
    return gain_in_words(curve).replace("+/-", "\N{PLUS-MINUS SIGN}")


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _several(lines: Sequence[Line]) -> bool:
    return len(lines[0].x) > 1


def _fours(rows: Sequence[Row], most: int = LINES) -> Iterator[Sequence[Row]]:
    return (rows[i : i + most] for i in range(0, len(rows), most))
