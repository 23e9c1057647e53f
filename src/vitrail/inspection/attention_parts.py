"""The sections on attention: how far it reaches, what reaches the head, and every map there is."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from vitrail.inspection.figures import Figure, fitted, mosaic, scaled, show, tile_centres
from vitrail.inspection.look import Looked, Shown
from vitrail.inspection.pictures import Picture, Pictures, evened, overlaid, told_answer
from vitrail.inspection.places import Layer
from vitrail.inspection.sections import Part
from vitrail.kit.chart import Line, heat_colors, line_chart
from vitrail.kit.page import Layered, Section
from vitrail.kit.page import Picture as Pane
from vitrail.models.base import ImageClassifier

TILE = 48  # pixels of a map in a mosaic
SIDE = 384  # pixels of a picture in a sheet
PER_SHEET = 4  # pictures
LEAST = 224  # pixels of the longer side of a picture that is drawn over; smaller ones are enlarged
LARGEST = 768  # and larger ones scaled down


def distance_part(looked: Looked) -> Part:
    """Mean attention distance and entropy, a dot for each head of each layer."""
    numbers = list(range(len(looked.layers)))
    alike = [float(layer.distances.mean()) for layer in looked.layers]
    most = [float(np.log(layer.keys.tokens)) for layer in looked.layers]
    over = f"averaged over {looked.images:,} picture{'s' * (looked.images != 1)}"
    staged = (
        " Layers of an earlier stage have finer grids, so layer numbers run through all stages: "
        + ", ".join(
            f"{i} is {layer.short}" for i, layer in enumerate(looked.layers) if _begins(looked, i)
        )
        + "."
        if looked.layers[-1].stage
        else ""
    )
    figures = [
        _dots(
            "attention_distance",
            "Mean attention distance",
            looked.distance,
            alike,
            "pixels",
            f"Each dot is one head: the distance between a patch and what it attends to, weighted "
            f"by attention, {over}. The line 'all keys alike' is what it would be if every key got "
            f"the same attention.{staged}",
        ),
        _dots(
            "attention_entropy",
            "Attention entropy",
            looked.entropy,
            most,
            "nats",
            f"Each dot is one head: 0 where each query looks at one key alone, the line 'all "
            f"keys alike' where it looks at all of them alike; {over}.",
        ),
    ]
    summary = [
        {
            "name": layer.short,
            "grid": list(layer.queries.grid),
            "keys": list(layer.keys.grid),
            "distance": [round(float(value), 3) for value in distance],
            "entropy": [round(float(value), 4) for value in spread],
        }
        for layer, distance, spread in zip(
            looked.layers, looked.distance, looked.entropy, strict=True
        )
    ]
    arrays = {
        "attention_distance": _padded(looked.distance),
        "attention_entropy": _padded(looked.entropy),
        "layers": np.array([layer.short for layer in looked.layers], dtype=np.str_),
    }
    means = [float(np.nanmean(one)) for one in looked.distance]
    text = (
        f"From {means[0]:.0f} pixels on average in layer 0 to {means[-1]:.0f} in layer "
        f"{numbers[-1]}, of {looked.layers[-1].distances.max():.0f} that are possible there. "
        "Attention made explicit changed the first picture's logits by "
        f"{looked.logit_gap:.1g} at the most."
    )
    return Part(
        "How far heads look",
        [text],
        figures,
        arrays,
        {"layers": summary, "logit_gap": looked.logit_gap},
    )


def _begins(looked: Looked, index: int) -> bool:
    return index == 0 or looked.layers[index].stage != looked.layers[index - 1].stage


def _padded(values: Sequence[np.ndarray]) -> np.ndarray:
    """Lists of different lengths as [layers most], with NaN where a layer has fewer heads."""
    table = np.full((len(values), max(map(len, values))), np.nan, np.float32)
    for row, one in zip(table, values, strict=True):
        row[: len(one)] = one
    return table


def _dots(
    name: str,
    title: str,
    values: Sequence[np.ndarray],
    reference: Sequence[float],
    unit: str,
    caption: str,
) -> Figure:
    points = [(i, float(value)) for i, heads in enumerate(values) for value in heads]
    numbers = list(range(len(values)))
    lines = [
        Line("one head", *map(list, zip(*points, strict=True)), joined=False),  # type: ignore[arg-type]
        Line("mean of heads", numbers, [float(np.nanmean(one)) for one in values]),
        Line("all keys alike", numbers, list(reference)),
    ]
    titled = f"{title}, in {unit}"
    svg = line_chart(lines, title=f"{titled}, by layer", x_label="layer")
    draw = partial(_draw_dots, points=points, reference=reference, unit=unit)
    return Figure(name, titled, caption, draw, (6.4, 4.0), svg=svg)


def _draw_dots(
    figure: Any, points: Sequence[tuple[int, float]], reference: Sequence[float], unit: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    x, y = zip(*points, strict=True)
    axes.scatter(x, y, s=18, color="#0b63a5", alpha=0.75, linewidths=0, label="one head")
    numbers = range(len(reference))
    axes.plot(numbers, reference, "--", color="#5b616b", linewidth=1.2, label="all keys alike")
    axes.set_xlabel("layer")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dedad1", linewidth=0.7)
    axes.legend(frameon=False, fontsize=8)


def rollout_part(looked: Looked, pictures: Pictures, labels: Sequence[str] | None = None) -> Part:
    """Rollout over each picture, beside what the last layer looks at.

    Args:
        labels: the model's.
    """
    first, last = looked.layers[0].queries, looked.layers[-1]
    # The last layer of one key alone says nothing of where it looks.
    several = [i for i, layer in enumerate(looked.layers) if np.prod(layer.keys.grid) > 1]
    drawn = several[-1] if several else len(looked.layers) - 1
    final = looked.layers[drawn]
    asked = "the class token's" if final.has_class_token else "all queries' mean"
    how = looked.how
    fused = {"mean": "the mean", "max": "the greatest", "min": "the least"}[how.fuse]
    text = (
        f"Rollout: {fused} of the heads, a share of {how.residual:g} for the residual path"
        + (f", the {100 * how.discard:g} % smallest weights left out" if how.discard else "")
        + ", rows scaled to sum to 1, layer upon layer, read where the head reads."
    )
    if last.stage or any(layer.reduced is not None for layer in looked.layers):
        text += (
            " The paper defines it for plain Transformers. Here the weight of a reduced key, or of "
            "a token that a later stage made, goes to the tokens it was made of; what fell on "
            "padding, or was a class token's own, has no place and is left out."
        )
    panes, rows = [], []
    for shown in looked.shown:
        picture = drawable(pictures[shown.index])
        rolled = overlaid(picture, looked.rollout[shown.index], first)
        looking = overlaid(picture, shown.maps[drawn].mean(0), final.keys)
        rows.append((named(picture), [picture.original, rolled, looking]))
        panes.append(
            Pane(
                [picture.original, rolled],
                [f"{picture.key}", f"Attention rollout over {picture.key}"],
                named(picture),
                told_answer(picture, labels, shown.answer),
            )
        )
    caption = (
        f"Picture, rollout, and {asked} attention in {final.short} (mean of its heads). Yellow is "
        "most, dark blue least; what the model does not see is grey."
    )
    figures = []
    for sheet, start in enumerate(range(0, len(rows), PER_SHEET)):
        name = "rollout" if len(rows) <= PER_SHEET else f"rollout-{sheet}"
        figures.append(_sheet(name, rows[start : start + PER_SHEET], caption))
    arrays = {"rollout": looked.rollout.astype(np.float32)}
    if looked.pooling is not None:
        arrays["pooling"] = looked.pooling.astype(np.float32)

    def fill(section: Section) -> None:
        section.gallery(panes, "Left the picture, right the rollout over it; yellow is most.")

    return Part(
        "What reaches the head",
        [text],
        figures,
        arrays,
        {"rollout": {"fuse": how.fuse, "residual": how.residual, "discard": how.discard}},
        fill if panes else None,
        apart=[figure.name for figure in figures],
    )


def _sheet(name: str, rows: Sequence[tuple[str, list[np.ndarray]]], caption: str) -> Figure:
    """Pictures below each other, each with its overlays beside it."""
    sheet = mosaic([[fitted(one, SIDE) for one in images] for _, images in rows])
    draw = partial(_draw_sheet, sheet=sheet, names=[name for name, _ in rows])
    size = (7.6, 7.6 * sheet.shape[0] / sheet.shape[1])
    return Figure(name, "Attention rollout", caption, draw, size)


def _draw_sheet(figure: Any, sheet: np.ndarray, names: Sequence[str]) -> None:
    axes = figure.add_subplot()
    show(axes, sheet)
    for index, name in enumerate(names):
        box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
        where = (5, index * (SIDE + 2) + 6)
        axes.text(*where, name.replace("$", r"\$"), fontsize=7, va="top", bbox=box)


def attention_part(
    model: ImageClassifier,
    looked: Looked,
    pictures: Pictures,
    layers: Sequence[int],
    heads: Sequence[int],
) -> Part | None:
    """Every map of every picture that is shown: a mosaic each, and a page with sliders.

    Args:
        layers: numbers of the layers that are drawn.
        heads: numbers of the heads that are drawn; none for all. A layer that has none of them
            shows its first.
    """
    kept = [looked.layers[i] for i in layers]
    if not looked.shown:
        return None
    size = model.preprocessing.size
    figures, layered = [], []
    for shown in looked.shown:
        picture = drawable(pictures[shown.index])
        maps = [_evened(shown.maps[i], looked.layers[i], heads, size) for i in layers]
        answer = told_answer(picture, model.labels, shown.answer)
        figures.append(_mosaic(shown.index, picture, maps, kept, looked, shown, heads))
        layered.append(layered_picture(picture, maps, answer))
    what = _what(kept)
    caption = (
        f"{what} Move the sliders for another layer or head; head 'mean' is the mean of the "
        "layer's heads. Each map runs from nothing (dark blue) to its own greatest value (yellow)."
    )
    arrays = {
        f"attention_maps.{layer.short}": np.stack([one.maps[i] for one in looked.shown]).astype(
            np.float16
        )
        for i, layer in zip(layers, kept, strict=True)
    }
    return Part(
        "Where heads look",
        [],
        figures,
        arrays,
        fill=lambda section: _fill(section, layered, kept, caption),
        apart=[figure.name for figure in figures],
    )


def _fill(
    section: Section, pictures: Sequence[Layered], layers: Sequence[Layer], caption: str
) -> None:
    names = [layer.short for layer in layers]
    telling = [i for i, maps in enumerate(pictures[0].maps) if maps.shape[1] * maps.shape[2] > 1]
    section.layered(pictures, names, caption, start=telling[-1] if telling else -1)


def _what(layers: Sequence[Layer]) -> str:
    told = {layer.has_class_token for layer in layers}
    token = "What the class token attends to."
    mean = "What all tokens attend to on average."
    if told == {True, False}:
        return (
            "In the last stage what the class token attends to; in those before, which have none, "
            "what all tokens attend to on average."
        )
    return token if told == {True} else mean


def drawable(picture: Picture) -> Picture:
    """The same picture of `LEAST` to `LARGEST` pixels, to be drawn over."""
    height, width = picture.original.shape[:2]
    scale = LARGEST / max(height, width)
    how = Image.Resampling.LANCZOS
    if scale >= 1:
        scale, how = max(1, -(-LEAST // max(height, width))), Image.Resampling.NEAREST
    if scale == 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(picture.original).resize(size, how))
    down, across = size[1] / height, size[0] / width
    top, left, tall, wide = picture.window
    window = (top * down, left * across, tall * down, wide * across)
    return replace(picture, original=small, window=window)


def named(picture: Picture) -> str:
    """A picture's name without the folders that all pictures lie in."""
    return picture.name or PurePath(picture.key).name or picture.key


def _evened(
    maps: np.ndarray, layer: Layer, heads: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    chosen = [head for head in heads if head < len(maps)] if heads else list(range(len(maps)))
    return evened(maps[chosen or [0]], layer.keys, size)


def layered_picture(picture: Picture, maps: Sequence[np.ndarray], notes: Sequence[str]) -> Layered:
    """A picture for a page's sliders.

    Args:
        maps: of each layer [heads rows columns], as equal cells of the model's input.
        notes: what the model says of it, see `told_answer`.
    """
    height, width = picture.original.shape[:2]
    top, left, tall, wide = picture.window
    frame = (top / height, left / width, tall / height, wide / width)
    return Layered(picture.original, maps, frame, picture.key, named(picture), notes)


def _mosaic(
    index: int,
    picture: Picture,
    maps: Sequence[np.ndarray],
    layers: Sequence[Layer],
    looked: Looked,
    shown: Shown,
    heads: Sequence[int],
) -> Figure:
    tiles: list[list[np.ndarray | None]] = [[_tile(head) for head in layer] for layer in maps]
    sheet = mosaic(tiles)
    across = max(len(row) for row in tiles)
    rolled = overlaid(picture, looked.rollout[shown.index], looked.layers[0].queries)
    side = max(2 * TILE, (sheet.shape[0] - 2) // 2)
    left = mosaic([[scaled(picture.original, side)], [scaled(rolled, side)]])
    names = [str(head) for head in (heads or range(across))]
    draw = partial(
        _draw_mosaic,
        left=left,
        sheet=sheet,
        rows=[layer.short for layer in layers],
        columns=names[:across],
    )
    caption = (
        f"{_what(layers)} A row for each layer, a column for each head, each map from nothing "
        "(dark blue) to its own greatest value (yellow). Left the picture, and rollout over it."
    )
    width, words = 7.6, 0.07 * max(len(layer.short) for layer in layers) + 0.4  # inches
    height = (width - words) * sheet.shape[0] / (sheet.shape[1] + left.shape[1]) + 0.4
    return Figure(
        f"attention-{index:03d}", f"Attention in {named(picture)}", caption, draw, (width, height)
    )


def _tile(heat: np.ndarray) -> np.ndarray:
    colors = heat_colors(heat / max(float(heat.max()), 1e-12))
    return np.asarray(Image.fromarray(colors).resize((TILE, TILE), Image.Resampling.NEAREST))


def _draw_mosaic(
    figure: Any, left: np.ndarray, sheet: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    pictures, maps = figure.subplots(1, 2, width_ratios=[left.shape[1], sheet.shape[1]])
    show(pictures, left)
    pictures.set_anchor("N")
    show(
        maps,
        sheet,
        rows=(tile_centres(len(rows), TILE), rows),
        columns=(tile_centres(len(columns), TILE), columns),
        labels=("", "head"),
    )
