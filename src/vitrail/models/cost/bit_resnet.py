"""The layers of a BiT ResNet-v2; standardised weights are kept once for the whole batch."""

from math import prod

from vitrail.models.bit_resnet import BiTConfig
from vitrail.models.cost.anatomy import Anatomy, Layer
from vitrail.models.cost.resnet import INDEX, strided
from vitrail.models.stages import stage_stride
from vitrail.models.standardize import GROUPS


def bit_layers(config: BiTConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a BiT ResNet-v2 for pictures of a size (height, width)."""
    c, anatomy = config, Anatomy()
    anatomy.add("images", (*size, c.in_channels))
    grid, pixels = strided(size, 2), prod(size) * c.in_channels
    channels = (c.in_channels, c.stem_width)
    anatomy.convolution("stem.conv", channels, 7, grid, pixels, bias=False, copied=True)
    bordered, grid = (grid[0] + 2) * (grid[1] + 2), strided(grid, 2)
    kept = (bordered + INDEX * prod(grid)) * c.stem_width
    anatomy.add("stem", (*grid, c.stem_width), activations=kept)
    inside = c.stem_width
    for stage, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
        for index in range(depth):
            grid = _block(anatomy, stage, index, (inside, width), grid)
            inside = width
    anatomy.group_norm("norm", grid, inside, GROUPS)
    anatomy.add("pooled", (inside,), activations=prod(grid) * inside)
    if c.num_classes:
        anatomy.linear("head.fc", (), inside, c.num_classes, kept=inside)
    return list(anatomy)


def _block(
    anatomy: Anatomy, stage: int, index: int, channels: tuple[int, int], grid: tuple[int, int]
) -> tuple[int, int]:
    name, stride = f"stages.{stage}.blocks.{index}", stage_stride(stage, index)
    outside, inner = channels[1], channels[1] // 4
    after = strided(grid, stride)
    before = prod(grid)
    anatomy.group_norm(f"{name}.norm1", grid, channels[0], GROUPS)
    if stride != 1 or channels[0] != outside:  # of the same input as conv1
        anatomy.convolution(
            f"{name}.downsample.conv", channels, 1, after, kept=0, bias=False, copied=True
        )
    anatomy.convolution(
        f"{name}.conv1",
        (channels[0], inner),
        1,
        grid,
        before * channels[0],
        bias=False,
        copied=True,
    )
    anatomy.group_norm(f"{name}.norm2", grid, inner, GROUPS)
    anatomy.convolution(
        f"{name}.conv2", (inner, inner), 3, after, before * inner, bias=False, copied=True
    )
    anatomy.group_norm(f"{name}.norm3", after, inner, GROUPS)
    kept = prod(after) * inner
    anatomy.convolution(f"{name}.conv3", (inner, outside), 1, after, kept, bias=False, copied=True)
    anatomy.add(f"{name}.out", (*after, outside))
    return after
