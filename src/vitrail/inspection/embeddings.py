"""What a model has learned of pixels and of places, read off its weights: no picture is needed.

Filters: the first layer that sees the picture (a patch embedding, or the first convolution), and
the principal components of its filters, as in the ViT paper's Figure 7 (left). Positions: how
alike the embeddings of two places are, as in its Figure 7 (centre) and Figure 10; class tokens and
registers have no place and are left out. Relative tables have no embedding of a place but one of
an offset: there it is how alike an offset is to none at all, which answers the same question.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.bit_resnet import BiTResNet
from vitrail.models.botnet import BoTNet, BoTNetConfig, MapAttention, by_distance, resized
from vitrail.models.cvt import CvT
from vitrail.models.hybrid import HybridStem, HybridTransformer
from vitrail.models.pvt import PyramidVisionTransformer
from vitrail.models.pvt_v2 import PyramidVisionTransformerV2
from vitrail.models.resnet import ResNet
from vitrail.models.standardize import StandardizedConv2d, standardized
from vitrail.models.t2t import T2TViT
from vitrail.models.vit import VisionTransformer

COMPONENTS = 28  # as many as the paper shows


@dataclass(frozen=True)
class Filters:
    """The filters of the first layer that sees the picture.

    Args:
        weights: float32 [d p q c], channels last.
        what: the layer in words.
        components: the leading principal components, float32 [k p q c] of length 1 each, the
            one that explains most first; k is 28, or as many as there are.
        explained: each component's share of the variance of all filters.
    """

    weights: np.ndarray
    what: str
    components: np.ndarray
    explained: np.ndarray


def filters(model: ImageClassifier, count: int = COMPONENTS) -> Filters | None:
    """The filters of a model's first layer and their principal components; None if unknown.

    Principal components of the d filters, each p x q x c numbers, about their mean. The sign of a
    component means nothing; here its largest number is above 0.
    """
    found = _first_layer(model)
    if found is None:
        return None
    weights, what = found
    weights = weights.detach().double().cpu().permute(0, 2, 3, 1)
    flat = weights.flatten(1)
    centred = flat - flat.mean(0)
    values, components = torch.linalg.svd(centred, full_matrices=False)[1:]
    count = min(count, len(values))
    components = components[:count]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    total = values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    return Filters(
        weights.float().numpy(),
        what,
        components.reshape(count, *weights.shape[1:]).float().numpy(),
        (values.square() / total)[:count].float().numpy(),
    )


def _first_layer(model: ImageClassifier) -> tuple[Tensor, str] | None:
    """The weights [d c p q] that meet the picture, and what they are."""
    if isinstance(model, T2TViT) and model.config.tokens == "patches":
        weights = model.tokens_to_token.project.weight
        return weights.unflatten(1, (model.config.in_channels, 16, 16)), "the patch embedding"
    if isinstance(model, T2TViT):
        part = model.tokens_to_token.blocks[0]
        linear = part.get_submodule("attn.qkv" if hasattr(part, "attn") else "kqv")
        norm = part.get_submodule("norm1")
        if not isinstance(linear, nn.Linear) or not isinstance(norm, nn.LayerNorm):
            return None
        channels = model.config.in_channels
        weights = (linear.weight * norm.weight).unflatten(1, (channels, 7, 7))
        what = "keys, queries and values of the first tokens, windows of 7 x 7 pixels"
        return weights, f"the {what} (with the gains of the norm before them)"
    convolution: nn.Module
    if isinstance(model, HybridTransformer):
        backbone = model.backbone
        stem = backbone if isinstance(backbone, HybridStem) else backbone.stem
        convolution, what = stem.get_submodule("conv"), "the ResNet's first convolution"
    elif isinstance(model, VisionTransformer):
        convolution, what = model.patch_embed.proj, "the patch embedding"
    elif isinstance(model, CvT):
        convolution, what = model.stages[0].patch_embed.proj, "the first stage's embedding"
    elif isinstance(model, PyramidVisionTransformer | PyramidVisionTransformerV2):
        name = "patch_embed1" if isinstance(model, PyramidVisionTransformer) else "patch_embed"
        convolution = model.get_submodule(f"{name}.proj")
        what = "the first stage's patch embedding"
    elif isinstance(model, BiTResNet):
        convolution, what = model.stem.conv, "the first convolution"
    elif isinstance(model, ResNet):
        convolution, what = model.conv1, "the first convolution"
    else:
        return None
    if isinstance(convolution, StandardizedConv2d):
        weights = standardized(convolution.weight, convolution.eps, convolution.eps_on)
        return weights, f"{what}, standardised as it is used"
    if not isinstance(convolution, nn.Conv2d):
        return None
    return convolution.weight, what


@dataclass(frozen=True)
class Positions:
    """How alike the positions of one grid are.

    Args:
        name: of the table in words.
        similarity: float32 [rows columns rows columns], cosines -1..1: first the place asked
            from, then the place compared with.
        relative: the table is one of offsets.
    """

    name: str
    similarity: np.ndarray
    relative: bool = False


def position_similarity(table: Tensor, grid: tuple[int, int], prefix: int = 0) -> np.ndarray:
    """Cosine similarity of every pair of places: float32 [rows columns rows columns].

    Args:
        table: [prefix + rows*columns, d].
        grid: (rows, columns).
        prefix: rows at the start that belong to no place.
    """
    rows = table[prefix:].detach().double().cpu()
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    return (unit @ unit.T).reshape(*grid, *grid).float().numpy()


def offset_similarity(vectors: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """How alike each offset's embedding is to that of no offset, float32 [r c r c].

    Args:
        vectors: [2*rows-1 2*columns-1 d], by offset (key - query) from -(rows-1) and -(columns-1).
        grid: (rows, columns).
    """
    rows, columns = grid
    work = vectors.detach().double().cpu()
    unit = work / work.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(work.dtype).tiny)
    alike = (unit @ unit[rows - 1, columns - 1]).float().numpy()
    down = np.arange(rows)[None] - np.arange(rows)[:, None] + rows - 1  # [query key]
    across = np.arange(columns)[None] - np.arange(columns)[:, None] + columns - 1
    return alike[down[:, None, :, None], across[None, :, None, :]]


def positions(model: ImageClassifier) -> tuple[list[Positions], str]:
    """The similarities of every table of positions, and a sentence on where positions come from."""
    if isinstance(model, VisionTransformer):
        return _vit(model)
    if isinstance(model, T2TViT):
        grid = model.config.grids()[-1]
        table = position_similarity(model.pos_embed[0], grid, 1)
        return [Positions("fixed", table)], (
            "Positions are a fixed table of sines along the sequence, row after row: places above "
            "each other are far apart in it."
        )
    if isinstance(model, CvT):
        return _cvt(model)
    if isinstance(model, PyramidVisionTransformer):
        grids = model.config.grids(height_width(model.config.image_size))
        found = []
        for stage, grid in enumerate(grids):
            table = getattr(model, f"pos_embed{stage + 1}")[0]
            prefix = len(table) - grid[0] * grid[1]
            found.append(Positions(f"stage {stage}", position_similarity(table, grid, prefix)))
        return found, "Each stage adds a learned table of positions to its tokens."
    if isinstance(model, BoTNet):
        return _botnet(model)
    if isinstance(model, PyramidVisionTransformerV2):
        return [], (
            "There is no table of positions: where a token lies is known to PVT v2 from the "
            "borders of its padded depthwise convolutions."
        )
    return [], (
        "There is no table of positions: a convolutional network knows where something is from "
        "its map, and from the borders of its padded convolutions."
    )


def _vit(model: VisionTransformer) -> tuple[list[Positions], str]:
    c = model.config
    if c.position == "none":
        return [], "The model has no positions: it sees a set of patches, in whatever order."
    if c.position == "relative":
        keys = model.tables["pos_embed_offset"]
        found = []
        for index, offsets in enumerate(keys):
            name = f"layer {index}" if len(keys) > 1 else "all layers"
            vectors = _of_sequence(offsets, c.grid)
            found.append(Positions(name, offset_similarity(vectors, c.grid), relative=True))
        return found, (
            "Positions are relative: a learned key for each offset in the sequence of patches, "
            "which attention adds to what it compares."
        )
    tables = model.positions(c.grid)
    if tables is None:
        return [], "The model adds no positions to its tokens."
    found = [
        Positions(
            f"layer {index}" if len(tables) > 1 else "input",
            position_similarity(table, c.grid, c.prefix),
        )
        for index, table in enumerate(tables)
    ]
    fixed = "a fixed table of sines and cosines"
    kind = {
        "learned": "a learned table, a row for each place",
        "learned2d": "learned tables for rows and for columns, side by side",
    }.get(c.position, fixed)
    where = {
        "input": "added to the tokens before the first layer",
        "layers": "of its own for each layer, added at its beginning",
        "layers_shared": "added at the beginning of every layer",
    }[c.position_at]
    return found, f"Positions are {kind}, {where}."


def _of_sequence(offsets: Tensor, grid: tuple[int, int]) -> Tensor:
    """Keys of offsets in a sequence (query - key) as vectors of offsets in a grid (key - query)."""
    rows, columns = grid
    middle = len(offsets) // 2
    down, across = torch.arange(1 - rows, rows), torch.arange(1 - columns, columns)
    return offsets[middle - (down[:, None] * columns + across)]


def _cvt(model: CvT) -> tuple[list[Positions], str]:
    c, found = model.config, []
    for stage, (grid, part) in enumerate(zip(c.grids(), model.stages, strict=True)):
        if c.has_position(stage):
            table = position_similarity(part.pos_embed[0], grid, c.prefix(stage))
            found.append(Positions(f"stage {stage}", table))
    if found:
        return found, "Learned tables of positions are added where a stage begins."
    return [], (
        "There is no table of positions: CvT knows where a token lies from the borders of its "
        "padded convolutions."
    )


def _botnet(model: BoTNet) -> tuple[list[Positions], str]:
    size = height_width(model.config.image_size)
    grids = cast(BoTNetConfig, model.config).grids(size)
    attentions = [part for part in model.modules() if isinstance(part, MapAttention)]
    found = []
    for index, (grid, part) in enumerate(zip(grids, attentions, strict=True)):
        name = f"block {index}"
        if part.position == "relative":
            down = _by_offset(part.rel_height, grid[0])[:, None]
            across = _by_offset(part.rel_width, grid[1])
            similarity = offset_similarity(down + across, grid)
            found.append(Positions(name, similarity, relative=True))
        elif part.position == "absolute":
            down, across = resized(part.abs_height, grid[0]), resized(part.abs_width, grid[1])
            table = (down[:, None] + across).flatten(0, 1)
            found.append(Positions(name, position_similarity(table, grid)))
    if not found:
        return [], "Attention compares contents alone; places are known from the convolutions."
    if found[0].relative:
        return found, (
            "Positions are relative: in each block of attention one learned vector for the offset "
            "in rows and one for that in columns, whose sum is compared with the query."
        )
    return found, "A learned vector for the row and one for the column are added to the keys."


def _by_offset(table: Tensor, length: int) -> Tensor:
    """A table of distances as [2*length-1 e], from -(length-1) on."""
    whole = by_distance(table, length)
    return torch.cat([whole[-1, :-1], whole[0]]) if length > 1 else whole[0]


def thinned(similarity: np.ndarray, most: int = 14) -> np.ndarray:
    """[g g g g] with at most so many rows and columns of tiles, evenly chosen, ends included."""
    chosen = [
        np.unique(np.linspace(0, side - 1, min(side, most)).round().astype(int))
        for side in similarity.shape[:2]
    ]
    return similarity[np.ix_(*chosen)]


def row_column_contrast(similarity: np.ndarray) -> float:
    """How much more alike places of one row or column are than others: a difference of cosines.

    Args:
        similarity: [rows columns rows columns]. A place is not compared with itself.

    Returns:
        NaN for a grid of one row or one column.
    """
    rows, columns = similarity.shape[:2]
    same_row = np.eye(rows, dtype=bool)[:, None, :, None]
    same_column = np.eye(columns, dtype=bool)[None, :, None, :]
    lines = np.broadcast_to(same_row ^ same_column, similarity.shape)
    others = np.broadcast_to(~same_row & ~same_column, similarity.shape)
    if not others.any():
        return float("nan")
    return float(similarity[lines].mean() - similarity[others].mean())
