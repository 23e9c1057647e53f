"""The sections on filters and on positions: what a model's weights say by themselves."""

from functools import partial
from typing import Any

import numpy as np

from vitrail.inspection.embeddings import (
    Filters,
    Positions,
    filters,
    positions,
    row_column_contrast,
    thinned,
)
from vitrail.inspection.figures import Figure, enlarged, mosaic, show, tile_centres
from vitrail.inspection.sections import Part
from vitrail.kit.chart import heat_colors
from vitrail.models.base import ImageClassifier

MOST_FILTERS = 128
WIDE = 0.8  # cosines that spread further are drawn from -1 to 1
KEPT = 28  # the widest grid whose similarities go into the arrays
USUAL = 16  # the widest grid that `position_similarity` takes where there are several tables


def filters_part(model: ImageClassifier) -> Part | None:
    """The first layer's filters and their principal components."""
    found = filters(model)
    if found is None:
        return None
    count, (height, width) = len(found.components), found.components.shape[1:3]
    share = 100 * float(found.explained.sum())
    what = f"{len(found.weights):,} filters of {height} x {width} pixels: {found.what}."
    figures = [_components(found, share), _all(found)]
    return Part(
        "Filters",
        [f"The first layer that sees the picture has {what}"],
        figures,
        {"patch_filters": found.components, "patch_filters_explained": found.explained},
        {"filters": {"count": len(found.weights), "size": [height, width], "components": count}},
    )


def _components(found: Filters, share: float) -> Figure:
    count = len(found.components)
    tiles = [enlarged(_as_colors(one), 48) for one in found.components]
    sheet = mosaic(_in_rows(tiles, 7))
    caption = (
        f"The {count} leading principal components of the filters, the one that explains most at "
        f"the upper left; together they explain {share:.0f} % of the filters' variance. Each is "
        "scaled from its least to its greatest value, and its sign means nothing. Smooth waves of "
        "several directions and colours are what a trained embedding has; noise is what a random "
        "one has."
    )
    return Figure(
        "patch_filters",
        "Principal components of the filters",
        caption,
        partial(_draw_plain, sheet=sheet),
        (6.4, 6.4 * sheet.shape[0] / sheet.shape[1]),
        plain=sheet,
    )


def _all(found: Filters) -> Figure:
    norms = np.linalg.norm(found.weights.reshape(len(found.weights), -1), axis=1)
    order = np.argsort(-norms, kind="stable")[:MOST_FILTERS]
    tiles = [enlarged(_as_colors(found.weights[index]), 24) for index in order]
    sheet = mosaic(_in_rows(tiles, 16))
    shown = "All filters" if len(order) == len(norms) else f"The {len(order)} strongest filters"
    return Figure(
        "filters",
        "Filters",
        f"{shown}, the one with the largest norm at the upper left, each scaled from its least to "
        "its greatest value.",
        partial(_draw_plain, sheet=sheet),
        (6.4, 6.4 * sheet.shape[0] / sheet.shape[1]),
        plain=sheet,
    )


def _in_rows(tiles: list[np.ndarray], across: int) -> list[list[np.ndarray]]:
    return [tiles[i : i + across] for i in range(0, len(tiles), across)]


def _as_colors(kernel: np.ndarray) -> np.ndarray:
    """[p q c] to uint8 [p q 3], from its least to its greatest; other channels than 3 in grey."""
    if kernel.shape[2] != 3:
        kernel = kernel.mean(2, keepdims=True).repeat(3, 2)
    low, high = kernel.min(), kernel.max()
    return np.rint(255 * (kernel - low) / max(high - low, 1e-12)).astype(np.uint8)


def _draw_plain(figure: Any, sheet: np.ndarray) -> None:
    show(figure.add_subplot(), sheet)


def positions_part(model: ImageClassifier) -> Part:
    """The grid of grids: how alike the positions of every two places are."""
    tables, text = positions(model)
    arrays = _arrays(tables)
    figures = [_grid_of_grids(table, len(tables) > 1) for table in tables]
    contrast = {table.name: round(row_column_contrast(table.similarity), 4) for table in tables}
    paragraphs = [text]
    if tables:
        told = "; ".join(f"{name}: {value:+.2f}" for name, value in contrast.items())
        paragraphs.append(
            "How much more alike two places of one row or column are than two others, in cosines: "
            f"{told}."
        )
    return Part(
        "Positions",
        paragraphs,
        figures,
        arrays,
        {"positions": text, "row_column_contrast": contrast},
        apart=[figure.name for figure in figures[4:]],
    )


def _arrays(tables: list[Positions]) -> dict[str, np.ndarray]:
    """`position_similarity`, and where there are several tables each under its name too."""
    if not tables:
        return {}
    usual = [table for table in tables if max(table.similarity.shape) <= USUAL]
    arrays = {"position_similarity": (usual or tables[-1:])[0].similarity}
    if len(tables) > 1:
        for table in tables:
            if max(table.similarity.shape) <= KEPT:
                arrays[f"position_similarity.{table.name.replace(' ', '_')}"] = table.similarity
    return arrays


def _grid_of_grids(table: Positions, named: bool) -> Figure:
    tiles = thinned(table.similarity)
    rows, columns, height, width = tiles.shape
    low, high = color_scale(table.similarity)
    colors = heat_colors((tiles - low) / (high - low))
    times = max(1, round(40 / max(height, width)))
    sheet = mosaic(
        [
            [colors[i, j].repeat(times, 0).repeat(times, 1) for j in range(columns)]
            for i in range(rows)
        ]
    )
    every = "" if tiles.shape == table.similarity.shape else f" ({rows} x {columns} of them shown)"
    what = (
        "how alike the embedding of the offset to each other place is to that of no offset"
        if table.relative
        else "how alike its position is to every other place's"
    )
    told = (
        ""
        if (low, high) == (-1, 1)
        else ", the least and the greatest here: a place's own cosine, 1, is not counted"
    )
    caption = (
        f"One tile for each of the {table.similarity.shape[0]} x {table.similarity.shape[1]} "
        f"places{every}; a tile shows {what}: cosines from {low:.3g} (dark) to {high:.3g} "
        f"(yellow){told}."
    )
    suffix = f"-{table.name.replace(' ', '-')}" if named else ""
    draw = partial(
        _draw_grid_of_grids,
        sheet=sheet,
        grid=(rows, columns),
        tile=(height * times, width * times),
        scale=(low, high),
    )
    return Figure(
        f"position_similarity{suffix}",
        f"Similarity of positions, {table.name}" if named else "Similarity of positions",
        caption,
        draw,
        (6.0, 4.9 * sheet.shape[0] / sheet.shape[1]),
        plain=sheet,
    )


def color_scale(similarity: np.ndarray) -> tuple[float, float]:
    """The cosines that are drawn darkest and brightest: those of two places, least and greatest.

    Where they spread over more than `WIDE`, or are all the same, the scale is the paper's, -1 to 1.

    Args:
        similarity: [rows columns rows columns].
    """
    places = similarity.shape[0] * similarity.shape[1]
    others = similarity.reshape(places, places)[~np.eye(places, dtype=bool)]
    if not len(others):
        return -1.0, 1.0
    low, high = float(others.min()), float(others.max())
    return (-1.0, 1.0) if high - low > WIDE or high - low < 1e-4 else (low, high)


def _draw_grid_of_grids(
    figure: Any,
    sheet: np.ndarray,
    grid: tuple[int, int],
    tile: tuple[int, int],
    scale: tuple[float, float],
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.add_subplot()
    rows, columns = (
        (tile_centres(count, side), [str(i + 1) for i in range(count)])
        for count, side in zip(grid, tile, strict=True)
    )
    show(
        axes, sheet, rows=rows, columns=columns, labels=("row of the place", "column of the place")
    )
    shown = ScalarMappable(Normalize(*scale), "viridis")
    figure.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.8, aspect=30)
