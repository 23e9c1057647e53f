"""The layers of PVT and of PVT v2."""

from math import prod

from vitrail.models.base import height_width
from vitrail.models.cost.anatomy import KEPT_BY_ACTIVATION, Anatomy, Layer
from vitrail.models.pvt import PVTConfig
from vitrail.models.pvt_v2 import PVTv2Config
from vitrail.models.pyramid import POOLED, Grid, PyramidConfig


def pvt_layers(config: PVTConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a PVT for pictures of a size (height, width)."""
    c, anatomy = config, Anatomy()
    anatomy.add("images", (*size, c.in_channels))
    own = c.grids(height_width(c.image_size))
    n = 0
    for stage, grid in enumerate(c.grids(size)):
        width, prefix = c.widths[stage], int(stage == len(c.depths) - 1)
        _embedding(anatomy, c, f"patch_embed{stage + 1}", stage, grid, _before(c, size, stage))
        if stage == 0:
            anatomy.add("patches", (prod(grid), width))
        n = prod(grid) + prefix
        if prefix:
            anatomy.add("cls_token", (n, width), parameters=width)
        rows = prod(own[stage]) + prefix
        kept = n * width if c.dropout else 0
        name = f"pos_embed{stage + 1}"
        anatomy.add(name, (n, width), parameters=rows * width, activations=kept)
        for i in range(c.depths[stage]):
            names = (f"block{stage + 1}.{i}", f"stages.{stage}.blocks.{i}.attention")
            _attention(anatomy, c, names, stage, grid, n)
            hidden = width * c.mlp_ratios[stage]
            mlp = f"block{stage + 1}.{i}.mlp"
            anatomy.norm(f"block{stage + 1}.{i}.norm2", (n,), width)
            anatomy.mlp(mlp, (n,), (width, hidden), c.activation, c.dropout > 0)
    width = c.widths[-1]
    anatomy.norm("norm", (n,), width)
    # The class token is a view of all tokens, which therefore are kept until it is used.
    _head(anatomy, c, n * width)
    return list(anatomy)


def pvt_v2_layers(config: PVTv2Config, size: tuple[int, int]) -> list[Layer]:
    """The layers of a PVT v2 for pictures of a size (height, width)."""
    c, anatomy = config, Anatomy()
    anatomy.add("images", (*size, c.in_channels))
    for stage, grid in enumerate(c.grids(size)):
        n, width = prod(grid), c.widths[stage]
        name = f"stages.{stage}.downsample" if stage else "patch_embed"
        _embedding(anatomy, c, name, stage, grid, _before(c, size, stage))
        if stage == 0:
            anatomy.add("patches", (n, width))
        for i in range(c.depths[stage]):
            block = f"stages.{stage}.blocks.{i}"
            _attention(anatomy, c, (block, f"{block}.attention"), stage, grid, n)
            anatomy.norm(f"{block}.norm2", (n,), width)
            _conv_mlp(anatomy, c, f"{block}.mlp", stage, grid)
        anatomy.norm(f"stages.{stage}.norm", (n,), width)
    _head(anatomy, c, c.widths[-1])
    return list(anatomy)


def _before(c: PyramidConfig, size: tuple[int, int], stage: int) -> int:
    """The elements of the map that a stage begins with."""
    if stage == 0:
        return prod(size) * c.in_channels
    return prod(c.grids(size)[stage - 1]) * c.widths[stage - 1]


def _embedding(
    anatomy: Anatomy, c: PyramidConfig, name: str, stage: int, grid: Grid, kept: int
) -> None:
    stride = 2 if stage else 4
    kernel = 2 * stride - 1 if isinstance(c, PVTv2Config) else stride
    channels = (c.widths[stage - 1] if stage else c.in_channels, c.widths[stage])
    anatomy.convolution(f"{name}.proj", channels, kernel, grid, kept)
    anatomy.norm(f"{name}.norm", (prod(grid),), c.widths[stage])


def _attention(
    anatomy: Anatomy, c: PyramidConfig, names: tuple[str, str], stage: int, grid: Grid, n: int
) -> None:
    """Norm and attention of one block: ``names`` are the block's and the map's."""
    (block, taped), d, reduction = names, c.widths[stage], c.reductions[stage]
    linear = isinstance(c, PVTv2Config) and c.linear
    anatomy.norm(f"{block}.norm1", (n,), d)
    m, seen = n, 0
    if linear or reduction > 1:
        small = (POOLED, POOLED) if linear else (grid[0] // reduction, grid[1] // reduction)
        m = prod(small)
        # The convolution keeps what it sees: the pooled map, or the same tokens that q keeps.
        kernel, kept = (1, m * d) if linear else (reduction, 0)
        anatomy.convolution(f"{block}.attn.sr", (d, d), kernel, small, kept)
        anatomy.norm(f"{block}.attn.norm", (m,), d)
        seen = m * d * (1 + linear)  # and GELU's input in the linear form
    anatomy.linear(f"{block}.attn.q", (n,), d, d, kept=n * d, bias=c.qkv_bias)
    anatomy.linear(f"{block}.attn.kv", (m,), d, 2 * d, kept=seen, bias=c.qkv_bias)
    anatomy.attention(taped, c.heads[stage], n, m, d)
    anatomy.linear(f"{block}.attn.proj", (n,), d, d, kept=n * d if c.dropout else 0)


def _conv_mlp(anatomy: Anatomy, c: PVTv2Config, name: str, stage: int, grid: Grid) -> None:
    n, d = prod(grid), c.widths[stage]
    hidden = d * c.mlp_ratios[stage]
    anatomy.linear(f"{name}.fc1", (n,), d, hidden, kept=n * d)
    anatomy.add(
        f"{name}.dwconv",
        (*grid, hidden),
        parameters=10 * hidden,
        macs=9 * hidden * n,
        activations=n * hidden,
    )
    inside = n * hidden * (1 + KEPT_BY_ACTIVATION[c.activation])
    dropped = n * (hidden + d) if c.dropout else 0
    anatomy.linear(f"{name}.fc2", (n,), hidden, d, kept=inside + dropped)


def _head(anatomy: Anatomy, c: PyramidConfig, kept: int) -> None:
    anatomy.add("pooled", (c.widths[-1],))
    if c.num_classes:
        anatomy.linear("head", (), c.widths[-1], c.num_classes, kept=kept)
