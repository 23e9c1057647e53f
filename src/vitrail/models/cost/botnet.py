"""The layers of a BoTNet: a ResNet's, but for the blocks that have attention or a gate."""

from math import prod

from vitrail.models.base import height_width
from vitrail.models.botnet import BoTNetConfig
from vitrail.models.cost.anatomy import KEPT_BY_ACTIVATION, Anatomy, Layer
from vitrail.models.cost.resnet import end_layers, shortcut_layers, stem_layers, strided

Grid = tuple[int, int]


def botnet_layers(config: BoTNetConfig, size: Grid) -> list[Layer]:
    """The layers of a BoTNet for pictures of a size (height, width)."""
    anatomy = Anatomy()
    grid, inside = stem_layers(anatomy, config, size), config.stem_width
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        for index in range(depth):
            grid = _block(anatomy, config, (stage, index), (inside, width), grid)
            inside = width
    end_layers(anatomy, config, grid)
    return list(anatomy)


def _block(
    anatomy: Anatomy,
    c: BoTNetConfig,
    at: tuple[int, int],
    channels: tuple[int, int],
    grid: Grid,
) -> Grid:
    """One block on a map of ``grid``; returns the size of the map that leaves it."""
    stage, index = at
    attends = c.attends(stage)
    name, stride = f"layer{stage + 1}.{index}", c.stride(stage, index)
    outside, inner = channels[1], channels[1] // 4
    after, twice = strided(grid, stride), 1 + KEPT_BY_ACTIVATION[c.activation]
    before, rest = prod(grid) * inner * twice, prod(after) * inner * twice
    anatomy.convolution(
        f"{name}.conv1", (channels[0], inner), 1, grid, prod(grid) * channels[0], bias=False
    )
    anatomy.batch_norm(f"{name}.bn1", grid, inner)
    if attends:
        _attention(anatomy, c, at, grid, before)
    else:
        anatomy.convolution(f"{name}.conv2", (inner, inner), 3, after, before, bias=False)
    anatomy.batch_norm(f"{name}.bn2", after, inner)
    anatomy.convolution(f"{name}.conv3", (inner, outside), 1, after, rest, bias=False)
    anatomy.batch_norm(f"{name}.bn3", after, outside)
    if c.squeeze and not attends:
        _gate(anatomy, c, name, after, outside)
    shortcut_layers(anatomy, name, channels, stride, after)
    projected = stride != 1 or channels[0] != channels[1]
    kept = KEPT_BY_ACTIVATION[c.activation] + (attends and projected)
    taped = f"stages.{stage}.blocks.{index}.out"
    anatomy.add(taped, (*after, outside), activations=prod(after) * outside * kept)
    return after


def _attention(
    anatomy: Anatomy, c: BoTNetConfig, at: tuple[int, int], grid: Grid, before: int
) -> None:
    """Attention over a map; ``before`` is what its projection keeps."""
    stage, index = at
    name, width = f"layer{stage + 1}.{index}.attn", c.widths[-1] // 4
    own, inner, n = c.grids(height_width(c.image_size))[index], width // c.heads, prod(grid)
    anatomy.convolution(f"{name}.qkv", (width, 3 * width), 1, grid, before, bias=False)
    if c.position == "relative":
        # Each query with every row's distance and with every column's. Their sum is learned,
        # so attention is not fused while training: it keeps its weights, in the place of one
        # number a query, and two copies each of queries and keys with the scale on them.
        kept = c.heads * n**2 + 3 * n * width - c.heads * n
        for axis, word in enumerate(("height", "width")):
            side = grid[axis]
            anatomy.add(
                f"{name}.rel_{word}",
                (c.heads, n, side),
                parameters=(2 * own[axis] - 1) * inner,
                macs=n * side * width,
                activations=kept if axis == 0 else 0,
            )
    elif c.position == "absolute":
        for axis, word in enumerate(("height", "width")):
            kept = n * width if axis == 0 else 0  # the keys with their positions
            parameters = own[axis] * inner
            anatomy.add(f"{name}.abs_{word}", (n, inner), parameters=parameters, activations=kept)
    anatomy.attention(f"stages.{stage}.blocks.{index}.attention", c.heads, n, n, width)
    if c.stride(stage, index) == 2:
        anatomy.add(f"{name}.mean", (*strided(grid, 2), width), activations=n * width)


def _gate(anatomy: Anatomy, c: BoTNetConfig, name: str, grid: Grid, width: int) -> None:
    """Squeeze-and-excitation of a map."""
    inside, one = max(1, round(width * c.squeeze)), (1, 1)
    anatomy.convolution(f"{name}.se.fc1", (width, inside), 1, one, kept=width)
    anatomy.convolution(f"{name}.se.fc2", (inside, width), 1, one, kept=inside)
    # The product keeps both of its factors.
    kept = prod(grid) * width + width
    anatomy.add(f"{name}.se", (*grid, width), activations=kept)
