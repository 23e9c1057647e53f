"""Where the patches lie, for the plain ViT: every way of saying so in the ViT paper's Table 8.

Appendix D.4 of the paper describes them: no position; 1-D (a row for each token in raster order);
2-D (a row for each column of the grid and one for each of its rows, half as wide, side by side);
relative (a key for each offset in the sequence); and a table is added at the input, at the
beginning of every layer, or there from one table. What the paper leaves open is chosen here: the
class token has a row of its own in every kind of table, and relative keys, which run over the
whole sequence, are one for all heads. Tables lie in the model as `pos_embed` (timm's name),
`pos_embed_{prefix,x,y}` or `pos_embed_offset`, [1 or depth, rows, width].
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.kit.grid import resize_table, sincos2d, sincos2d_mae

if TYPE_CHECKING:
    from vitrail.models.vit import ViTConfig

Grid = tuple[int, int]

FIXED_TABLES = {"sincos2d": sincos2d, "sincos2d_mae": sincos2d_mae}
POSITIONS = ("learned", "learned2d", "relative", *FIXED_TABLES, "none")
PLACES = ("input", "layers", "layers_shared")


def table_shapes(c: "ViTConfig") -> dict[str, tuple[int, int, int]]:
    """The tables of a model by name, each as (tables, rows, width)."""
    patches = c.grid[0] * c.grid[1]
    if c.position == "none":
        return {}
    if c.position == "relative":
        count = 1 if c.position_at == "layers_shared" else c.depth
        return {"pos_embed_offset": (count, 2 * (c.prefix + patches) - 1, c.width // c.heads)}
    if c.position in FIXED_TABLES:
        return {"pos_embed": (1, c.position_rows + patches, c.width)}
    count = c.depth if c.position_at == "layers" else 1
    if c.position == "learned":
        return {"pos_embed": (count, c.position_rows + patches, c.width)}
    shapes = {
        "pos_embed_prefix": (count, c.position_rows, c.width),
        "pos_embed_x": (count, c.grid[1], c.width // 2),
        "pos_embed_y": (count, c.grid[0], c.width // 2),
    }
    return {name: shape for name, shape in shapes.items() if shape[1]}


def fixed_table(c: "ViTConfig", grid: Grid) -> Tensor:
    """The computed table of a grid of patches, float32 [1 rows d]; the prefix has zeros."""
    table = FIXED_TABLES[c.position](grid, c.width)
    return F.pad(table, (0, 0, c.position_rows, 0))[None]


def added(c: "ViTConfig", tables: Mapping[str, Tensor], grid: Grid) -> Tensor | None:
    """What is added to the tokens of a grid of patches, [1 or depth, prefix+n, d].

    None where nothing is: without positions, and with relative ones.
    """
    if c.position in ("none", "relative"):
        return None
    if c.position == "learned2d":
        across = resize_table(
            tables["pos_embed_x"], (c.grid[1], 1), (grid[1], 1), c.position_resize
        )
        down = resize_table(tables["pos_embed_y"], (c.grid[0], 1), (grid[0], 1), c.position_resize)
        across = across[:, None].expand(-1, grid[0], -1, -1)
        down = down[:, :, None].expand(-1, -1, grid[1], -1)
        table = torch.cat([across, down], dim=-1).flatten(1, 2)
        if c.position_rows:
            table = torch.cat([tables["pos_embed_prefix"], table], dim=1)
    elif grid == c.grid:
        table = tables["pos_embed"]
    elif c.position in FIXED_TABLES:
        table = fixed_table(c, grid).to(tables["pos_embed"])
    else:
        table = tables["pos_embed"]
        table = resize_table(table, c.grid, grid, c.position_resize, c.position_rows)
    return F.pad(table, (0, 0, c.prefix - c.position_rows, 0))


def offset_keys(c: "ViTConfig", tables: Mapping[str, Tensor], grid: Grid) -> Tensor | None:
    """The keys of relative attention for a grid of patches, [1 or depth, 2t-1, d/h], if any."""
    if c.position != "relative":
        return None
    rows = 2 * (c.prefix + grid[0] * grid[1]) - 1
    return _resize_offsets(tables["pos_embed_offset"], rows)


def refit(c: "ViTConfig", name: str, tensor: Tensor) -> tuple[Tensor, str] | None:
    """Fit a 2-D or relative table of another size: see `ImageClassifier.refit`."""
    count, rows, width = table_shapes(c).get(name, (0, 0, 0))
    old = tensor.shape[1] if tensor.ndim == 3 else 0
    if not old or tensor.shape != (count, old, width):
        return None
    if name == "pos_embed_offset":
        return _resize_offsets(tensor, rows), f"{old} -> {rows} offsets, linear"
    if name in ("pos_embed_x", "pos_embed_y"):
        resized = resize_table(tensor, (old, 1), (rows, 1), c.position_resize)
        return resized, f"{old} -> {rows}, {c.position_resize}"
    return None


def _resize_offsets(keys: Tensor, rows: int) -> Tensor:
    """Keys of offsets [l r e] for a sequence of another length: each at its share of the length."""
    return resize_table(keys, (keys.shape[1], 1), (rows, 1), "bilinear_corners")
