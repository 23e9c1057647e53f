"""What a study leaves for people: figures, tables and `report.html`, from records alone.

report.html       self-contained
figures/*.svg     each figure for itself
tables.md         the tables as Markdown, to be put into a text
summary.json      the answer and the means as JSON
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail import __version__
from vitrail.kit.errors import Error
from vitrail.kit.page import Page, show
from vitrail.studies.definition import RUN, Definition, Kind, Record, Shown, Table
from vitrail.studies.folder import RECORDS, StudyFolder, replace_whole
from vitrail.studies.grid import FINAL
from vitrail.studies.statistics import check_intervals

COLORS = {
    "quiet": "#5b616b",
    "line": "#d9d6ce",
    "font": "sans-serif",
}


def seeds_of(definition: Definition) -> int:
    """How many seeds a study has."""
    return len({point.seed for point in definition.points if point.role == RUN})


def read_records(folder: StudyFolder) -> list[Record]:
    """The records that figures are drawn from.

    The runs' own files where they are; else `records.jsonl`, of a study that was copied without
    them.

    Raises:
        Error: there are none, or a line is no record.
    """
    path = folder.path / RECORDS
    records = folder.records() if any(folder.parts.glob("*.json")) else []
    if records:
        return records
    if not path.exists():
        raise Error(f"{folder.path} has no records yet: do its runs first, without --figures-only")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            records.append(_record(line, path, number))
    if not records:
        raise Error(
            f"{path} is empty: no run of the study is finished, so there is nothing to show"
        )
    return records


def _record(line: str, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
        if all(key in record for key in ("id", "config", "seed", "metrics")):
            return record
    except (ValueError, TypeError):
        pass
    raise Error(f"{path}: line {number} is no record of a run")


def write_report(
    folder: StudyFolder, kind: Kind, *, intervals: bool | None = None, command: str = ""
) -> dict[str, Any]:
    """Draw everything from the records, and return the summary.

    Args:
        intervals: whether means have 95 % t intervals; None where there are several seeds.

    Raises:
        Error: no records, or intervals over one seed.
    """
    definition = folder.definition()
    records = read_records(folder)
    if intervals:
        check_intervals(seeds_of(definition))
    with_intervals = seeds_of(definition) > 1 if intervals is None else intervals
    shown = kind.show(definition, records, with_intervals)
    summary = summarise(definition, records, shown)
    figures = folder.path / "figures"
    figures.mkdir(exist_ok=True)
    for figure in shown.figures:
        replace_whole(figures / f"{figure.name}.svg", standalone(figure.svg))
    replace_whole(folder.path / "tables.md", markdown(shown))
    replace_whole(folder.path / "summary.json", json.dumps(summary, indent=1) + "\n")
    page = _page(kind, definition, records, shown, command)
    replace_whole(folder.path / "report.html", page.html())
    return summary


def summarise(definition: Definition, records: Sequence[Record], shown: Shown) -> dict[str, Any]:
    """The answer and the figures as plain JSON values."""
    return {
        "kind": definition.kind,
        "runs": len(definition.points),
        "done": len(records),
        "failed": [r["id"] for r in records if r["metrics"].get("failed")],
        "seeds": seeds_of(definition),
        "exaflops": sum(r["metrics"].get("exaflops") or 0.0 for r in records),
        "seconds": sum(r["metrics"].get("seconds") or 0.0 for r in records),
        "answer": list(shown.answer),
        "figures": [f"figures/{figure.name}.svg" for figure in shown.figures],
        **shown.facts,
    }


def standalone(svg: str) -> str:
    """An inline ``<svg>`` as a file of its own: with its namespaces, and colours of its own."""
    svg = re.sub(r"var\(--font, [^)]*\)", COLORS["font"], svg)
    svg = re.sub(r"var\(--[\w-]+, (#[0-9a-f]{6})\)", r"\1", svg)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = svg.replace("<svg", f"<svg {names}", 1)
    box = re.search(r'viewBox="([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)"', svg)
    if box is None:
        return svg
    paper = f'<rect width="{box[3]}" height="{box[4]}" fill="#ffffff"/>'
    end = svg.index(">", svg.index("<svg")) + 1
    return svg[:end] + paper + svg[end:] + "\n"


def markdown(shown: Shown) -> str:
    """The answer and the tables as Markdown."""
    parts = ["\n".join(f"{sentence[0].upper()}{sentence[1:]}" for sentence in shown.answer)]
    parts += [f"{table.caption}\n\n{markdown_table(table)}" for table in shown.tables]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table as Markdown."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(show(cell).replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join(["---"] * len(table.columns)) + "|"
    return "\n".join([line(table.columns), rule, *(line(row) for row in table.rows)])


def _page(
    kind: Kind, definition: Definition, records: Sequence[Record], shown: Shown, command: str
) -> Page:
    spent = sum(r["metrics"].get("exaflops") or 0.0 for r in records)
    page = Page(
        kind.title,
        lead=shown.answer[0][0].upper() + shown.answer[0][1:],
        headline=[
            (f"{len(records)} of {len(definition.points)}", "runs"),
            (seeds_of(definition), "seeds"),
            (f"{spent:.2g}", "exaFLOPs in all"),
        ],
        footer=f"Vitrail {__version__}",
    )
    section = page.section("The answer")
    section.text(*(f"{sentence[0].upper()}{sentence[1:]}" for sentence in shown.answer))
    failed: dict[str, list[str]] = {}
    for record in records:
        if why := record["metrics"].get("failed"):
            failed.setdefault(why, []).append(record["id"])
    for why, ids in failed.items():
        section.note(f"Left out, since {why}: {', '.join(ids)}.")
    if len(records) < len(definition.points):
        missing = len(definition.points) - len(records)
        section.note(f"{missing} runs are not done yet: the figures are of those that are.")
    if shown.figures:
        section = page.section("Figures")
        section.charts([(figure.caption, figure.svg) for figure in shown.figures])
    for number, table in enumerate(shown.tables):
        section = page.section("Tables") if not number else section
        section.table(table.columns, table.rows, table.caption)
    _runs(page.section("Every run"), records)
    if command:
        page.section("The command").code(command)
    return page


def _runs(section: Any, records: Sequence[Record]) -> None:
    rows = [
        [
            r["id"],
            _percent(r["metrics"].get("top1")),
            _percent(_validation(r)),
            r["metrics"].get("images"),
            f"{r['metrics'].get('exaflops') or 0:.2g}",
            round(r["metrics"].get("seconds") or 0),
        ]
        for r in records
    ]
    columns = ("run", "test, %", "validation, %", "pictures seen", "exaFLOPs", "seconds")
    section.details(f"{len(rows)} runs").table(columns, rows, "One row a run, seeds apart.")


def _validation(record: Record) -> float | None:
    """The accuracy on validation of the weights that were measured: what trials are chosen by."""
    metrics = record["metrics"]
    best, final = metrics.get("val_top1"), metrics.get(FINAL)
    return best if record["config"].get("which") == "best" or final is None else final


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)
