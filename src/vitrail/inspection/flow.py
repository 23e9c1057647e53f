"""The way back from the head to the picture: through which layers of attention and which grids.

A path is the list of a model's steps in the order of the forward pass: layers of attention, and
the strided steps between grids. To follow it back one row is enough, how much of each token the
head reads: the row is multiplied into the last layer first, which is the product of all layers'
matrices without ever holding one (Chefer et al., arXiv 2103.15679, equation 6; Abnar and Zuidema,
2020, for rollout), and costs n numbers where those cost n x n.
What is chosen here, because no paper says it: a strided step, and a key that stands for several
places, hands its share in equal parts to the places that its window sees, so nothing is lost on the
way; positions of a convolutional map stand for the square of the picture in their place, although
they see more of it; a Performer, which has no attention to record, passes each token on as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.models.botnet import BoTNet, BoTNetConfig
from vitrail.models.cvt import CvT
from vitrail.models.pvt import PyramidVisionTransformer
from vitrail.models.pvt_v2 import PVTv2Config
from vitrail.models.pyramid import POOLED, Pyramid
from vitrail.models.stages import stage_strides
from vitrail.models.t2t import SPLITS, T2TViT
from vitrail.models.vit import VisionTransformer

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Windows:
    """What each place of a coarse grid sees of a fine one, in equal shares.

    Args:
        rows: float64 [coarse rows, fine rows], each row of it sums to 1.
        columns: float64 [coarse columns, fine columns], likewise.
    """

    rows: Tensor
    columns: Tensor

    def spread(self, shares: Tensor) -> Tensor:
        """Shares of coarse places [b rows columns] to those of fine places, with the same sum."""
        rows, columns = self.rows.to(shares), self.columns.to(shares)
        return rows.T @ shares @ columns


def windows(
    fine: Grid, kernel: int, stride: int, padding: int = 0, whole: bool = False
) -> Windows:
    """The windows of a convolution or pooling over a grid.

    Args:
        fine: (rows, columns) of what it slides over.
        kernel, stride, padding: of the convolution.
        whole: what does not fill a window at the border has one too (as many as the stride needs
            to cover the grid), instead of being left out.
    """
    return Windows(*(_axis(length, kernel, stride, padding, whole) for length in fine))


def pooled(fine: Grid, coarse: Grid) -> Windows:
    """The windows of adaptive average pooling, which overlap where the sides do not divide."""
    return Windows(*(_pooled_axis(*sides) for sides in zip(fine, coarse, strict=True)))


def _axis(length: int, kernel: int, stride: int, padding: int, whole: bool) -> Tensor:
    count = -(-length // stride) if whole else (length + 2 * padding - kernel) // stride + 1
    starts = torch.arange(count)[:, None] * stride - padding
    places = torch.arange(length)
    seen = ((places >= starts) & (places < starts + kernel)).double()
    return seen / seen.sum(1, keepdim=True)


def _pooled_axis(length: int, count: int) -> Tensor:
    number, places = torch.arange(count)[:, None], torch.arange(length)
    first, last = number * length // count, -(-(number + 1) * length // count)
    seen = ((places >= first) & (places < last)).double()
    return seen / seen.sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Attending:
    """A layer of attention, by its name on the tape: [b h prefix+n prefix+m].

    Args:
        name: such as ``blocks.3.attention``.
        keys: what each of the m keys sees of the n places; None where they are the same.
    """

    name: str
    keys: Windows | None = None


@dataclass(frozen=True, eq=False)
class Coarsening:
    """A strided step from one grid to the next; tokens before the places begin after it."""

    windows: Windows


@dataclass(frozen=True, eq=False)
class Path:
    """The steps of a model for pictures of one size, from the picture to the head.

    Args:
        steps: in the order of the forward pass; the first leads from pixels to the first tokens.
        grid, prefix: (rows, columns) of the last layer's places, and the tokens before them.
        reads: what the head sees of the last tokens: ``token``, ``tokens`` (two of them: a
            distilled model), ``mean``, ``token_mean`` or ``map``.
    """

    steps: tuple[Attending | Coarsening, ...]
    grid: Grid
    prefix: int
    reads: str

    @property
    def attention(self) -> list[str]:
        """The names of the layers of attention, first layer first."""
        return [step.name for step in self.steps if isinstance(step, Attending)]


def path_of(model: ImageClassifier, size: Grid) -> Path:
    """The path of a model for pictures of (height, width) pixels.

    Raises:
        Error: a network without attention, or one that gives logits of every token.
    """
    for kind, path in _PATHS.items():
        if isinstance(model, kind):
            found = path(model, size)
            if found.reads == "none":
                raise Error(
                    "a model that gives every token to its head (pool 'none') has no one class "
                    "to explain; build it with another pool"
                )
            return found
    raise Error(
        f"{type(model).__name__} has no attention, so there is none to follow back; "
        "ask for explanations by gradients instead"
    )


def attends(model: ImageClassifier) -> bool:
    """Whether a model has attention over the places of the picture."""
    return isinstance(model, tuple(_PATHS))


def what_is_read(path: Path, pool: Tensor) -> Tensor:
    """How much of each of the last tokens the head reads: [b prefix+n], rows that sum to 1.

    Args:
        path: of the model and of the pictures' size.
        pool: [b n], what attention pooling reads of each patch, taken as it is; of any other
            model only the number of rows, the type and the device are taken from it.
    """
    row = pool.new_zeros(pool.shape[0], path.prefix + path.grid[0] * path.grid[1])
    if path.reads == "map":
        row[:, path.prefix :] = pool
    elif path.reads == "mean":
        row[:, path.prefix :] = 1 / (path.grid[0] * path.grid[1])
    else:
        tokens = 2 if path.reads == "tokens" else 1
        row[:, :tokens] = 1 / tokens
        if path.reads == "token_mean":
            row = row / 2
            row[:, path.prefix :] = 1 / (2 * path.grid[0] * path.grid[1])
    return row


def follow_back(
    path: Path, row: Tensor, layers: Mapping[str, Tensor], residual: float | None = None
) -> Tensor:
    """How much of each pixel reaches what the head reads: [b height width].

    Args:
        path: of the model and of the pictures' size.
        row: [b prefix+n], see `what_is_read`.
        layers: by name, each with its heads fused: [b prefix+n prefix+m], not negative. A layer
            that is not there passes every token on as it is.
        residual: None for relevance, r + r A at each layer; a share for rollout, in which the
            identity has that share, and each row of the mixture is scaled to sum to 1.
    """
    grid, prefix = path.grid, path.prefix
    for step in reversed(path.steps):
        if isinstance(step, Coarsening):
            fine = step.windows.spread(row[:, prefix:].unflatten(1, grid))
            row, grid, prefix = fine.flatten(1), (fine.shape[1], fine.shape[2]), 0
        elif step.name in layers:
            layer, kept = layers[step.name], row
            if residual is not None:
                row = row / ((1 - residual) * layer.sum(-1) + residual)
                kept, row = residual * row, (1 - residual) * row
            row = kept + _at_places((row[:, None] @ layer)[:, 0], step.keys, prefix)
    return row.unflatten(1, grid)


def _at_places(keys: Tensor, sees: Windows | None, prefix: int) -> Tensor:
    """Shares of keys [b prefix+m] to those of places [b prefix+n]."""
    if sees is None:
        return keys
    coarse = (sees.rows.shape[0], sees.columns.shape[0])
    places = sees.spread(keys[:, prefix:].unflatten(1, coarse))
    return torch.cat([keys[:, :prefix], places.flatten(1)], dim=1)


def _of_plain(model: VisionTransformer, size: Grid) -> Path:
    c = model.config
    if c.patch_size == c.stride:
        first = windows(size, c.stride, c.stride)
    else:  # a hybrid: places of the ResNet's map, the last ones cut at the border
        first = windows(size, c.stride, c.stride, whole=True)
    layers = [Attending(f"blocks.{i}.attention") for i in range(c.depth)]
    reads = "tokens" if c.distilled else c.pool
    return Path((Coarsening(first), *layers), c.grid_of(size), c.prefix, reads)


def _of_t2t(model: T2TViT, size: Grid) -> Path:
    c, steps, fine = model.config, [], size
    for split, (split_windows, grid) in enumerate(zip(SPLITS, c.grids(size), strict=True)):
        steps.append(Coarsening(windows(fine, *split_windows)))
        if split < 2 and c.tokens == "transformer":
            steps.append(Attending(f"tokens.{split}.attention"))
        fine = grid
    layers = [Attending(f"blocks.{i}.attention") for i in range(c.depth)]
    return Path((*steps, *layers), fine, 1, "token")


def _of_cvt(model: CvT, size: Grid) -> Path:
    c, steps, fine = model.config, [], size
    for stage, grid in enumerate(c.grids(size)):
        steps.append(Coarsening(windows(fine, *c.kernel(stage))))
        for block in range(c.depths[stage]):
            name = f"stages.{stage}.blocks.{block}.attention"
            convolved = c.of_stage("projections", stage) == "convolution"
            stride = c.of_block("kv_strides", stage, block)
            steps.append(Attending(name, windows(grid, 3, stride, 1) if convolved else None))
        fine = grid
    return Path(tuple(steps), fine, c.prefix(len(c.depths) - 1), c.pool)


def _of_pyramid(model: Pyramid, size: Grid) -> Path:
    c, steps, fine = model.config, [], size
    linear = isinstance(c, PVTv2Config) and c.linear
    for stage, grid in enumerate(c.grids(size)):
        stride = 2 if stage else 4
        overlap = (2 * stride - 1, stride, stride - 1) if model.convolved else (stride, stride)
        steps.append(Coarsening(windows(fine, *overlap)))
        by = c.reductions[stage]
        keys = None if by == 1 else windows(grid, by, by)
        keys = pooled(grid, (POOLED, POOLED)) if linear else keys
        names = [f"stages.{stage}.blocks.{i}.attention" for i in range(c.depths[stage])]
        steps += [Attending(name, keys) for name in names]
        fine = grid
    token = isinstance(model, PyramidVisionTransformer)
    return Path(tuple(steps), fine, int(token), "token" if token else "mean")


def _of_botnet(model: BoTNet, size: Grid) -> Path:
    c = cast(BoTNetConfig, model.config)
    stage, grid = len(c.depths) - 1, c.grids(size)[0]
    before = stage_strides(c.depths)[-2]
    steps: list[Attending | Coarsening] = [Coarsening(windows(size, before, before, whole=True))]
    for block in range(c.depths[-1]):
        steps.append(Attending(f"stages.{stage}.blocks.{block}.attention"))
        if c.stride(stage, block) > 1:
            steps.append(Coarsening(windows(grid, 2, 2, whole=True)))
            grid = (-(-grid[0] // 2), -(-grid[1] // 2))
    return Path(tuple(steps), grid, 0, "mean")


_PATHS: dict[type, Callable[[Any, Grid], Path]] = {
    VisionTransformer: _of_plain,
    T2TViT: _of_t2t,
    CvT: _of_cvt,
    Pyramid: _of_pyramid,
    BoTNet: _of_botnet,
}
