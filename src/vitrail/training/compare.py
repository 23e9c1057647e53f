"""Several runs beside each other: one page and the same facts as plain data.

It reads what the runs recorded (`config.json`, `metrics.jsonl`, `checkpoints/run.json`) and
nothing else, so that a run that is still going, or was interrupted, can be compared as well.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.kit.chart import MOST, Line, line_chart
from vitrail.kit.errors import Error
from vitrail.kit.page import Page, Section, Share
from vitrail.kit.records import Records
from vitrail.training.display import duration
from vitrail.training.recorded import curve, flat, setting

MEASURES = {"top1": "top-1", "mean_average_precision": "mean average precision"}
ALWAYS_OWN = ("name",)  # of a recipe: what it is called, not what it does


@dataclass(frozen=True)
class Recorded:
    """What one run left behind.

    Args:
        name: to tell it by, short.
        folder: of the run.
        recipe, data, metrics, ledger: as in the model folder; empty where they are not known.
        records: of ``metrics.jsonl``.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    metrics: Mapping[str, Any]
    ledger: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The records of a kind, in order."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.of("done"))

    @property
    def steps(self) -> int:
        """Steps done."""
        return max((record["step"] for record in self.of("step")), default=0)

    @property
    def measure(self) -> str:
        """What it is watched by: ``top1``, or ``mean_average_precision`` of several labels."""
        found = [*self.of("eval"), *self.metrics.values()]
        return next(
            (name for one in found for name in MEASURES if one.get(name) is not None), "top1"
        )

    @property
    def best(self) -> float | None:
        """The best `measure` on validation."""
        found = [record.get(self.measure) for record in self.of("eval")]
        return max((figure for figure in found if figure is not None), default=None)

    def last(self, kind: str, field: str) -> float | None:
        """The last number of a field, or None."""
        found = [record[field] for record in self.of(kind) if record.get(field) is not None]
        return found[-1] if found else None

    @property
    def score(self) -> float | None:
        """`measure` at the end: on test, else on validation; None for a run without."""
        found = [self.metrics.get(split, {}).get(self.measure) for split in ("test", "val")]
        return next((figure for figure in found if figure is not None), None)

    @property
    def images(self) -> int | None:
        """Pictures seen in training."""
        if self.ledger.get("images") is not None:
            return self.ledger["images"]
        size = self.recipe.get("batch_size")
        return None if size is None else size * self.steps

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "finished": self.finished,
            "steps": self.steps,
            "images": self.images,
            "measure": self.measure,
            "score": self.score,
            "best_val_score": self.best,
            "top1": self.score if self.measure == "top1" else None,
            "best_val_top1": self.best if self.measure == "top1" else None,
            "loss": self.last("step", "loss"),
            "val_loss": self.last("eval", "loss"),
            "metrics": dict(self.metrics),
            "ledger": dict(self.ledger),
        }


def open_run(folder: Path | str, name: str) -> Recorded:
    """What a run left in its folder.

    Raises:
        Error: there is no run.
    """
    folder = Path(folder)
    records = list(Records(folder / "metrics.jsonl").read())
    if not records:
        raise Error(f"{folder} holds no run: there is no metrics.jsonl with records in it")
    about: Mapping[str, Any] = {}
    with suppress(OSError, ValueError, KeyError):
        about = json.loads((folder / "config.json").read_text())["vitrail"]
    recipe = about.get("recipe", {})
    if not recipe:  # not finished yet
        with suppress(OSError, ValueError, KeyError):
            recipe = json.loads((folder / "checkpoints" / "run.json").read_text())["recipe"]
    return Recorded(
        name=name,
        folder=folder,
        recipe=recipe,
        data=about.get("data", {}),
        metrics=about.get("metrics", {}),
        ledger=about.get("ledger", {}),
        records=records,
    )


def open_runs(folders: Sequence[Path | str]) -> list[Recorded]:
    """Several runs, named by what tells their folders apart.

    Raises:
        Error: fewer than two, more than a chart can hold, one of them twice, or no run.
    """
    if len(folders) < 2:
        raise Error("give at least two runs to compare")
    if len(folders) > MOST:
        raise Error(f"at most {MOST} runs can be told apart in a chart, not {len(folders)}")
    resolved = [Path(folder).resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise Error("the same run is given twice")
    return [open_run(f, name) for f, name in zip(folders, short_names(resolved), strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Folders without the beginning and the end that all of them share."""
    parts = [path.parts for path in paths]
    first = _alike(parts)
    last = _alike([p[:first:-1] for p in parts])
    return ["/".join(p[first : len(p) - last]) or p[-1] for p in parts]


def _alike(rows: Sequence[Sequence[str]]) -> int:
    """How many of their first items all rows share."""
    same = [len(set(column)) == 1 for column in zip(*rows, strict=False)]
    return same.index(False) if False in same else len(same)


def differences(runs: Sequence[Recorded]) -> dict[str, list[Any]]:
    """The settings and facts of the data in which runs differ, with each run's value in order."""
    every = [
        {**flat(run.recipe), **{f"data: {k}": v for k, v in flat(_plain_data(run)).items()}}
        for run in runs
    ]
    names = dict.fromkeys(name for one in every for name in one)
    found = {name: [one.get(name) for one in every] for name in names}
    return {
        name: values
        for name, values in found.items()
        if name not in ALWAYS_OWN and any(value != values[0] for value in values)
    }


def compare(runs: Sequence[Recorded]) -> dict[str, Any]:
    """The comparison as plain JSON values: the runs, their differences, and the spread of seeds."""
    return {
        "runs": [run.to_json() for run in runs],
        "differences": differences(runs),
        "seeds": _over_seeds(runs),
    }


def write_comparison(path: Path | str, runs: Sequence[Recorded], footer: str = "") -> None:
    """Write the page, whole or not at all.

    Raises:
        Error: the file cannot be written.
    """
    ranked = [run for run in runs if run.score is not None]
    best = max(ranked, key=lambda run: run.score or 0.0, default=None)
    page = Page(
        f"{len(runs)} runs compared",
        lead=_lead(runs, best),
        headline=[(_percent(run.score), run.name) for run in ranked][:4],
        footer=footer,
    )
    _outcomes(page.section("Outcomes"), runs)
    _curves(page.section("Curves"), runs)
    _settings(page.section("What differs"), runs)
    _compute(page.section("Compute"), runs)
    section = page.section("The runs")
    section.facts({run.name: str(run.folder) for run in runs}, title="Folders")
    devices = {run.name: run.ledger["device"] for run in runs if "device" in run.ledger}
    if devices:
        section.facts(devices, title="Devices")
    page.save(path)


def _lead(runs: Sequence[Recorded], best: Recorded | None) -> str:
    if best is None:
        return "None of these runs has measured its accuracy at its end yet."
    if len({run.measure for run in runs}) > 1:
        return "They are measured differently, since images have one label here and several there."
    seeds, measure = _over_seeds(runs), MEASURES[best.measure]
    if seeds is not None:
        return (
            f"They differ in nothing but the seed: {100 * seeds['mean']:.2f} % {measure} on "
            f"average, with a deviation of {100 * seeds['deviation']:.2f} points."
        )
    open_ones = sum(not run.finished for run in runs)
    rest = f" {open_ones} of them did not come to its end yet." if open_ones else ""
    score = f"{100 * (best.score or 0):.2f} % {measure}"
    return f"{best.name} is the best at the end, with {score}.{rest}"


def _outcomes(section: Section, runs: Sequence[Recorded]) -> None:
    rows = []
    for run in runs:
        test, val = (run.metrics.get(split, {}).get(run.measure) for split in ("test", "val"))
        rows.append(
            (
                run.name,
                _share(test),
                _share(val),
                _share(run.best),
                run.last("step", "loss"),
                run.last("eval", "loss"),
                run.steps,
                "yes" if run.finished else "no",
            )
        )
    measures = [MEASURES[name] for name in dict.fromkeys(run.measure for run in runs)]
    columns = ("run", "test", "validation", "best on validation")
    columns += ("training loss", "validation loss", "steps", "finished")
    said = f"The final weights' {' or '.join(measures)}, and the last losses that were recorded."
    section.table(columns, rows, said)


def _curves(section: Section, runs: Sequence[Recorded]) -> None:
    section.text("Each line is a run; a ring marks its best point on validation.")
    charts: list[tuple[str, str, str, bool, str]] = [
        *(
            (f"{words[0].upper()}{words[1:]} on validation", "eval", name, True, "highest")
            for name, words in MEASURES.items()
        ),
        ("Loss on validation", "eval", "loss", False, "lowest"),
        ("Training loss", "step", "loss", False, ""),
        ("Learning rate", "step", "lr", False, ""),
    ]
    drawn = []
    for title, kind, field, percent, best in charts:
        lines = [curve(run.name, run.of(kind), field, best) for run in runs]
        known = [line for line in lines if line is not None]
        if known:
            drawn.append((title, line_chart(known, title=title, percent=percent, size=(440, 280))))
    if _batch_sizes(runs) > 1:
        lines = [_over_images(run) for run in runs]
        known = [line for line in lines if line is not None]
        title = "The same by images seen"
        if known:
            svg = line_chart(known, title=title, x_label="images", percent=True, size=(440, 280))
            drawn.insert(1, (title, svg))
    if drawn:
        section.charts(drawn)
    else:
        section.text("There are no curves: no step was recorded.")


def _batch_sizes(runs: Sequence[Recorded]) -> int:
    return len({run.recipe.get("batch_size") for run in runs})


def _over_images(run: Recorded) -> Line | None:
    size = run.recipe.get("batch_size")
    line = curve(run.name, run.of("eval"), run.measure, "highest")
    if line is None or size is None:
        return None
    return Line(line.name, [x * size for x in line.x], line.y, dots=line.dots, best=line.best)


def _settings(section: Section, runs: Sequence[Recorded]) -> None:
    found = differences(runs)
    if not found:
        section.text("Nothing: the runs have the same settings and the same data.")
        return
    rows = [(name, *(setting(value) for value in values)) for name, values in found.items()]
    columns = ("setting", *(run.name for run in runs))
    section.table(columns, rows, "Settings and data in which the runs differ; all else is equal.")


def _compute(section: Section, runs: Sequence[Recorded]) -> None:
    figures: list[tuple[str, str, Callable[[Any], Any]]] = [
        ("time", "seconds", duration),
        ("exaFLOPs", "exaflops", lambda n: float(f"{n:.3g}")),
        ("TPUv3-core-days", "tpuv3_core_days", lambda n: float(f"{n:.3g}")),
        ("images a second, of the steps", "training_rate", lambda n: round(n)),
        ("MFU", "mfu", Share),
    ]
    rows = [
        (
            run.name,
            run.images,
            *(
                None if run.ledger.get(field) is None else words(run.ledger[field])
                for _, field, words in figures
            ),
        )
        for run in runs
    ]
    columns = ("run", "images seen", *(title for title, _, _ in figures))
    section.table(columns, rows, "What each run cost; a dash where it did not come to its end.")


def _over_seeds(runs: Sequence[Recorded]) -> dict[str, float] | None:
    """Mean and deviation of the score, where nothing but the seed differs."""
    scores = [run.score for run in runs]
    known = [score for score in scores if score is not None]
    if set(differences(runs)) - {"data: split_seed"} != {"seed"} or len(known) < len(scores):
        return None
    return {"mean": statistics.mean(known), "deviation": statistics.stdev(known)}


def _plain_data(run: Recorded) -> dict[str, Any]:
    return {k: v for k, v in run.data.items() if k not in ("unreadable", "skipped")}


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.2f}\N{NO-BREAK SPACE}%"


def _share(value: float | None) -> Share | None:
    return None if value is None else Share(value)
