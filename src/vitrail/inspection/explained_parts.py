"""The section on explanations: each over its picture, with the scores that say what it is worth.

What is drawn is what is scored: the mean heat of each patch. Patches are deleted to grey and
inserted into a blurred picture, as RISE's authors do (Petsiuk et al., 2018).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from vitrail.inspection.attention_parts import drawable, named
from vitrail.inspection.figures import Figure, fitted, mosaic, show, tile_centres
from vitrail.inspection.pictures import Picture, Pictures, as_input, overlaid, told_answer
from vitrail.inspection.places import Places
from vitrail.inspection.relevance import explain, methods_of, predicted, why_unexplained
from vitrail.inspection.scores import (
    Curves,
    curves,
    patch_means,
    patch_of,
    patch_order,
    random_curves,
)
from vitrail.inspection.sections import Part
from vitrail.kit.chart import Line, line_chart
from vitrail.kit.page import Picture as Pane
from vitrail.kit.page import Section
from vitrail.models.base import ImageClassifier

METHODS = ("relevance", "rollout", "attention", "gradient", "grad_cam")
WITHOUT_ATTENTION = ("gradient", "smooth_gradient", "integrated_gradients", "grad_cam")
NAMES = {
    "relevance": "attention x gradient",
    "rollout": "rollout",
    "attention": "last attention",
    "gradient": "gradient",
    "smooth_gradient": "smooth gradient",
    "integrated_gradients": "integrated gradients",
    "grad_cam": "Grad-CAM",
    "random": "random order",
}
BASELINES = {"deletion": "grey", "insertion": "blur"}
STEPS = 10  # of a curve
DRAWS = 1  # random orders of each picture
COLORS = ("#0b63a5", "#c2500a", "#00795c", "#a1447f", "#876a00", "#4a4a4a")  # as on the page
STYLES = ("-", "--", "-.", (0, (5, 1.5, 1, 1.5, 1, 1.5)), (0, (9, 2)), ":")
TILE = 160  # pixels of a picture in the sheet


@dataclass(frozen=True)
class _Explained:
    """One picture's explanations.

    Args:
        heats: for each method the mean heat of each patch, [rows columns].
        curves: for each mode and method the picture's curve, random order too.
        notes: the class that is explained, and whether it is right, in words.
    """

    picture: Picture
    heats: dict[str, np.ndarray]
    curves: dict[str, dict[str, Curves]]
    notes: list[str]


def explained_part(
    model: ImageClassifier,
    pictures: Pictures,
    most: int,
    progress: Callable[[int, int], None] | None = None,
) -> Part | None:
    """Every explanation of the first pictures, over them, beside its deletion and insertion scores.

    Args:
        model: in any mode; left in it.
        most: of how many pictures; none for no section.
        progress: called with how many are done, and of how many.
    """
    count = min(most, len(pictures))
    if not count:
        return None
    if why := why_unexplained(model):
        return Part("Why it says so", [why])
    has = methods_of(model)
    methods = METHODS if "relevance" in has else WITHOUT_ATTENTION
    methods = [name for name in methods if name in has]
    was_training = model.training
    model.eval()
    done = []
    try:
        for index in range(count):
            done.append(_explained(model, drawable(pictures[index]), methods, index))
            if progress is not None:
                progress(index + 1, count)
    finally:
        model.train(was_training)
    means = {
        mode: {
            name: _mean([one.curves[mode][name] for one in done]) for name in (*methods, "random")
        }
        for mode in BASELINES
    }
    places = _places(model, done[0])
    charts = [_chart(mode, means[mode], count) for mode in BASELINES]
    sheet = _sheet(done, methods, places)
    arrays = {
        f"explanations.{name}": np.stack([one.heats[name] for one in done]) for name in methods
    }
    for mode, found in means.items():
        arrays |= {
            f"{mode}.{name}": np.stack(
                [one.curves[mode][name].probabilities[0].numpy() for one in done]
            )
            for name in found
        }
    summary = {
        name: {mode: round(float(means[mode][name].areas), 4) for mode in means}
        for name in (*methods, "random")
    }
    return Part(
        "Why it says so",
        [_what(model, methods, count)],
        [sheet, *charts],
        arrays,
        {"explanations": summary},
        lambda section: _fill(section, done, methods, places, summary),
        apart=[sheet.name],
    )


def _explained(
    model: ImageClassifier, picture: Picture, methods: Sequence[str], index: int
) -> _Explained:
    images = as_input(model, picture)
    classes = predicted(model, images)
    with torch.no_grad():
        chance = float(model(images).double().softmax(1)[0, classes[0]])
    patch = patch_of(model, (images.shape[-2], images.shape[-1]))
    heats, found = {}, {mode: {} for mode in BASELINES}
    for name in methods:
        heat = explain(model, images, name, classes)
        heats[name] = patch_means(heat, patch)[0].float().numpy()
        order = patch_order(heat, patch)
        for mode, baseline in BASELINES.items():
            found[mode][name] = curves(
                model, images, order, patch, mode, baseline, STEPS, classes, 16
            )
    for mode, baseline in BASELINES.items():
        words: dict[str, Any] = {"baseline": baseline, "steps": STEPS, "targets": classes}
        drawn = random_curves(model, images, patch, mode, DRAWS, index, batch_size=16, **words)
        found[mode]["random"] = drawn.curves
    number = int(classes[0])
    return _Explained(picture, heats, found, told_answer(picture, model.labels, (number, chance)))


def _mean(found: Sequence[Curves]) -> Curves:
    together = torch.cat([each.probabilities for each in found]).mean(0, keepdim=True)
    return Curves(found[0].mode, found[0].shares, together)


def _places(model: ImageClassifier, one: _Explained) -> Places:
    """Where the patches' centres lie in the model's input."""
    height, width = one.picture.seen.shape[:2]
    patch = patch_of(model, (height, width))
    centres = []
    for side, of in ((height, patch[0]), (width, patch[1])):
        starts = np.arange(0, side, of)
        centres.append((starts + np.minimum(starts + of, side)) / 2)
    return Places(centres[0], centres[1])


def _what(model: ImageClassifier, methods: Sequence[str], count: int) -> str:
    size = model.preprocessing.size
    high, wide = patch_of(model, size)
    first = f"the first {count} pictures" if count != 1 else "the first picture"
    told = (
        f"What the model's answer hangs on, by several explanations of {first}, "
        "each of the class that the model gives. Whether an explanation is right is measured: "
        f"patches of {high} x {wide} pixels turn grey, those "
        "first that it holds for the most relevant, and the class's probability is followed "
        "(deletion: the lower the area under that curve, the better); or they appear in a blurred "
        "picture (insertion: the higher the better). An explanation that does no better than "
        "random order says nothing."
    )
    if "relevance" in methods:
        told += (
            " Attention x gradient (Chefer, Gur and Wolf, 2021) takes of every layer what raises "
            "the class and follows it back to the picture; rollout and the last layer's attention "
            "know no class."
        )
    return told


def _fill(
    section: Section,
    done: Sequence[_Explained],
    methods: Sequence[str],
    places: Places,
    summary: dict[str, dict[str, float]],
) -> None:
    rows = [
        (NAMES[name], summary[name]["deletion"], summary[name]["insertion"])
        for name in (*methods, "random")
    ]
    caption = (
        f"Areas, the mean over {len(done)} picture{'s' * (len(done) != 1)}; of deletion the lower "
        "is better, of insertion the higher. More pictures (--explain) say more."
    )
    section.table(("explanation", "deletion", "insertion"), rows, caption)
    for one in done:
        key = one.picture.key
        panes = [Pane([one.picture.original], [key], named(one.picture), one.notes)]
        for name in methods:
            drawn = overlaid(one.picture, one.heats[name], places)
            scores = [
                f"{mode} {float(one.curves[mode][name].areas):.3f} "
                f"(random {float(one.curves[mode]['random'].areas):.3f})"
                for mode in BASELINES
            ]
            panes.append(Pane([drawn], [f"{NAMES[name]} over {key}"], NAMES[name], scores))
        section.gallery(panes)


def _chart(mode: str, means: dict[str, Curves], count: int) -> Figure:
    lines = [
        Line(NAMES[name], (100 * found.shares).tolist(), found.probabilities[0].tolist())
        for name, found in means.items()
    ]
    how = (
        "Patches turn grey, the most relevant first: the faster a curve falls, the better"
        if mode == "deletion"
        else "Patches appear in the blurred picture, the most relevant first: the faster a curve "
        "rises, the better"
    )
    title = f"{mode.capitalize()}: probability of the class by per cent of patches"
    svg = line_chart(lines, title=title, x_label="% of the patches", percent=True)
    caption = f"{how}. Mean over {count} picture{'s' * (count != 1)}."
    draw = partial(_draw_chart, lines=lines)
    return Figure(mode, title, caption, draw, (6.4, 4.0), svg=svg)


def _draw_chart(figure: Any, lines: Sequence[Line]) -> None:
    axes = figure.add_subplot()
    for line, color, style in zip(lines, COLORS, STYLES, strict=False):
        if line.name == NAMES["random"]:
            color, style = "#5b616b", ":"
        axes.plot(line.x, line.y, color=color, linestyle=style, linewidth=1.6, label=line.name)
    axes.set_xlabel("per cent of the patches")
    axes.set_ylabel("probability of the class")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dedad1", linewidth=0.7)
    axes.legend(frameon=False, fontsize=8)


def _sheet(done: Sequence[_Explained], methods: Sequence[str], places: Places) -> Figure:
    tiles: list[list[np.ndarray | None]] = []
    scores = []
    for one in done:
        drawn = [overlaid(one.picture, one.heats[name], places) for name in methods]
        tiles.append([fitted(each, TILE) for each in (one.picture.original, *drawn)])
        scores.append(
            [
                " / ".join(f"{float(one.curves[mode][name].areas):.2f}" for mode in BASELINES)
                for name in methods
            ]
        )
    sheet = mosaic(tiles)
    names = ["picture", *(NAMES[name] for name in methods)]
    draw = partial(_draw_sheet, sheet=sheet, names=names, scores=scores)
    caption = (
        "The mean heat of each patch, from its least (dark blue) to its greatest (yellow). On each "
        "its areas under the curves of deletion (lower is better) and insertion (higher is better)."
    )
    width = 1.35 * len(names)
    return Figure(
        "explanations",
        "Explanations and their scores",
        caption,
        draw,
        (width, width * sheet.shape[0] / sheet.shape[1] + 0.2),
    )


def _draw_sheet(
    figure: Any, sheet: np.ndarray, names: Sequence[str], scores: Sequence[Sequence[str]]
) -> None:
    axes = figure.add_subplot()
    show(axes, sheet, columns=(tile_centres(len(names), TILE), names))
    axes.xaxis.tick_top()
    across, down = (tile_centres(n, TILE) for n in (len(names), len(scores)))
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}
    for y, row in zip(down, scores, strict=True):
        for x, text in zip(across[1:], row, strict=True):
            axes.text(x, y + TILE / 2 - 4, text, fontsize=6.5, ha="center", va="bottom", bbox=box)
