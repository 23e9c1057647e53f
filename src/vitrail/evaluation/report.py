"""The page of an evaluation: one HTML file for the person who has to trust the model.

It says how good the model is and how sure one can be of that, whether its probabilities can be
believed, on which images it is worst, how it stands damage and other sizes, and where it is wrong.
What a training run's page shows too is in `blocks`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitrail.evaluation.accuracy import Accuracy
from vitrail.evaluation.blocks import (
    accuracy_blocks,
    mistake_blocks,
    multi_label_blocks,
    multi_label_tiles,
    percent,
    span,
)
from vitrail.evaluation.calibration import Calibration, Reading
from vitrail.evaluation.compare import Comparison
from vitrail.evaluation.findings import Findings
from vitrail.evaluation.label_sets import AnyOf
from vitrail.evaluation.multilabel import MultiLabel
from vitrail.evaluation.robustness import AtSize, Robustness
from vitrail.evaluation.slices import Slices
from vitrail.kit.chart import Line, line_chart
from vitrail.kit.page import Page, Section, Share

WORST = 12  # slices in the open table
GROUPS = {  # of ImageNet-C, as its paper groups them
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


def evaluation_page(
    findings: Findings, *, model: str, split: str, parameters: int | None = None, footer: str = ""
) -> Page:
    """The page of an evaluation, to be added to and saved.

    Args:
        model: its name or folder.
        split: what it was measured on, such as "test".
        parameters: how many the model has.
        footer: a last line, such as the version.
    """
    result = findings.accuracy
    page = Page(
        f"{model}: {percent(result.top1)} on {split} images",
        lead=(
            f"Measured on {result.n:,} images. The 95 % interval, by bootstrap over images: "
            f"{span(findings.intervals['top1'])}."
        ),
        headline=_headline(findings, parameters),
        footer=footer,
    )
    section = page.section("Accuracy")
    for note in findings.notes:
        section.note(note)
    _figures(section, findings)
    accuracy_blocks(section, result)
    if findings.real is not None:
        _label_sets(page.section("Label sets"), findings.real, result)
    if findings.comparison is not None:
        _comparison(page.section("Comparison"), findings.comparison)
    _calibration(page.section("Calibration"), findings.calibration)
    _slices(page.section("Slices"), findings.slices, result)
    if findings.robustness is not None:
        _robustness(page.section("Corruptions"), findings.robustness)
    if findings.sizes:
        _sizes(page.section("Resolution"), findings.sizes)
    mistake_blocks(page.section("Mistakes"), result)
    return page


def multi_label_page(result: MultiLabel, *, model: str, split: str, footer: str = "") -> Page:
    """The page of an evaluation on images with several labels."""
    score = result.mean_average_precision
    page = Page(
        f"{model}: mean average precision {'-' if score is None else percent(score)}",
        lead=f"Measured on {result.n:,} {split} images, each with any number of labels.",
        headline=multi_label_tiles(result),
        footer=footer,
    )
    multi_label_blocks(page.section("Classes"), result)
    if result.skipped:
        page.section("Files left out").table(
            ("file", "reason"), result.skipped, "Files that could not be read."
        )
    return page


# -- what each part says -------------------------------------------------------------------------


def _headline(findings: Findings, parameters: int | None) -> list[tuple[Any, str]]:
    result = findings.accuracy
    tiles: list[tuple[Any, str]] = [(percent(result.top1), "top-1 accuracy")]
    if len(result.classes) > 5:
        tiles.append((percent(result.top5), "top-5 accuracy"))
    tiles.append((percent(findings.calibration.served.ece), "calibration error"))
    if findings.robustness is not None:
        tiles.append((percent(1 - findings.robustness.mean_error), "accuracy under corruptions"))
    if parameters:
        millions = parameters >= 1e6
        tiles.append(
            (f"{parameters / 1e6:.3g} million" if millions else f"{parameters:,}", "parameters")
        )
    return tiles


def _figures(section: Section, findings: Findings) -> None:
    result = findings.accuracy
    rows: list[tuple[Any, ...]] = [
        ("top-1", Share(result.top1), span(findings.intervals["top1"], 2)),
        ("top-5", Share(result.top5), span(findings.intervals["top5"], 2)),
        ("macro F1", Share(findings.macro_f1), span(findings.intervals["macro_f1"], 2)),
    ]
    if len(result.classes) <= 5:
        del rows[1]
    if findings.auroc is not None:
        kind = "AUROC" if len(result.classes) == 2 else "AUROC, one against the rest"
        rows.append((kind, round(findings.auroc, 4), None))
    section.table(
        ("figure", "value", "95 % interval"),
        rows,
        "How far each figure would move if other images of the same kind had been drawn: "
        "bootstrap over images.",
    )
    if result.skipped:
        section.details(f"{len(result.skipped):,} files were left out").table(
            ("file", "reason"), result.skipped, "Files that could not be read."
        )


def _label_sets(section: Section, real: AnyOf, result: Accuracy) -> None:
    section.text(
        f"Counting an answer as right if it is any of the labels that people found in the image: "
        f"{percent(real.top1)} (95 %: {span((real.low, real.high))}), on the {real.n:,} images "
        f"with at least one such label; {real.left_out:,} have none. By the data's own single "
        f"labels it is {percent(result.top1)} on all {result.n:,}."
    )


def _comparison(section: Section, found: Comparison) -> None:
    section.text(found.sentence())
    section.table(
        ("model", "right", "top-1", "right alone"),
        [
            (found.first, found.both + found.only_first, Share(found.top1), found.only_first),
            (
                found.second,
                found.both + found.only_second,
                Share(found.against_top1),
                found.only_second,
            ),
        ],
        f"Both models on the same {found.n:,} images. Both are right on {found.both:,} and both "
        f"wrong on {found.neither:,}; {percent(found.same_answer, 1)} get the same answer.",
    )


def _calibration(section: Section, found: Calibration) -> None:
    served = found.served
    far = served.ece
    side = _side(served)
    section.text(
        f"Of the model's answers, how sure it is and how often it is right are {100 * far:.1f} "
        f"points apart on average (expected calibration error){side}."
    )
    if found.after is None:
        section.text(
            "No temperature is stored with these weights. To fit one on held-out images, and have "
            "predict and every other verb apply it:"
        )
        section.code("vitrail evaluate MODEL DATA --calibrate")
    readings = [("as they are", found.before)]
    if found.after is not None:
        readings.append((f"temperature {found.after.temperature:.3f}", found.after))
    section.table(
        ("probabilities", "ECE", "ECE, equal mass", "Brier", "NLL", "95 % interval of NLL"),
        [
            (
                name,
                Share(one.ece),
                Share(one.ece_equal_mass),
                one.brier,
                one.nll,
                f"{one.nll_interval[0]:.3f} to {one.nll_interval[1]:.3f}",
            )
            for name, one in readings
        ],
        "Lower is better throughout. ECE: 15 bins of confidence, of equal width or of equally "
        "many images. Brier: squared error over all classes, 0 to 2. NLL: nats.",
    )
    lines = [Line("perfect", [0, 100], [0, 1])]
    lines += [
        Line(
            name,
            [100 * b.confidence for b in one.bins if b.n],
            [b.accuracy for b in one.bins if b.n],
            dots=True,
        )
        for name, one in readings
    ]
    chart = line_chart(
        lines,
        title="Reliability diagram",
        x_label="confidence, per cent",
        percent=True,
        size=(420, 300),
    )
    bars = line_chart(
        [
            Line(
                "share of images",
                [100 * b.confidence for b in served.bins if b.n],
                [b.n / sum(one.n for one in served.bins) for b in served.bins if b.n],
                dots=True,
            )
        ],
        title="How sure the model is",
        x_label="confidence, per cent",
        percent=True,
        size=(420, 300),
    )
    section.charts(
        [
            ("Accuracy by confidence: below the line is too sure", chart),
            ("Images by confidence", bars),
        ]
    )


def _side(reading: Reading) -> str:
    """Whether it is too sure on the whole, or too unsure."""
    n = sum(one.n for one in reading.bins)
    gap = sum((one.confidence - one.accuracy) * one.n for one in reading.bins if one.n) / n
    if abs(gap) < 0.005:
        return ""
    return ": it is too sure on the whole" if gap > 0 else ": it is too unsure on the whole"


def _slices(section: Section, found: Slices, result: Accuracy) -> None:
    if not found.slices:
        section.text(f"There are no slices of at least {found.least} images to be judged.")
        return
    worse = [one for one in found.slices if one.worse]
    named = "; ".join(f"{one.kind} {one.name}: {percent(one.top1, 1)}" for one in worse[:3])
    section.text(
        f"{len(worse)} of {found.looked_at} slices are worse than the whole "
        f"({percent(result.top1, 1)}) beyond chance" + (f": {named}." if named else ".")
    )
    few = f" {found.too_few:,} slices of fewer than {found.least} images were not judged."
    columns = ("slice", "images", "top-1", "95 % interval", "p", "worse")
    rows = [
        (
            f"{one.kind}: {one.name}",
            one.n,
            Share(one.top1),
            span((one.low, one.high)),
            float(f"{one.p:.2g}"),
            one.worse,
        )
        for one in found.slices
    ]
    section.table(
        columns,
        rows[:WORST],
        f"By the upper end of their interval, lowest first. Intervals and p-values are corrected "
        f"for looking at {found.looked_at}.{few if found.too_few else ''}",
    )
    if len(rows) > WORST:
        section.details(f"The other {len(rows) - WORST:,} slices").table(
            columns, rows[WORST:], "Slices, continued."
        )


def _robustness(section: Section, found: Robustness) -> None:
    section.text(
        f"Top-1 falls from {percent(found.clean)} to {percent(1 - found.mean_error)} on average "
        f"over {len(found.rows)} corruptions: the mean corruption error is "
        f"{percent(found.mean_error, 1)} (95 %: {span((found.low, found.high))}), "
        f"{100 * found.relative_error:.1f} points more than on clean images. "
        f"Measured on {found.n:,} images."
    )
    section.text(
        "The corruptions follow ImageNet-C's definitions (Hendrycks and Dietterich, 2019) with "
        f"{found.table}'s severities, made on the fly at the model's own size; the errors are not "
        "divided by AlexNet's. Published figures are of published files: compare these only with "
        "figures made the same way."
    )
    if found.drawn_frost:
        section.note(
            "Frost lays drawn ice over the image: the photographs of the original are not shipped, "
            "so this row is not the published one."
        )
    rows = sorted(found.rows.items(), key=lambda row: float(np.mean(row[1])))
    section.table(
        ("corruption", *(f"severity {s}" for s in found.severities), "mean"),
        [
            (name.replace("_", " "), *map(Share, shares), Share(np.mean(shares)))
            for name, shares in rows
        ],
        "Top-1 by corruption and severity, the hardest first.",
    )
    lines = []
    for group, names in GROUPS.items():
        known = [found.rows[name] for name in names if name in found.rows]
        if known:
            y = [found.clean, *np.mean(known, 0).tolist()]
            lines.append(Line(group, [0, *found.severities], y, dots=True))
    section.charts(
        [
            (
                "Mean accuracy by severity (0 is clean)",
                line_chart(
                    lines,
                    title="Accuracy by severity",
                    x_label="severity",
                    percent=True,
                    size=(440, 280),
                ),
            )
        ]
    )


def _sizes(section: Section, sizes: Sequence[AtSize]) -> None:
    best = max(sizes, key=lambda one: one.top1)
    section.text(
        f"The same weights with images of other sizes, position tables resized. The best here is "
        f"{_size(best)}: {percent(best.top1)}. A size chosen on these images flatters a little."
    )
    section.table(
        ("size", "top-1", "95 % interval", "loss", "GMACs an image"),
        [
            (
                _size(one) + (" (the model's own)" if one.own else ""),
                Share(one.top1),
                span((one.low, one.high)),
                one.loss,
                None if one.macs is None else one.macs / 1e9,
            )
            for one in sizes
        ],
        "Accuracy by the size of the input.",
    )
    if len(sizes) > 1:
        line = Line("top-1", [max(s.size) for s in sizes], [s.top1 for s in sizes], dots=True)
        chart = line_chart([line], title="Accuracy by size", x_label="pixels", percent=True)
        section.charts([("Top-1 by size", chart)])


def _size(one: AtSize) -> str:
    height, width = one.size
    return f"{height}" if height == width else f"{height}x{width}"
