"""The layers of a hybrid: a ResNet with SAME padding, then a plain ViT's."""

from math import prod

from vitrail.models.cost.anatomy import Anatomy, Layer
from vitrail.models.cost.resnet import INDEX, strided
from vitrail.models.cost.vit import sequence_layers
from vitrail.models.hybrid import HybridConfig
from vitrail.models.stages import stage_stride
from vitrail.models.standardize import GROUPS, same_padding

Grid = tuple[int, int]


def hybrid_layers(config: HybridConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a hybrid for pictures of a size (height, width)."""
    c, anatomy = config, Anatomy()
    tokens = c.grid_of(size)
    anatomy.add("images", (*size, c.in_channels))
    root = "patch_embed.backbone"
    grid, inside = _stem(anatomy, c, f"{root}.stem" if c.depths else root, size), c.stem_width
    for stage, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
        for index in range(depth):
            grid = _block(anatomy, root, stage, index, (inside, width), grid)
            inside = width
    kept = prod(grid) * inside
    anatomy.convolution("patch_embed.proj", (inside, c.width), c.patch_size, tokens, kept)
    sequence_layers(anatomy, c, tokens)
    return list(anatomy)


def _padded(grid: Grid, kernel: int, stride: int) -> int:
    """Positions of a map with SAME padding."""
    return prod(side + sum(same_padding(side, kernel, stride)) for side in grid)


def _stem(anatomy: Anatomy, c: HybridConfig, name: str, size: Grid) -> Grid:
    channels, grid = (c.in_channels, c.stem_width), strided(size, 2)
    kept = _padded(size, 7, 2) * c.in_channels
    anatomy.convolution(f"{name}.conv", channels, 7, grid, kept, bias=False, copied=True)
    anatomy.group_norm(f"{name}.norm", grid, c.stem_width, GROUPS)
    pooled = strided(grid, 2)
    kept = _rectified(grid) + INDEX * prod(pooled)
    anatomy.add("stem", (*pooled, c.stem_width), activations=kept * c.stem_width)
    return pooled


def _rectified(grid: Grid) -> int:
    """Positions kept where a ReLU's output goes into a strided 3x3 layer: its own and a padded one.

    They are one where no padding is needed.
    """
    padded = _padded(grid, 3, 2)
    return prod(grid) + (padded if padded != prod(grid) else 0)


def _block(
    anatomy: Anatomy, root: str, stage: int, index: int, channels: tuple[int, int], grid: Grid
) -> Grid:
    tape = f"stages.{stage}.blocks.{index}"
    name, stride = f"{root}.{tape}", stage_stride(stage, index)
    outside, inner = channels[1], channels[1] // 4
    after = strided(grid, stride)
    anatomy.convolution(
        f"{name}.conv1",
        (channels[0], inner),
        1,
        grid,
        prod(grid) * channels[0],
        bias=False,
        copied=True,
    )
    anatomy.group_norm(f"{name}.norm1", grid, inner, GROUPS)
    kept = inner * (prod(grid) if stride == 1 else _rectified(grid))
    anatomy.convolution(f"{name}.conv2", (inner, inner), 3, after, kept, bias=False, copied=True)
    anatomy.group_norm(f"{name}.norm2", after, inner, GROUPS)
    anatomy.convolution(
        f"{name}.conv3", (inner, outside), 1, after, prod(after) * inner, bias=False, copied=True
    )
    anatomy.group_norm(f"{name}.norm3", after, outside, GROUPS)
    if stride != 1 or channels[0] != outside:  # of the same input as conv1
        anatomy.convolution(
            f"{name}.downsample.conv", channels, 1, after, kept=0, bias=False, copied=True
        )
        anatomy.group_norm(f"{name}.downsample.norm", after, outside, GROUPS)
    anatomy.add(f"{tape}.out", (*after, outside))
    return after
