"""The layers of a CvT.

Batch norm keeps its input; nothing else of it is counted, as its deviations are one a batch.
"""

from math import prod

from vitrail.models.cost.anatomy import Anatomy, Layer
from vitrail.models.cvt import CvTConfig


def cvt_layers(config: CvTConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a CvT for pictures of a size (height, width)."""
    c = config
    anatomy = Anatomy()
    anatomy.add("images", (*size, c.in_channels))
    channels, kept = c.in_channels, prod(size) * c.in_channels
    for stage, grid in enumerate(c.grids(size)):
        _embedding(anatomy, c, stage, grid, channels, kept)
        for block in range(c.depths[stage]):
            _block(anatomy, c, stage, block, grid)
        channels = c.widths[stage]
        kept = prod(grid) * channels
    width, n = c.widths[-1], c.prefix(len(c.depths) - 1) + prod(c.grids(size)[-1])
    anatomy.norm("norm", (n,), width)
    anatomy.add("pooled", (width,))
    if c.num_classes:
        # The class token is a view of all tokens, which therefore are kept.
        kept = n * width if c.pool == "token" else width
        anatomy.linear("head", (), width, c.num_classes, kept=kept)
    return list(anatomy)


def _embedding(
    anatomy: Anatomy, c: CvTConfig, stage: int, grid: tuple[int, int], channels: int, kept: int
) -> None:
    """From the picture to the tokens that enter a stage's blocks."""
    name, width, n = f"stage{stage}", c.widths[stage], prod(grid)
    kernel = c.kernel(stage)[0]
    anatomy.convolution(f"{name}.patch_embed.proj", (channels, width), kernel, grid, kept)
    anatomy.norm(f"{name}.patch_embed.norm", (n,), width)
    anatomy.add(f"stages.{stage}.patches", (n, width))
    prefix = c.prefix(stage)
    tokens = n + prefix
    if prefix:
        anatomy.add(f"{name}.cls_token", (tokens, width), parameters=width)
    if c.has_position(stage):
        rows = prefix + prod(c.grids()[stage])
        anatomy.add(f"{name}.pos_embed", (tokens, width), parameters=rows * width)
    if c.dropout:
        anatomy.add(f"stages.{stage}.embedded", (tokens, width), activations=tokens * width)


def _block(anatomy: Anatomy, c: CvTConfig, stage: int, block: int, grid: tuple[int, int]) -> None:
    """One block of a stage."""
    name, width, prefix = f"stage{stage}.blocks.{block}", c.widths[stage], c.prefix(stage)
    n = prefix + prod(grid)
    m, stride = n, 1
    anatomy.norm(f"{name}.norm1", (n,), width)
    convolved = c.of_stage("projections", stage) == "convolution"
    if convolved:
        stride = c.of_block("kv_strides", stage, block)
        fewer = ((grid[0] - 1) // stride + 1, (grid[1] - 1) // stride + 1)
        m = prefix + prod(fewer)
        for which, to in (("q", grid), ("k", fewer), ("v", fewer)):
            # All three convolutions keep the same input, the first is told of it.
            kept = n * width if which == "q" else 0
            at = f"{name}.attn.conv_proj_{which}"
            weights = 9 * width
            anatomy.add(
                f"{at}.conv",
                (*to, width),
                parameters=weights,
                macs=weights * prod(to),
                activations=kept,
            )
            kept = prod(to) * width
            anatomy.add(f"{at}.bn", (*to, width), parameters=2 * width, activations=kept)
    for which, tokens in (("q", n), ("k", m), ("v", m)):
        kept = tokens * width if convolved or which == "q" else 0
        at = f"{name}.attn.proj_{which}"
        anatomy.linear(at, (tokens,), width, width, kept=kept, bias=c.qkv_bias)
    taped = f"stages.{stage}.blocks.{block}"
    anatomy.attention(f"{taped}.attention", c.heads[stage], n, m, width)
    dropped = n * width if c.dropout else 0
    anatomy.linear(f"{name}.attn.proj", (n,), width, width, kept=dropped)
    anatomy.norm(f"{name}.norm2", (n,), width)
    hidden = c.hidden(stage, block)
    anatomy.mlp(f"{name}.mlp", (n,), (width, hidden), c.activation, c.dropout > 0)
