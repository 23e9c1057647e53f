"""The sections on what leaves each layer: norms of tokens, likeness of layers, nearest patches.

They share one pass over the pictures, a few at a time: of each a number a token is kept, sums for
CKA, and the tokens of three layers of the pictures that are shown. Norms are shown by `norm_parts`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.inspection.figures import Figure, mosaic, show, tile_centres
from vitrail.inspection.look import evaluating
from vitrail.inspection.norm_parts import tokens_part
from vitrail.inspection.pictures import Pictures, as_input, evenly
from vitrail.inspection.sections import Part
from vitrail.inspection.similarity import CKA, LEAST, nearest_patches
from vitrail.inspection.tokens import Norms, Tokens, tokens_of
from vitrail.models.base import ImageClassifier

KINDS = ("tokens", "similarity", "neighbours")
AT_ONCE = 8  # pictures
NOISY = 64  # pictures below which CKA is called a rough estimate
QUERIES = 6  # patches whose neighbours are sought
WITHIN, ACROSS = 3, 5  # of them that are shown, from the same picture and from others
TILE = 72  # pixels of a patch with its surroundings
FRAME = (255, 140, 0)  # the colour around a patch


@dataclass
class _Pass:
    """What the pass collects."""

    norms: Norms = field(default_factory=Norms)
    cka: CKA = field(default_factory=CKA)
    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    kept: dict[str, list[Tensor]] = field(default_factory=dict)
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)


def layer_parts(
    model: ImageClassifier,
    pictures: Pictures,
    kinds: Collection[str] = KINDS,
    *,
    most: int = 16,
    other: ImageClassifier | None = None,
    names: tuple[str, str] = ("this model", "the other"),
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Part]:
    """The sections, in the order of `KINDS`.

    Args:
        model, other: left in the mode that they were in; with another model CKA is between both.
        kinds: which sections.
        most: of how many pictures tokens are kept, to be shown and searched for neighbours.
        names: of the models, for figures.
        progress: called with how many pictures are done, and of how many.
    """
    found = _pass(model, pictures, kinds, most, other, progress)
    if "tokens" in kinds:
        yield tokens_part(found.norms.result(), pictures, evenly(len(pictures), most))
    if "similarity" in kinds:
        yield _similarity_part(found, None if other is None else names)
    if "neighbours" in kinds and found.kept:
        yield _neighbours_part(found, pictures)


def _pass(
    model: ImageClassifier,
    pictures: Pictures,
    kinds: Collection[str],
    most: int,
    other: ImageClassifier | None,
    progress: Callable[[int, int], None] | None,
) -> _Pass:
    found = _Pass()
    for start in range(0, len(pictures), AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, len(pictures)))
        tokens = _tokens(model, pictures, numbers)
        if "tokens" in kinds:
            found.norms.add(tokens)
        if "similarity" in kinds and len(numbers) >= LEAST:
            found.first = found.second = [one.name for one in tokens]
            theirs = None
            if other is not None:
                second = _tokens(other, pictures.seen_by(other), numbers)
                found.second = [one.name for one in second]
                theirs = [_whole(one) for one in second]
            found.cka.update([_whole(one) for one in tokens], theirs)
        if "neighbours" in kinds:
            for one in _three(tokens):
                found.grids[one.name] = one.grid
                kept = one.places[: max(0, most - start)].float().cpu()
                found.kept.setdefault(one.name, []).extend([kept] if len(kept) else [])
        if progress is not None:
            progress(numbers.stop, len(pictures))
    found.kept = {name: parts for name, parts in found.kept.items() if parts}
    return found


def _tokens(model: ImageClassifier, pictures: Pictures, numbers: Sequence[int]) -> list[Tokens]:
    with evaluating(model):
        return tokens_of(model, as_input(model, *(pictures[i] for i in numbers)))


def _whole(tokens: Tokens) -> Tensor:
    return torch.cat([tokens.prefix, tokens.places], 1)


def _three(tokens: Sequence[Tokens]) -> list[Tokens]:
    """An early layer, the middle one and the last."""
    numbers = sorted({len(tokens) // 4, len(tokens) // 2, len(tokens) - 1})
    return [tokens[i] for i in numbers]


# -- likeness of layers --------------------------------------------------------------------------


def _similarity_part(found: _Pass, names: tuple[str, str] | None) -> Part:
    if not found.cka.pictures:
        return Part("Layers alike", [f"Comparing layers takes at least {LEAST} pictures."])
    matrix, pictures = found.cka.result().numpy(), found.cka.pictures
    rough = (
        f" On {pictures} pictures it is a rough estimate: some hundreds make it a good one."
        if pictures < NOISY
        else ""
    )
    of = "layers of this model" if names is None else f"layers of {names[0]} and {names[1]}"
    text = (
        f"Linear CKA of {of}, over {pictures:,} pictures: 1 where what two layers make of the "
        "pictures is the same but for rotation and scale, 0 where they have nothing in common "
        f"(the unbiased estimate can fall a little below).{rough}"
    )
    labels = (
        [name.removesuffix(".out") for name in found.first],
        [name.removesuffix(".out") for name in found.second],
    )
    caption = f"Linear CKA, in batches of {AT_ONCE} pictures (Nguyen, Raghu and Kornblith, 2021)."
    figure = Figure(
        "layer_similarity",
        "How alike layers are",
        caption,
        partial(_draw_similarity, matrix=matrix, labels=labels, names=names),
        (6.4, 5.0 * max(0.5, min(1.3, matrix.shape[0] / matrix.shape[1]))),
        alt=f"Heat map of {matrix.shape[0]} by {matrix.shape[1]} layers",
    )
    summary = {"pictures": pictures, "first": labels[0], "second": labels[1]}
    return Part(
        "Layers alike",
        [text],
        [figure],
        {"layer_similarity": matrix.astype(np.float32)},
        {"similarity": {**summary, "cka": np.round(matrix, 4).tolist()}},
    )


def _draw_similarity(
    figure: Any,
    matrix: np.ndarray,
    labels: tuple[list[str], list[str]],
    names: tuple[str, str] | None,
) -> None:
    axes = figure.add_subplot()
    drawn = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis", origin="lower")
    for side, ticks in zip(labels, (axes.set_yticks, axes.set_xticks), strict=True):
        every = -(-len(side) // 16)
        ticks(range(0, len(side), every), side[::every])
    axes.tick_params(length=0, labelsize=7)
    axes.tick_params(axis="x", rotation=90)
    axes.spines[:].set_visible(False)
    if names is not None:
        axes.set_ylabel(names[0])
        axes.set_xlabel(names[1])
    figure.colorbar(drawn, ax=axes, label="CKA", shrink=0.8, aspect=30)


# -- nearest patches -----------------------------------------------------------------------------


def _neighbours_part(found: _Pass, pictures: Pictures) -> Part:
    kept = {name: torch.cat(parts) for name, parts in found.kept.items()}
    count = len(next(iter(kept.values())))
    seen = [pictures[i].seen for i in range(count)]
    figures, summary = [], {}
    for name, features in kept.items():
        short, grid = name.removesuffix(".out"), found.grids[name]
        tiles: list[list[np.ndarray | None]] = []
        cosines = []
        for index in range(min(QUERIES, count)):
            # The middle of the picture, where most of them have their object.
            query = (index, grid[0] // 2, grid[1] // 2)
            near = [
                *nearest_patches(features, grid, query, WITHIN, "within"),
                *nearest_patches(features, grid, query, ACROSS, "across"),
            ]
            places = [(query[0], query[1], query[2]), *((n.picture, n.row, n.column) for n in near)]
            tiles.append([_surroundings(seen[b], grid, row, column) for b, row, column in places])
            cosines.append([n.cosine for n in near])
        figures.append(
            _neighbours_figure(short, tiles, cosines, min(WITHIN, grid[0] * grid[1] - 1))
        )
        summary[short] = [[round(cosine, 4) for cosine in row] for row in cosines]
    return Part(
        "Patches alike",
        [
            "The patches that a layer holds for most alike to the one in the middle of a picture, "
            f"by the cosine of what leaves the layer, among the first {count:,} pictures. What "
            "early layers hold for alike has the same colours and edges, or the same place; late "
            "ones often find the same part of another thing of the kind."
        ],
        figures,
        {},
        {"neighbours": summary},
    )


def _surroundings(picture: np.ndarray, grid: tuple[int, int], row: int, column: int) -> np.ndarray:
    """A patch, framed, with as much again on each side: uint8 [TILE TILE 3]."""
    boxes = []
    for side, count, place in zip(picture.shape, grid, (row, column), strict=False):
        boxes.append((place * side / count, (place + 1) * side / count))
    (top, bottom), (left, right) = boxes
    half = max(1.5 * max(bottom - top, right - left), 6)
    y, x = (top + bottom) / 2, (left + right) / 2
    at_y = np.clip(np.linspace(y - half, y + half, TILE), 0, picture.shape[0] - 1).astype(int)
    at_x = np.clip(np.linspace(x - half, x + half, TILE), 0, picture.shape[1] - 1).astype(int)
    tile = picture[at_y][:, at_x].copy()
    edges = [
        round((edge - middle + half) / (2 * half) * (TILE - 1))
        for edge, middle in ((top, y), (bottom, y), (left, x), (right, x))
    ]
    first, last, start, stop = (min(max(edge, 0), TILE - 1) for edge in edges)
    tile[[first, first + 1, last - 1, last], start : stop + 1] = FRAME
    tile[first : last + 1, [start, start + 1, stop - 1, stop]] = FRAME
    return tile


def _neighbours_figure(
    name: str,
    tiles: Sequence[Sequence[np.ndarray | None]],
    cosines: Sequence[Sequence[float]],
    within: int,
) -> Figure:
    sheet = mosaic(tiles)
    across = max(map(len, tiles)) - 1 - within
    columns = ["patch", *["same picture"] * within, *["other picture"] * across]
    caption = (
        f"Left the patch in the middle of a picture, framed; then those of the same picture and of "
        f"others that leave {name} most alike, with the cosine."
    )
    width = 0.85 * len(columns)
    return Figure(
        f"neighbours-{name}",
        f"Nearest patches, {name}",
        caption,
        partial(_draw_neighbours, sheet=sheet, columns=columns, cosines=cosines),
        (width, width * sheet.shape[0] / sheet.shape[1] + 0.3),
    )


def _draw_neighbours(
    figure: Any, sheet: np.ndarray, columns: Sequence[str], cosines: Sequence[Sequence[float]]
) -> None:
    axes = figure.add_subplot()
    names = [c.replace(" ", "\n") for c in columns]
    show(axes, sheet, columns=(tile_centres(len(names), TILE), names))
    axes.xaxis.tick_top()
    across, down = (tile_centres(n, TILE) for n in (len(names), len(cosines)))
    box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}
    for y, row in zip(down, cosines, strict=True):
        for x, cosine in zip(across[1:], row, strict=False):
            axes.text(
                x, y + TILE / 2 - 3, f"{cosine:.2f}", fontsize=6, ha="center", va="bottom", bbox=box
            )
