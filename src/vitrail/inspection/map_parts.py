"""The section on feature maps: how strongly each place answers, stage by stage.

For networks with several maps: convolutional ones, which have no attention to show, hybrids and
the staged families.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.inspection.attention_parts import drawable, layered_picture, named
from vitrail.inspection.figures import Figure, fitted, mosaic, show, tile_centres
from vitrail.inspection.look import answer_in, evaluating
from vitrail.inspection.pictures import Pictures, as_input, evenly, told_answer
from vitrail.inspection.sections import Part
from vitrail.kit.chart import heat_colors
from vitrail.kit.page import Layered
from vitrail.models.base import ImageClassifier
from vitrail.models.t2t import T2TViT
from vitrail.models.vit import VisionTransformer

TILE = 112  # pixels of a map in the figure
LONGEST = 22  # letters of a picture's name in the figure


def _is_one_grid(model: ImageClassifier) -> bool:
    """Whether a model has no map but its last tokens', which are normed: all places are alike.

    So a plain Transformer has, T2T-ViT, and a hybrid whose ResNet has one stage.
    """
    stages = len(getattr(model.config, "depths", ()))
    return isinstance(model, T2TViT) or (isinstance(model, VisionTransformer) and stages < 2)


def maps_part(model: ImageClassifier, pictures: Pictures, show_most: int) -> Part | None:
    """The length of the feature vector at each place of each map, relative to the map's largest.

    None where there is no map to show, see `_is_one_grid`, or no picture.
    """
    if _is_one_grid(model):
        return None
    found: list[list[np.ndarray]] = []
    layered: list[Layered] = []
    rows: list[tuple[str, list[np.ndarray]]] = []
    strides: list[int] = []
    with evaluating(model):
        for index in evenly(len(pictures), show_most):
            picture = drawable(pictures[index])
            maps = model.feature_maps(as_input(model, picture))
            # A Transformer's own map, the last of a hybrid, is normed: all places are alike.
            kept = len(maps) - isinstance(model, VisionTransformer)
            strides = maps.strides[:kept]
            norms = [_norms(one) for one in maps[:kept]]
            found.append(norms)
            answer = answer_in(model, model(as_input(model, picture)))
            notes = told_answer(picture, model.labels, answer)
            layered.append(layered_picture(picture, [one[None] for one in norms], notes))
            name = named(picture)
            name = name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
            rows.append((name, [fitted(picture.original, TILE), *map(_tile, norms)]))
    if not found:
        return None
    names = [f"map {i}, a place every {stride} pixels" for i, stride in enumerate(strides)]
    caption = (
        "How strongly each place answers: the length of its vector of channels, from nothing (dark "
        "blue) to the map's own greatest (yellow)."
    )
    figure = Figure(
        "feature_maps",
        "Feature maps",
        f"{caption} Left the picture, then a column for each map, the finest first.",
        partial(_draw, rows=rows, strides=strides),
        (6.4, 4.6 * len(rows) / (1 + len(strides)) + 0.3),
    )
    arrays = {
        f"feature_norms.{i}": np.stack([one[i] for one in found]) for i in range(len(strides))
    }
    return Part(
        "Feature maps",
        [],
        [figure],
        arrays,
        fill=lambda section: _fill(section, layered, names, caption),
        apart=[figure.name],
    )


def _fill(section: Any, pictures: list[Layered], names: list[str], caption: str) -> None:
    section.layered(pictures, names, caption, start=len(names) - 1)


def _norms(features: Tensor) -> np.ndarray:
    """[1 c h w] to the length of each place's vector, float32 [h w]."""
    return torch.linalg.vector_norm(features[0].float(), dim=0).cpu().numpy()


def _tile(norms: np.ndarray) -> np.ndarray:
    colors = heat_colors(norms / max(float(norms.max()), 1e-12))
    return np.asarray(Image.fromarray(colors).resize((TILE, TILE), Image.Resampling.NEAREST))


def _draw(figure: Any, rows: list[tuple[str, list[np.ndarray]]], strides: list[int]) -> None:
    sheet = mosaic([tiles for _, tiles in rows])
    show(
        figure.add_subplot(),
        sheet,
        rows=(tile_centres(len(rows), TILE), [name for name, _ in rows]),
        columns=(
            tile_centres(1 + len(strides), TILE),
            ["picture", *(f"stride {stride}" for stride in strides)],
        ),
    )
