"""The layers of a plain ResNet; BoTNet writes its own blocks between the same stem and end."""

from math import prod

from vitrail.models.cost.anatomy import KEPT_BY_ACTIVATION, Anatomy, Layer
from vitrail.models.resnet import ResNetConfig
from vitrail.models.stages import stage_stride

INDEX = 2  # numbers of 4 bytes for where a maximum was found


def resnet_layers(config: ResNetConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a plain ResNet for pictures of a size (height, width)."""
    anatomy = Anatomy()
    grid, inside = stem_layers(anatomy, config, size), config.stem_width
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        for index in range(depth):
            grid = block_layers(anatomy, config, stage, index, (inside, width), grid)
            inside = width
    end_layers(anatomy, config, grid)
    return list(anatomy)


def strided(grid: tuple[int, int], stride: int) -> tuple[int, int]:
    """The map that a layer of this stride leaves, the borders being padded: rounded up."""
    return -(-grid[0] // stride), -(-grid[1] // stride)


def stem_layers(anatomy: Anatomy, c: ResNetConfig, size: tuple[int, int]) -> tuple[int, int]:
    """The picture, the 7x7 convolution and the pooling; returns the map's size."""
    anatomy.add("images", (*size, c.in_channels))
    grid, pixels = strided(size, 2), prod(size) * c.in_channels
    anatomy.convolution("conv1", (c.in_channels, c.stem_width), 7, grid, pixels, bias=False)
    anatomy.batch_norm("bn1", grid, c.stem_width)
    pooled = strided(grid, 2)
    kept = prod(grid) * (1 + KEPT_BY_ACTIVATION[c.activation]) + INDEX * prod(pooled)
    anatomy.add("stem", (*pooled, c.stem_width), activations=kept * c.stem_width)
    return pooled


def block_layers(
    anatomy: Anatomy,
    c: ResNetConfig,
    stage: int,
    index: int,
    channels: tuple[int, int],
    grid: tuple[int, int],
) -> tuple[int, int]:
    """One bottleneck on a map of ``grid``; returns the size of the map that leaves it."""
    name, stride = f"layer{stage + 1}.{index}", stage_stride(stage, index)
    outside, inner = channels[1], channels[1] // 4
    after, twice = strided(grid, stride), 1 + KEPT_BY_ACTIVATION[c.activation]
    before, rest = prod(grid) * inner * twice, prod(after) * inner * twice
    anatomy.convolution(
        f"{name}.conv1", (channels[0], inner), 1, grid, prod(grid) * channels[0], bias=False
    )
    anatomy.batch_norm(f"{name}.bn1", grid, inner)
    anatomy.convolution(f"{name}.conv2", (inner, inner), 3, after, before, bias=False)
    anatomy.batch_norm(f"{name}.bn2", after, inner)
    anatomy.convolution(f"{name}.conv3", (inner, outside), 1, after, rest, bias=False)
    anatomy.batch_norm(f"{name}.bn3", after, outside)
    shortcut_layers(anatomy, name, channels, stride, after)
    sums = prod(after) * outside * KEPT_BY_ACTIVATION[c.activation]
    anatomy.add(f"stages.{stage}.blocks.{index}.out", (*after, outside), activations=sums)
    return after


def shortcut_layers(
    anatomy: Anatomy, name: str, channels: tuple[int, int], stride: int, grid: tuple[int, int]
) -> None:
    """The projection of a block whose shape changes, giving a map of ``grid``."""
    if stride != 1 or channels[0] != channels[1]:
        # Its input is the block's, which the first convolution keeps already.
        anatomy.convolution(f"{name}.downsample.0", channels, 1, grid, kept=0, bias=False)
        anatomy.batch_norm(f"{name}.downsample.1", grid, channels[1])


def end_layers(anatomy: Anatomy, c: ResNetConfig, grid: tuple[int, int]) -> None:
    """From the last map to the logits."""
    width = c.widths[-1]
    # The last block's activation keeps its own output where no convolution follows.
    kept = prod(grid) * width * (c.activation == "relu")
    anatomy.add("pooled", (width,), activations=kept)
    if c.num_classes:
        anatomy.linear("fc", (), width, c.num_classes, kept=width)
