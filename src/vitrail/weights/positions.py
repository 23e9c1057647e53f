"""Fitting a learned position table into a model: prefix rows first, then the grid.

Files differ in which tokens have a row (class token, registers, patches) and in their grid; where
only the rows differ the model computes exactly what the file's did, because a row of the class
token can be added into the token itself, and a token without a row has a row of zeros.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.kit.grid import resize_table
from vitrail.models.positions import FIXED_TABLES, table_shapes
from vitrail.models.vit import ViTConfig

Grid = tuple[int, int]


@dataclass
class Positions:
    """A table that fits the model.

    Attributes:
        table: [1 rows d], or [depth rows d] where every layer has its own.
        resized: what happened to the grid, in words; empty where it is the same.
        added: tokens by our names, and the rows [1 r d] to be added to them.
        notes: sentences for the report.
    """

    table: Tensor
    resized: str = ""
    added: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fit_positions(
    tensors: Mapping[str, Tensor], config: ViTConfig, how: str, grid: Grid | None, alike: bool
) -> Positions:
    """Fit ``tensors["pos_embed"]`` into a model.

    Args:
        tensors: the file's tensors under our names; the class token and the registers among
            them say which rows the table can have.
        how: a key of `kit.grid.RESIZES`.
        grid: the file's grid where it is known; otherwise it is square, as every published
            table is.
        alike: a table of as many rows as the model's is taken to be of the model's grid.

    Raises:
        ValueError: the rows fit no grid, or the model computes its table and this is another.
    """
    table = tensors["pos_embed"]
    if table.ndim == 2:
        table = table[None]
    count = table_shapes(config)["pos_embed"][0]
    if table.ndim != 3 or table.shape[0] != count or table.shape[2] != config.width:
        wanted = f"[{count}, rows, {config.width}]"
        raise ValueError(f"{list(table.shape)} in the file, {wanted} in the model")
    table = table if table.dtype == torch.float64 else table.float()
    in_file = {
        "cls_token": int("cls_token" in tensors or config.has_class_token),
        "dist_token": int("dist_token" in tensors or config.distilled),
        "reg_token": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
    }
    kept, usual = config.position_rows, (0, *accumulate(in_file.values()))
    counts = [kept, *usual] if kept in usual else [*usual]
    if alike and table.shape[1] == kept + config.grid[0] * config.grid[1]:
        grid = config.grid
    prefix, old = _layout(table.shape[1], counts, config.grid, grid)
    if config.position in FIXED_TABLES:
        return _fixed(table, config, prefix, old)
    if count > 1 and prefix != kept:
        raise ValueError(f"{prefix} rows before the patches in the file, {kept} in the model")
    rows = dict(
        zip(in_file, table[:, :prefix].split(_shares(prefix, in_file.values()), dim=1), strict=True)
    )
    fitted = Positions(resize_table(table[:, prefix:], old, config.grid, how))
    if old != config.grid:
        fitted.resized = f"{old[0]}x{old[1]} -> {config.grid[0]}x{config.grid[1]}, {how}"
    _fit_prefix(fitted, rows, config)
    return fitted


def with_class_row(config: ViTConfig) -> Callable[[Tensor], Tensor]:
    """For a format whose class token always has a row: a row of zeros, where our table has none."""
    bare = config.has_class_token and not config.position_on_prefix
    return (lambda table: F.pad(table, (0, 0, 1, 0))) if bare else (lambda table: table)


def _shares(prefix: int, counts: Iterable[int]) -> list[int]:
    """How many of the rows before the patches each kind of token has, the first ones first."""
    shares: list[int] = []
    for count in counts:
        shares.append(min(count, prefix - sum(shares)))
    return shares


def _layout(rows: int, counts: list[int], own: Grid, grid: Grid | None) -> tuple[int, Grid]:
    """How many prefix rows a table has, and its grid."""
    if grid is not None and rows - grid[0] * grid[1] in counts:
        return rows - grid[0] * grid[1], grid
    for prefix in counts:
        side = math.isqrt(max(0, rows - prefix))
        if side and side * side == rows - prefix:
            return prefix, (side, side)
    if rows - own[0] * own[1] in counts:
        return rows - own[0] * own[1], own
    raise ValueError(
        f"{rows} rows in the file are no square grid, nor the model's {own[0]}x{own[1]}"
    )


def _fit_prefix(fitted: Positions, rows: dict[str, Tensor], config: ViTConfig) -> None:
    wanted = {
        "cls_token": int(config.has_class_token),
        "dist_token": int(config.distilled),
        "reg_token": config.registers,
    }
    head = []
    for name, count in wanted.items():
        found = rows[name]
        if found.shape[1] and not count:
            fitted.notes.append(f"the model has no {name}: the file's row for it is left out")
        elif config.position_on_prefix and count:
            if not found.shape[1]:
                found = torch.zeros(len(found), count, config.width, dtype=fitted.table.dtype)
                fitted.notes.append(f"the file has no position for {name}: it is zero")
            head.append(found)
        elif found.shape[1]:
            fitted.added[name] = found
            fitted.notes.append(f"the position of {name} is added into the token itself")
    fitted.table = torch.cat([*head, fitted.table], dim=1)


def _fixed(table: Tensor, config: ViTConfig, prefix: int, old: Grid) -> Positions:
    """The file's table where the model computes one: the same formula, or the same size."""
    kept = config.prefix if config.position_on_prefix else 0
    computed = FIXED_TABLES[config.position](old, config.width).to(table)
    same = torch.allclose(table[0, prefix:], computed, atol=1e-4)
    if old == config.grid and prefix == kept:
        note = f"the file's position table is not {config.position}: at other sizes the model's is"
        return Positions(table, notes=[] if same else [note])
    if not same:
        raise ValueError(f"the file's table is not the {config.position} that the model computes")
    patches = FIXED_TABLES[config.position](config.grid, config.width).to(table)
    zeros = torch.zeros(kept, config.width, dtype=table.dtype)
    resized = f"{old[0]}x{old[1]} -> {config.grid[0]}x{config.grid[1]}, computed"
    return Positions(torch.cat([zeros, patches])[None], resized)
