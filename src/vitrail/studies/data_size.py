"""`study data-size`: how models compare as the training data grow (ViT paper, section 4.3).

Two modes, as the paper has two studies:

fixed   the same hyper-parameters for every model and size, one budget, early stopping: the best
        weights on validation are measured, by their accuracy and by few-shot linear accuracy
        (the paper's Figure 4).
tuned   weight decay, dropout and label smoothing are chosen for every model and size on validation
        pictures, and the model that learned with them is fine-tuned at a higher resolution with
        SGD (the paper's Figure 3).

Subsets are nested and hold as many pictures of every class; every model sees the same ones.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitrail.kit.chart import MOST, line_chart
from vitrail.kit.errors import Error, listing
from vitrail.models.base import height_width
from vitrail.models.zoo import FAMILIES, config_of, resolve
from vitrail.studies.definition import (
    TRIAL,
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
from vitrail.studies.gaps import answer_of
from vitrail.studies.grid import (
    bands,
    candidates,
    check_size,
    check_test,
    check_validation,
    check_words,
    curve,
    fixed_settings,
    grouped,
    lines_of,
    mean_of,
)
from vitrail.studies.presets import DATA_SIZE
from vitrail.studies.sides import fitting, side_for

SHOTS = (5, 10)
LOOKS = 10  # at validation, in a run of the fixed mode
PATIENCE = 4
GRID = {
    "optim.weight_decay": (0.01, 0.1, 0.3),
    "model.dropout": (0.0, 0.1),
    "target.label_smoothing": (0.0, 0.1),
}
MODES = ("fixed", "tuned")
OF_THE_TRAINING = ("optim.", "schedule.", "model.")  # settings that a fine-tuning has of its own
FINETUNE_SHARE = 10  # the fine-tuning sees this part of the pictures that training saw


def define(ask: Ask) -> Definition:
    """The runs of a data-size study.

    Raises:
        Error: an unknown mode, preset or model, or a size that the data do not have, no pictures
            to choose by or to measure on, or what belongs to another kind.
    """
    check_words(ask, "data-size")
    ask = DATA_SIZE.applied(ask)
    mode = ask.mode or "fixed"
    if mode not in MODES:
        raise Error(f"--mode of data-size is {' or '.join(MODES)}, not {mode!r}")
    check_test(ask, "data-size")
    check_validation(ask, "data-size")
    if len(ask.durations) > 1:
        raise Error("data-size trains with one budget: give one of --durations")
    models = candidates(ask, DATA_SIZE.models)
    sizes = _sizes(ask)
    duration = (ask.durations or (_budget(ask, sizes),))[0]
    points: list[Point] = []
    for one, size, seed in itertools.product(models, sizes, ask.all_seeds):
        common = {
            "line": one.label,
            "model": one.model,
            "config": one.config,
            "recipe": ask.recipe or "scratch",
            "images": size,
            "image_size": side_for(one, ask),
            "duration": duration,
            "seed": seed,
        }
        settings = {**fixed_settings(ask), **one.settings}
        if mode == "fixed":
            points.append(_fixed(one, size, seed, common, settings))
        else:
            given = {**ask.settings, **one.settings}
            points += _tuned(one, common, settings, given, first=seed == ask.first_seed)
    return Definition(
        kind="data-size",
        points=tuple(points),
        shots=SHOTS if mode == "fixed" else (),
        facts={"mode": mode, "sizes": sizes, "duration": duration},
    )


def _sizes(ask: Ask) -> list[int]:
    """The sizes, ascending; by default a tenth, a third and all of the pictures."""
    whole = ask.train_images
    given = ask.sizes or (max(ask.classes, whole // 10), max(ask.classes, whole // 3), whole)
    check_size(ask)
    return sorted({size or whole for size in given})


def _budget(ask: Ask, sizes: Sequence[int]) -> str:
    """Pictures seen by every run: twenty times the largest size, at most half a million."""
    return f"{min(500_000, 20 * sizes[-1])} examples"


def _fixed(
    one: Candidate, size: int, seed: int, common: dict[str, Any], settings: dict[str, Any]
) -> Point:
    early = {"patience": PATIENCE, "eval_every": f"{100 // LOOKS} percent"}
    return Point(
        id=safe_id(one.label, size, f"seed{seed}"),
        **common,
        settings={**early, **settings},
        axes={"images": size},
        which="best",
    )


def _tuned(
    one: Candidate,
    common: dict[str, Any],
    settings: dict[str, Any],
    given: Mapping[str, Any],
    first: bool,
) -> list[Point]:
    """Trials with the first seed, the run that chooses among them, and its fine-tuning.

    What the user set is not tuned. In the fine-tuning it holds too, but for optimizer and schedule.
    """
    size, seed, grid = common["images"], common["seed"], _grid(one, given)
    name = safe_id(one.label, size)
    trials = [
        {**dict(zip(grid, values, strict=True))} for values in itertools.product(*grid.values())
    ]
    ids = tuple(f"{name}-trial{number}" for number in range(len(trials)))
    kept = {key: value for key, value in settings.items() if key not in grid}
    found = []
    if first:
        for id, trial in zip(ids, trials, strict=True):
            found.append(
                Point(
                    id=id,
                    **common,
                    settings={**kept, **trial},
                    axes={"images": size, **trial},
                    role=TRIAL,
                    test=False,
                )
            )
    learned = Point(
        id=f"{name}-seed{seed}",
        **common,
        settings=kept,
        axes={"images": size, "stage": "trained"},
        choose=ids,
    )
    own = height_width(common["image_size"] or config_of(one.model).image_size)
    value, unit = common["duration"].split()
    tuned = replace(
        learned,
        id=f"{name}-tuned-seed{seed}",
        recipe="vit_finetune",
        image_size=fitting(one, 1.5 * min(own)),
        duration=f"{max(1, math.ceil(float(value) / FINETUNE_SHARE))} {unit}",
        settings=_tuning(settings, given),
        axes={"images": size, "stage": "fine-tuned"},
        choose=(),
        start=learned.id,
    )
    return [*found, learned, tuned]


def _grid(one: Candidate, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is tuned of a model: what it has, and the user did not set."""
    fields = FAMILIES[resolve(one.model)[1].family][0].__dataclass_fields__
    grid: dict[str, Any] = {}
    for name, values in GRID.items():
        field = name.removeprefix("model.") if name.startswith("model.") else None
        there = field is None or (field in fields and field not in one.config)
        if there and name not in given:
            grid[name] = values
    if not grid:
        raise Error(
            f"--mode tuned has nothing left to choose for {one.label}: leave out some of what was "
            f"set of {listing(list(GRID))}, or take --mode fixed"
        )
    return grid


def _tuning(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a fine-tuning."""
    return {
        "batch_size": settings.get("batch_size", 128),
        "optim.lr": 0.01,
        "schedule.warmup": "5 percent",
        "augment.crop": settings.get("augment.crop", "inception_tf"),
        "augment.pad": settings.get("augment.pad", 0),
        "augment.flip": settings.get("augment.flip", 0.5),
        **{k: v for k, v in given.items() if not k.startswith(OF_THE_TRAINING)},
    }


def show(definition: Definition, records: Sequence[Record], intervals: bool) -> Shown:
    """Accuracy over the number of training pictures, and where one model passes another."""
    tuned = definition.facts["mode"] == "tuned"
    groups = grouped(records, "images", "stage")
    stage = "fine-tuned" if tuned else None
    lines, sizes = lines_of(definition), definition.facts["sizes"]
    measures = [("top1", "test accuracy")]
    measures += [(f"fewshot.{k}", f"{k}-shot linear accuracy") for k in definition.shots]
    tables, figures, facts = [], [], {}
    for name, title in measures:
        cells = {
            (line, size): mean
            for line, size in itertools.product(lines, sizes)
            if (mean := mean_of(groups.get((line, size, stage), ()), name, intervals)) is not None
        }
        if not cells:
            continue
        facts[name] = {
            line: {
                str(size): cells[line, size].to_json() for size in sizes if (line, size) in cells
            }
            for line in lines
        }
        rows = [
            [
                line,
                *(cells[line, size].words() if (line, size) in cells else None for size in sizes),
            ]
            for line in lines
        ]
        columns = ["model", *(f"{size:,} pictures" for size in sizes)]
        caption = _caption(title, definition, intervals)
        caption += _shots_from(records) if name != "top1" else ""
        tables.append(Table(columns, rows, caption))
        figures += _figures(name, title, lines, sizes, cells)
    if tuned:
        tables.append(_chosen(definition, records))
    else:
        tables.append(_stops(definition, groups))
    answer, compared = answer_of(lines, sizes, groups, stage)
    return Shown(answer, tables, figures, {**facts, "differences": compared})


def _caption(title: str, definition: Definition, intervals: bool) -> str:
    how = " with 95 % t intervals" if intervals else ""
    return f"{title[0].upper()}{title[1:]} in per cent: means over seeds{how}."


def _shots_from(records: Sequence[Record]) -> str:
    """Where few shots were drawn from, for a caption."""
    found = {
        r["metrics"].get("fewshot_from", "train") for r in records if "fewshot" in r["metrics"]
    }
    if found == {"val"}:
        return " The shots are validation pictures, which no run has learned from."
    return (
        " The shots are training pictures: the larger a run's subset is, the more of them it has "
        "learned from with their labels."
    )


def _figures(
    name: str, title: str, lines: Sequence[str], sizes: Sequence[int], cells: dict[Any, Any]
) -> list[Figure]:
    curves = []
    for line in lines[:MOST]:
        points = [(float(size), cells[line, size]) for size in sizes if (line, size) in cells]
        if points:
            curves.append(curve(line, points))
    if not curves:
        return []
    svg = line_chart(
        curves,
        title=f"{title} over training pictures",
        x_label="training pictures",
        percent=True,
        log_x=True,
        size=(520, 320),
    )
    words = f"{title[0].upper()}{title[1:]} over the number of training pictures{bands(curves)}."
    return [Figure(f"data-size-{name.replace('.', '-')}", svg, words)]


def _stops(definition: Definition, groups: dict[tuple[Any, ...], list[Record]]) -> Table:
    """When each model was at its best: the share of the budget, and what it had cost."""
    rows = []
    for (line, size, _), runs in groups.items():
        best = [r["metrics"]["best_step"] for r in runs if r["metrics"].get("best_step")]
        steps = [r["metrics"]["steps"] for r in runs if r["metrics"].get("steps")]
        flops = [r["metrics"]["exaflops"] for r in runs if r["metrics"].get("exaflops")]
        rows.append(
            [
                f"{line}, {size:,}",
                len(runs),
                round(sum(best) / len(best)) if best else None,
                round(sum(steps) / len(steps)) if steps else None,
                float(f"{sum(flops) / len(flops):.3g}") if flops else None,
            ]
        )
    columns = ("model and pictures", "runs", "best step", "steps done", "exaFLOPs")
    return Table(columns, rows, "Early stopping: the step that is measured, and what was spent.")


def _chosen(definition: Definition, records: Sequence[Record]) -> Table:
    """What was chosen for every model and size."""
    rows = []
    for record in records:
        chosen = record["metrics"].get("chosen")
        if chosen and record["seed"] == min(r["seed"] for r in records):
            axes = record["config"]["axes"]
            rows.append(
                [
                    f"{record['config']['line']}, {axes['images']:,}",
                    chosen.get("optim.weight_decay"),
                    chosen.get("model.dropout"),
                    chosen.get("target.label_smoothing"),
                ]
            )
    columns = ("model and pictures", "weight decay", "dropout", "label smoothing")
    words = (
        "Chosen on validation pictures, with the first seed. The fine-tuning has an optimizer and "
        "a schedule of its own: SGD at a rate of 0.01."
    )
    return Table(columns, rows, words)


KIND = Kind("data-size", "Accuracy and the number of training pictures", define, show)
