"""Where tokens lie in the picture, for every family that attends: the map behind every figure.

A token's place is the centre of the window that its convolutions see, in pixels of the model's
input (the first pixel's centre is 0.5). For patches that is the patch's centre; a convolution that
pads begins earlier, so CvT's tokens lie at 1.5, 17.5, 33.5, ... of 16 pixels each, and the keys of
a strided projection lie upon every second query, not between two of them. A residual block of a
hybrid has two ways whose windows lie a position apart: its place is taken between them.
Everything here is separable in rows and columns, so a grid is two lists of numbers and what one
grid makes of another are two small matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.botnet import BoTNetConfig
from vitrail.models.cvt import CvTConfig
from vitrail.models.hybrid import HybridConfig
from vitrail.models.pvt import PVTConfig
from vitrail.models.pvt_v2 import PVTv2Config
from vitrail.models.pyramid import POOLED, PyramidConfig
from vitrail.models.standardize import same_padding
from vitrail.models.t2t import UNFOLDINGS, T2TConfig
from vitrail.models.vit import ViTConfig

POOLING = "pool.attention"  # on the tape, of a pooling that attends
Grid = tuple[int, int]
Windows = tuple[np.ndarray, np.ndarray]
"""What a grid makes of another: for rows and for columns a matrix [to from]; see `windows`."""


@dataclass(frozen=True)
class Axis:
    """Places along one side of the picture, evenly spaced: the first centre, the step, the count.

    Numbers are pixels of the model's input.
    """

    first: float
    step: float
    count: int

    @property
    def centres(self) -> np.ndarray:
        """Float64 [count]."""
        return self.first + self.step * np.arange(self.count)

    def strided(self, kernel: int, stride: int, padding: int = 0, ceil: bool = False) -> "Axis":
        """The places of what a convolution or pooling makes of these; see `windows`."""
        room = self.count + 2 * padding - kernel
        count = (-(-room // stride) if ceil else room // stride) + 1
        first = self.first + self.step * ((kernel - 1) / 2 - padding)
        return Axis(first, self.step * stride, count)

    def same(self, kernel: int, stride: int) -> "Axis":
        """The places after TensorFlow's SAME padding."""
        before = same_padding(self.count, kernel, stride)[0]
        first = self.first + self.step * ((kernel - 1) / 2 - before)
        return Axis(first, self.step * stride, -(-self.count // stride))


def windows(before: int, after: int, kernel: int, stride: int, padding: int = 0) -> np.ndarray:
    """Which of ``before`` places each of ``after`` sees, and how much: [after before].

    Rows sum to 1, less what falls on padding, which is no place. Windows that overlap count their
    middle most (1, 2, 1 for a kernel of 3): with a stride of 2 every place then counts alike in
    all of them together, where even weights would count every second place twice.
    """
    places = np.arange(kernel)
    weights = np.minimum(places + 1, kernel - places) if kernel > stride else np.ones(kernel)
    seen = np.zeros((after, before))
    for row in range(after):
        inside = places + row * stride - padding
        kept = (inside >= 0) & (inside < before)
        seen[row, inside[kept]] = weights[kept]
    return seen / (weights.sum() if padding else seen.sum(1, keepdims=True))


def pooled_windows(before: int, after: int) -> np.ndarray:
    """The windows of adaptive average pooling, as for `windows`."""
    seen = np.zeros((after, before))
    for row in range(after):
        seen[row, row * before // after : -(-(row + 1) * before // after)] = 1
    return seen / seen.sum(1, keepdims=True)


@dataclass(frozen=True)
class Places:
    """A grid of tokens in row-major order, with others before it.

    Args:
        y, x: the centres of rows and columns, in pixels of the model's input.
        prefix: how many tokens (class, distillation, registers) stand before the grid's.
    """

    y: np.ndarray
    x: np.ndarray
    prefix: int = 0

    @property
    def grid(self) -> Grid:
        """(rows, columns)."""
        return len(self.y), len(self.x)

    @property
    def tokens(self) -> int:
        """How many tokens there are with the prefix."""
        return self.prefix + len(self.y) * len(self.x)

    def distances(self, other: "Places") -> Tensor:
        """Pixels from each place here to each place there, float32 [n m], without prefixes."""
        down = np.subtract.outer(self.y, other.y)[:, None, :, None]
        across = np.subtract.outer(self.x, other.x)[None, :, None, :]
        pixels = np.hypot(down, across).reshape(len(self.y) * len(self.x), -1)
        return torch.from_numpy(pixels.astype(np.float32))


@dataclass(frozen=True)
class Layer:
    """A layer of attention: its name, and where its queries and its keys lie.

    Args:
        name: its tensor on the tape, [b h n m], such as ``blocks.3.attention``.
        heads: h.
        stage: counted from 0; a plain Transformer is one stage.
        queries, keys: n and m with their prefix.
        reduced: what keys the queries' grid makes where there are fewer; None where they are one.
        arrived: what this layer's grid makes of that of the layer before; None where they are one.
        registers_only: the prefix holds no class token.
    """

    name: str
    heads: int
    stage: int
    queries: Places
    keys: Places
    reduced: Windows | None = None
    arrived: Windows | None = None
    registers_only: bool = False

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return self.queries.prefix > 0 and not self.registers_only

    @property
    def short(self) -> str:
        """The name without its last word: ``blocks.3``."""
        return self.name.removesuffix(".attention")

    @cached_property
    def distances(self) -> Tensor:
        """Pixels from query to key, float32 [n m], without prefixes."""
        return self.queries.distances(self.keys)


def layers_of(model: ImageClassifier, size: Grid | None = None) -> list[Layer]:
    """Every layer of attention from place to place, in order; none for a convolutional network.

    A Performer's attention (T2T-ViT's first two blocks) is never computed as a map and is not
    among them; a pooling's query is not a place and is not either.

    Args:
        size: (height, width) of the pictures; the model's own by default.

    Raises:
        Error: pictures that the model cannot take.
    """
    size = height_width(model.image_size) if size is None else size
    c = model.config
    if isinstance(c, ViTConfig):
        return list(_vit(c, size))
    if isinstance(c, T2TConfig):
        return list(_t2t(c, size))
    if isinstance(c, CvTConfig):
        return list(_cvt(c, size))
    if isinstance(c, PyramidConfig):
        return list(_pyramid(c, size))
    if isinstance(c, BoTNetConfig) and c.last_stage == "attention":
        return list(_botnet(c, size))
    return []


def _pixels(size: Grid) -> tuple[Axis, Axis]:
    return Axis(0.5, 1.0, size[0]), Axis(0.5, 1.0, size[1])


def _places(axes: tuple[Axis, Axis], prefix: int = 0) -> Places:
    return Places(axes[0].centres, axes[1].centres, prefix)


def _vit(c: ViTConfig, size: Grid) -> Iterator[Layer]:
    c.grid_of(size)
    axes = _pixels(size)
    if isinstance(c, HybridConfig):
        axes = (_hybrid(c, axes[0]), _hybrid(c, axes[1]))
    y, x = (axis.strided(c.patch_size, c.patch_size) for axis in axes)
    places = _places((y, x), c.prefix)
    for i in range(c.depth):
        only = not c.has_class_token
        yield Layer(f"blocks.{i}.attention", c.heads, 0, places, places, registers_only=only)


def _hybrid(c: HybridConfig, axis: Axis) -> Axis:
    axis = axis.same(7, 2).same(3, 2)
    for _ in c.depths[1:]:
        convolved, shortcut = axis.same(3, 2), axis.same(1, 2)
        first = (convolved.first + shortcut.first) / 2
        axis = Axis(first, convolved.step, convolved.count)
    return axis


def _t2t(c: T2TConfig, size: Grid) -> Iterator[Layer]:
    c.grids(size)
    axes, joins = _pixels(size), False
    arrived: Windows | None = None
    for i, (kernel, stride, padding) in enumerate(UNFOLDINGS[c.tokens]):
        after = (axes[0].strided(kernel, stride, padding), axes[1].strided(kernel, stride, padding))
        arrived = _windows(axes, after, kernel, stride, padding) if joins else None
        if i < 2 and c.tokens == "transformer":
            places = _places(after)
            yield Layer(f"tokens.{i}.attention", 1, i, places, places, arrived=arrived)
            joins = True
        axes = after
    places, stage = _places(axes, 1), 2 if joins else 0
    for i in range(c.depth):
        name = f"blocks.{i}.attention"
        yield Layer(name, c.heads, stage, places, places, arrived=None if i else arrived)


def _cvt(c: CvTConfig, size: Grid) -> Iterator[Layer]:
    c.grids(size)
    axes = _pixels(size)
    for stage, depth in enumerate(c.depths):
        kernel, stride, padding = c.kernel(stage)
        after = (axes[0].strided(kernel, stride, padding), axes[1].strided(kernel, stride, padding))
        arrived = _windows(axes, after, kernel, stride, padding) if stage else None
        axes, prefix = after, c.prefix(stage)
        queries = _places(axes, prefix)
        for block in range(depth):
            keys, reduced = queries, None
            if c.of_stage("projections", stage) == "convolution":
                by = c.of_block("kv_strides", stage, block)
                fewer = (axes[0].strided(3, by, 1), axes[1].strided(3, by, 1))
                keys, reduced = _places(fewer, prefix), _windows(axes, fewer, 3, by, 1)
            name = f"stages.{stage}.blocks.{block}.attention"
            heads, joined = c.heads[stage], None if block else arrived
            yield Layer(name, heads, stage, queries, keys, reduced, joined)


def _pyramid(c: PyramidConfig, size: Grid) -> Iterator[Layer]:
    c.grids(size)
    axes = _pixels(size)
    overlap, linear = isinstance(c, PVTv2Config), getattr(c, "linear", False)
    for stage, depth in enumerate(c.depths):
        stride = 2 if stage else 4
        kernel = 2 * stride - 1 if overlap else stride
        padding = kernel // 2 if overlap else 0
        after = (axes[0].strided(kernel, stride, padding), axes[1].strided(kernel, stride, padding))
        arrived = _windows(axes, after, kernel, stride, padding) if stage else None
        axes = after
        prefix = int(isinstance(c, PVTConfig) and stage == len(c.depths) - 1)
        queries, by = _places(axes, prefix), c.reductions[stage]
        keys, reduced = queries, None
        if linear:
            reduced = (
                pooled_windows(axes[0].count, POOLED),
                pooled_windows(axes[1].count, POOLED),
            )
            keys = Places(reduced[0] @ queries.y, reduced[1] @ queries.x)
        elif by > 1:
            fewer = (axes[0].strided(by, by), axes[1].strided(by, by))
            keys, reduced = _places(fewer), _windows(axes, fewer, by, by)
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}.attention"
            heads, joined = c.heads[stage], None if block else arrived
            yield Layer(name, heads, stage, queries, keys, reduced, joined)


def _botnet(c: BoTNetConfig, size: Grid) -> Iterator[Layer]:
    last = len(c.depths) - 1
    axes = [axis.strided(7, 2, 3).strided(3, 2, 1) for axis in _pixels(size)]
    for _ in range(1, last):
        axes = [axis.strided(3, 2, 1) for axis in axes]
    first = (axes[0], axes[1])
    # The first block attends before it averages the map.
    rest = first
    if c.attention_stride == 2:
        rest = (axes[0].strided(2, 2, ceil=True), axes[1].strided(2, 2, ceil=True))
    steps = [first, *[rest] * (c.depths[last] - 1)]
    arrived = [None, *(None if b is a else _windows(b, a, 2, 2) for b, a in pairwise(steps))]
    for block, axes_here in enumerate(steps):
        places = _places(axes_here)
        name = f"stages.{last}.blocks.{block}.attention"
        yield Layer(name, c.heads, 0, places, places, arrived=arrived[block])


def _windows(
    before: tuple[Axis, Axis], after: tuple[Axis, Axis], kernel: int, stride: int, padding: int = 0
) -> Windows:
    rows, columns = (
        windows(b.count, a.count, kernel, stride, padding)
        for b, a in zip(before, after, strict=True)
    )
    return rows, columns
