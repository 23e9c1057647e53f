"""Grids of patches: cutting pictures into them, and the tables that say where each one lies.

Every family resizes its learned position table its own way, and the ways differ in the third
digit of the logits, so each is here under its own name (`RESIZES`) and a model says which it
needs. Tables are [rows d] with the prefix rows (class token, registers) first; grids are
(rows, columns), tokens in row-major order.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vitrail.kit.errors import Error

# name: (interpolation mode, antialias, corners onto corners, offset), and who resizes that way.
# An offset is added to the new grid's sides before the scale is taken (DINO's guard against
# rounding), which moves every sample a little.
RESIZES = {
    "bicubic_antialias": ("bicubic", True, False, 0.0),  # timm resample_abs_pos_embed; DINOv2 reg
    "bicubic": ("bicubic", False, False, 0.0),  # DeiT, MAE, T2T-ViT, transformers
    "bicubic_offset": ("bicubic", False, False, 0.1),  # DINO, DINOv2 interpolate_pos_encoding
    "bicubic_corners": ("bicubic", False, True, 0.0),  # torchvision interpolate_embeddings
    "bilinear": ("bilinear", False, False, 0.0),  # timm's reader of Google .npz; PVT
    "bilinear_corners": ("bilinear", False, True, 0.0),  # scipy zoom, order 1: vit_jax, big_vision
}


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images [b c h w] into flat patches [b n p*p*c], each in (row, column, channel) order.

    Raises:
        Error: the patch size does not divide the height and the width.
    """
    check_divides((images.shape[-2], images.shape[-1]), patch_size)
    return rearrange(
        images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size
    )  # MAE models_mae.py patchify


def check_divides(size: tuple[int, int], patch_size: int) -> None:
    """Raise an Error naming the nearest good size unless the patch divides both sides."""
    for side in size:
        if side % patch_size or side < patch_size:
            below = side // patch_size * patch_size
            near = f"{below} or {below + patch_size}" if below else f"{patch_size}"
            raise Error(
                f"image size {size[0]}x{size[1]} cannot be cut into patches of {patch_size}: "
                f"{side} is not a multiple of {patch_size}; use {near}"
            )


def resize_table(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], how: str, prefix: int = 0
) -> Tensor:
    """Resize a position table from one grid to another.

    Args:
        table: [prefix + old_rows*old_columns, d], or several of them along a leading axis.
        old, new: grids as (rows, columns).
        how: one of `RESIZES`.
        prefix: rows at the start that belong to no patch; they are kept as they are.

    Returns:
        [prefix + new_rows*new_columns, d] (with the leading axis if there was one), in the
        table's dtype, computed in float32 or better.

    Raises:
        Error: the table's rows are not prefix + the old grid.
    """
    if table.shape[-2] != prefix + old[0] * old[1]:
        raise Error(
            f"a position table of {table.shape[-2]} rows does not cover a grid of "
            f"{old[0]}x{old[1]} and {prefix} prefix tokens"
        )
    if old == new:
        return table
    mode, antialias, corners, offset = RESIZES[how]
    stack = table.reshape(-1, *table.shape[-2:])
    work = stack if stack.dtype == torch.float64 else stack.float()
    picture = rearrange(work[:, prefix:], "l (h w) d -> l d h w", h=old[0])
    scale = [(side + offset) / before for side, before in zip(new, old, strict=True)]
    picture = F.interpolate(
        picture,
        None if offset else new,
        scale if offset else None,
        mode=mode,
        antialias=antialias,
        align_corners=corners,
    )
    patches = rearrange(picture, "l d h w -> l (h w) d").to(table.dtype)
    resized = torch.cat([stack[:, :prefix], patches], dim=1)
    return resized.reshape(*table.shape[:-2], *resized.shape[1:])


def sincos2d(grid: tuple[int, int], width: int) -> Tensor:
    """The fixed table of big_vision (models/vit.py posemb_sincos_2d): float32 [rows*columns d].

    Frequencies 10000^(-i/(d/4-1)); blocks in the order sin x, cos x, sin y, cos y.

    Raises:
        Error: the width is not a multiple of 4, or is 4 (the formula divides by d/4-1).
    """
    return _sincos(grid, width, width // 4 - 1)


def sincos2d_mae(grid: tuple[int, int], width: int) -> Tensor:
    """The fixed table of MAE (util/pos_embed.py): as `sincos2d`, frequencies 10000^(-i/(d/4)).

    Raises:
        Error: the width is not a multiple of 4.
    """
    return _sincos(grid, width, width // 4)


def _sincos(grid: tuple[int, int], width: int, divisor: int) -> Tensor:
    if width % 4 or divisor < 1:
        raise Error(f"a sin-cos position table needs a width that is a multiple of 4, not {width}")
    y, x = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64),
        torch.arange(grid[1], dtype=torch.float64),
        indexing="ij",
    )
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / divisor)
    angles_x, angles_y = (axis.reshape(-1, 1) * rates for axis in (x, y))
    blocks = [angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()]
    return torch.cat(blocks, dim=1).float()
